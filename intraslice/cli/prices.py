"""The command `prices`: marginal cost per parameter in every module, and differences between two plans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas

from intraslice.cli.run import CommandResult, Run
from intraslice.core.config import ModuleKind
from intraslice.core.errors import UserError
from intraslice.diagnostics.marginal_costs import (
    MarginalCost,
    MarginalCosts,
    PlanDifference,
    divergence_change,
    find_best_swap,
    measure_marginal_costs,
    plan_differences,
    predicted_cost,
)
from intraslice.methods.registry import METHODS
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.reporting import records

SHOWN = 8  # modules in which two plans differ most


def prices(run: Run) -> CommandResult:
    """Marginal cost per parameter in every module of the sliced model, measured and predicted by each estimator."""
    method, against = run.recipe.method, run.arguments.against
    if METHODS[method].slices_residual_stream or not METHODS[method].narrows_queries:
        raise UserError(f"{method} does not cut single modules as intraslice does; choose --method intraslice")
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    sliced, plan = run.slice(loaded, stats, tokens)
    assert isinstance(plan, SlicePlan)
    profile = stats.profile_for(plan.config)
    differences = None
    if against is not None:  # before anything is measured
        other = make_plan(profile, replace(plan.config, estimator=against, locked=()))
        differences = plan_differences(plan, other, profile)
    with run.timed("prices"):
        costs = measure_marginal_costs(loaded, stats, sliced, plan, run.windows(loaded), method)
    frame = cost_frame(costs, profile)
    result = run.recipe.slice_options() | {
        "divergence": costs.divergence._asdict(),
        "tokens": costs.tokens,
        "modules": records(frame),
        "exchange": None,
        "against": None,
    }
    rounded = frame.round({name: 4 for name in frame if frame[name].dtype == float})
    lines = [
        f"marginal cost of each module: KL per parameter on {costs.tokens:,} tokens, relative to the median module's",
        "less, more: the ratios between which it is measured; parameters: how many are removed from less to more",
        "times: the measured cost, with its standard error in times_error; times_NAME: as the estimator NAME predicts",
        rounded.drop(columns=["price", "standard_error"]).to_string(index=False),
    ]
    if (swap := find_best_swap(costs, plan.config.cap)) is not None:
        modules = {"from": _module_key(swap.source), "to": _module_key(swap.target)}
        result["exchange"] = modules | {"parameters": swap.parameters} | swap.change._asdict()
        error = "" if swap.change.standard_error is None else f" +- {swap.change.standard_error:.5f}"
        lines.append(
            f"pruning {_module_name(**modules['from'])} more and {_module_name(**modules['to'])} less, by "
            f"{swap.parameters / costs.decoder:.2%} of the decoder layers' parameters each, is predicted to change KL "
            f"by {swap.change.value:+.5f}{error}, to first order"
        )
    if differences is not None:
        comparison, text = _against(against, differences, costs)
        result["against"] = comparison
        lines.append(text)
    return result | {"protocol": run.recipe.protocol(), "seconds": run.seconds}, "\n".join(lines)


def cost_frame(costs: MarginalCosts, profile: Profile) -> pandas.DataFrame:
    """A row per module: the measured cost with its error, and all costs relative to the median module."""
    rows = []
    for cost in costs.modules:
        value, error = cost.estimate()
        row = {name: getattr(cost, name) for name in ("layer", "module", "ratio", "less", "more", "parameters")}
        predicted = {f"times_{name}": predicted_cost(cost, profile, name) for name in profile.estimators}
        rows.append(row | {"price": value, "standard_error": error, "times": value, "times_error": error} | predicted)
    frame = pandas.DataFrame(rows)
    medians = frame.median(numeric_only=True).where(lambda median: median > 0)  # NaN where the median is zero
    frame["times_error"] /= medians["times"]
    for column in ("times", *(f"times_{name}" for name in profile.estimators)):
        frame[column] /= medians[column]
    return frame


def _against(name: str, differences: tuple[PlanDifference, ...], costs: MarginalCosts) -> tuple[dict[str, Any], str]:
    change = divergence_change(costs, differences)
    error = "" if change.standard_error is None else f" +- {change.standard_error:.5f}"
    summary = f"against {name}: its plan is predicted to change KL by {change.value:+.5f}{error}, to first order"
    modules = [vars(difference) for difference in differences]
    comparison = {"estimator": name, "change": change._asdict(), "modules": modules}
    table = pandas.DataFrame(modules[:SHOWN]).round(3)
    return comparison, f"{summary}; largest differences:\n{table.to_string(index=False)}"


def _module_key(cost: MarginalCost) -> dict[str, Any]:
    return {"layer": cost.layer, "module": cost.module}


def _module_name(layer: int, module: ModuleKind) -> str:
    return f"layer {layer}'s {module}"
