"""The commands inspect and sensitivity. Each returns its JSON object and its text."""

from __future__ import annotations

from typing import Any

import torch

from intraslice.calibration.stats import CalibrationStats
from intraslice.cli.run import CommandResult, Run
from intraslice.core.errors import UserError
from intraslice.diagnostics.ablation import measure_ablations
from intraslice.diagnostics.rank_agreement import RankAgreement, compare_ranks
from intraslice.diagnostics.sensitivity import (
    Measure,
    Sensitivity,
    measure_in_context,
    measure_sensitivity,
    require_ratio,
)
from intraslice.diagnostics.shift import measure_shift
from intraslice.diagnostics.spectra import pair_energies, spectra_frame
from intraslice.loading import LoadedModel
from intraslice.planning.ratios import SlicePlan
from intraslice.reporting import records

PARTS = ("spectra", "shift", "faults")


def inspect(run: Run) -> CommandResult:
    """Spectra of the dense model, activation shift of each method, and ablations of the cross-module method."""
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    result, texts = run.recipe.slice_options() | {"protocol": run.recipe.protocol()}, []
    for part in dict.fromkeys(run.arguments.parts):
        analyse = {"spectra": _spectra, "shift": _shift, "faults": _ablations}[part]
        part_result, text = analyse(run, loaded, stats, tokens)
        result |= part_result
        texts.append(text)
    return result | {"seconds": run.seconds}, "\n\n".join(texts)


def _spectra(run: Run, loaded: LoadedModel, stats: CalibrationStats, _: torch.Tensor) -> CommandResult:
    recipe_plan = run.plan(loaded, stats)
    plan = recipe_plan if isinstance(recipe_plan, SlicePlan) else None  # a cross-module plan prunes none of these
    with run.timed("spectra"):
        frame = spectra_frame(stats, plan)
    pairs = []
    for layer in range(len(stats.layers)):
        energies = pair_energies(loaded.model, stats, layer, None if plan is None else plan.layers[layer])
        pairs.append({name: value.tolist() for name, value in vars(energies).items()})
    table = frame.assign(part=frame["part"].str.replace(r" \d+", "s (mean)", regex=True))
    table = table.groupby(["layer", "part"], sort=False).mean(numeric_only=True).round(1).reset_index()
    return {"spectra": records(frame), "pairs": pairs}, table.to_string(index=False, na_rep="")


def _shift(run: Run, loaded: LoadedModel, stats: CalibrationStats, tokens: torch.Tensor) -> CommandResult:
    models, removed = {}, {}
    for method in dict.fromkeys(run.arguments.methods):
        models[method], plan = run.slice(loaded, stats, tokens, method)
        removed[method] = plan.removed_fraction
    with run.timed("shift"):
        report = measure_shift(loaded.model, models, run.windows(loaded))
    frame = report.frame()
    counts = {"tokens": report.tokens, "massive_tokens": report.massive, "removed_fraction": removed}
    fractions = ", ".join(f"{method} {fraction:.4f}" for method, fraction in removed.items())
    head = f"{report.massive} of {report.tokens} tokens are massive; decoder parameters removed: {fractions}"
    return {"shift": records(frame), "shift_of": counts}, f"{head}\n{frame.round(3).to_string(index=False)}"


def _ablations(run: Run, loaded: LoadedModel, stats: CalibrationStats, tokens: torch.Tensor) -> CommandResult:
    plan = run.plan(loaded, stats, "crossmodule")
    assert not isinstance(plan, SlicePlan)
    width = plan.width
    with run.timed("faults"):
        perplexities = measure_ablations(loaded.model, width, tokens, run.windows(loaded))
    lines = [f"perplexity of the dense model when only these activations of all modules are projected on {width} axes:"]
    lines += [f"  {ablation:<18}{value:9.3f}" for ablation, value in perplexities.items()]
    return {"faults": {"width": width, "perplexity": perplexities}}, "\n".join(lines)


def sensitivity(run: Run) -> CommandResult:
    """Damage from slicing each module alone, or in context, compared with the ranks of the estimators."""
    a = run.arguments
    for ratio in a.ratio:  # validate all before measuring the first
        require_ratio(ratio)
    if a.context and run.method.slices_residual_stream:
        raise UserError(
            f"--context needs a method that prunes individual modules, got {run.recipe.method}; choose another "
            "--method, or leave --context out"
        )
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    windows = run.windows(loaded)
    with run.timed("sensitivity"):
        if a.context:
            sliced, plan = run.slice(loaded, stats, tokens)
            assert isinstance(plan, SlicePlan)
            sensitivities = [measure_in_context(loaded, stats, sliced, plan, windows, run.recipe.method)]
        else:
            sensitivities = [measure_sensitivity(loaded, stats, windows, ratio) for ratio in dict.fromkeys(a.ratio)]
    profile = stats.profile_for(run.recipe.slicing)
    agreements = [compare_ranks(sensitivity, profile, a.measure) for sensitivity in sensitivities]
    pairs = list(zip(sensitivities, agreements, strict=True))
    rank_records = [_record(sensitivity, agreement) for sensitivity, agreement in pairs]
    result = {"model": a.model, "measure": a.measure, **rank_records[0]}
    if len(rank_records) > 1:
        result["ratios"] = rank_records
    result |= {"protocol": run.recipe.protocol(), "seconds": run.seconds}
    texts = [_text(sensitivity, agreement, a.measure) for sensitivity, agreement in pairs]
    return result, "\n\n".join(texts)


def _record(sensitivity: Sensitivity, agreement: RankAgreement) -> dict[str, Any]:
    """One measurement of all modules and its agreement with the estimators, as JSON."""
    misjudged = [vars(module) | {"foretold": module.predicted} for module in agreement.misjudged]
    return {
        **{name: getattr(sensitivity, name) for name in ("ratio", "base_loss", "tokens")},
        "context": sensitivity.context and sensitivity.context._asdict(),
        "modules": records(agreement.modules),
        "rho": agreement.rho,
        "ceiling": agreement.ceiling,
        "misjudged": [{name: value for name, value in row.items() if name != "predicted"} for row in misjudged],
    }


def _text(sensitivity: Sensitivity, agreement: RankAgreement, measure: Measure) -> str:
    columns = ["layer", "module", "ratio", "removed", "damage", "standard_error"]
    headers = {"place": "rank"} | {f"place_{estimator}": f"rank_{estimator}" for estimator in agreement.rho}
    quantity = {"kl": "KL divergence from the dense model", "loss": "increase of the loss"}[measure]
    change = "each module sliced alone"
    if sensitivity.context is not None:
        change = "decrease when each module is restored to dense"
    heading = f"{change}: {quantity}, nats per token, on {sensitivity.tokens:,} tokens"
    if sensitivity.ratio is not None:
        heading = f"ratio {sensitivity.ratio:g}; {heading}"
    table = agreement.modules[[*columns, *headers]].rename(columns=headers)
    lines = [heading, table.round(5).to_string(index=False, na_rep=""), ""]
    lines.append("Spearman's rho of measured and predicted damage:")
    for name, by_module in [*agreement.rho.items(), ("noise ceiling", agreement.ceiling)]:
        numbers = ", ".join(f"{kind} {'-' if rho is None else f'{rho:.2f}'}" for kind, rho in by_module.items())
        lines.append(f"  {name}: {numbers}")
    return "\n".join([*lines, "", *map(str, agreement.misjudged)])
