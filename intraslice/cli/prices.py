"""The command that argues about a plan: what a parameter costs in every module, and where two plans part."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas

from intraslice.cli.run import Answer, Run
from intraslice.core.config import ModuleKind
from intraslice.core.errors import UserError
from intraslice.diagnostics.prices import (
    Disagreement,
    Prices,
    best_exchange,
    cost_of,
    disagreements,
    measure_prices,
    predicted_price,
)
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.reporting import records

SHOWN = 8  # modules on which two plans part most


def prices(run: Run) -> Answer:
    """The marginal price of a parameter in every module of the sliced model, by measurement and by each estimator."""
    method, against = run.recipe.method, run.arguments.against
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    sliced, plan = run.slice(loaded, stats, tokens)
    if not isinstance(plan, SlicePlan):
        raise UserError(f"{method} cuts no single modules; expected a method whose parameters each have a module")
    profile = stats.profile_for(plan.config)
    differences = None
    if against is not None:  # before anything is measured
        other = make_plan(profile, replace(plan.config, estimator=against, locked=()))
        differences = disagreements(plan, other, profile)
    with run.timed("prices"):
        found = measure_prices(loaded, stats, sliced, plan, run.windows(loaded), method)
    frame = price_frame(found, profile)
    result = run.recipe.asked() | {
        "divergence": found.divergence._asdict(),
        "tokens": found.tokens,
        "modules": records(frame),
        "exchange": None,
        "against": None,
    }
    shown = frame.round({name: 4 for name in frame if frame[name].dtype == float})
    lines = [
        f"KL gained a parameter, nats a token, on {found.tokens:,} tokens; `times` are over the median module's:",
        shown.drop(columns=["price", "standard_error"]).to_string(index=False),
    ]
    if (best := best_exchange(found, plan.config.cap)) is not None:
        places = {"from": _place(best.giver), "to": _place(best.taker)}
        result["exchange"] = places | {"parameters": best.parameters} | best.change._asdict()
        error = "" if best.change.standard_error is None else f" +- {best.change.standard_error:.5f}"
        lines.append(
            f"moving {best.parameters / found.decoder:.2%} of the layers' parameters from {_said(**places['from'])} to "
            f"{_said(**places['to'])} would change KL by {best.change.value:+.5f}{error}"
        )
    if differences is not None:
        told, words = _against(against, differences, found)
        result["against"] = told
        lines.append(words)
    return result | {"protocol": run.recipe.protocol(), "seconds": run.seconds}, "\n".join(lines)


def price_frame(prices: Prices, profile: Profile) -> pandas.DataFrame:
    """A row a module: the measured price with its error, and all prices over their median module's."""
    rows = []
    for price in prices.modules:
        value, error = price.estimate()
        named = {name: getattr(price, name) for name in ("layer", "module", "ratio", "less", "more", "parameters")}
        predicted = {f"times_{name}": predicted_price(price, profile, name) for name in profile.estimators}
        rows.append(named | {"price": value, "standard_error": error, "times": value, "times_error": error} | predicted)
    frame = pandas.DataFrame(rows)
    middle = frame.median(numeric_only=True).where(lambda median: median > 0)  # a share of nothing is not known
    frame["times_error"] /= middle["times"]
    for column in ("times", *(f"times_{name}" for name in profile.estimators)):
        frame[column] /= middle[column]
    return frame


def _against(name: str, differences: tuple[Disagreement, ...], prices: Prices) -> tuple[dict[str, Any], str]:
    change = cost_of(prices, differences)
    error = "" if change.standard_error is None else f" +- {change.standard_error:.5f}"
    head = f"against {name}: by these prices its plan would change KL by {change.value:+.5f}{error}, to first order"
    table = pandas.DataFrame([vars(one) for one in differences[:SHOWN]]).round(3)
    told = {"estimator": name, "change": change._asdict(), "modules": [vars(one) for one in differences]}
    return told, f"{head}; they part most on\n{table.to_string(index=False)}"


def _place(price: Any) -> dict[str, Any]:
    return {"layer": price.layer, "module": price.module}


def _said(layer: int, module: ModuleKind) -> str:
    return f"layer {layer}'s {module}"
