"""The commands that explain: inspect, sensitivity, sweep. Each returns its JSON object and its text."""

from __future__ import annotations

from typing import Any

import pandas
import torch

from intraslice.calibration.stats import CalibrationStats
from intraslice.cli.run import Answer, Run, require_folder
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
from intraslice.distributed.sharing import speaks
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.loading import LoadedModel
from intraslice.planning.crossmodule_plan import CrossModulePlan
from intraslice.planning.ratios import SlicePlan
from intraslice.reporting import records

PARTS = ("spectra", "shift", "faults")


def inspect(run: Run) -> Answer:
    """Spectra of the dense model, each method's activation shift, and whose fault the cross-module damage is."""
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    result, texts = run.recipe.asked() | {"protocol": run.recipe.protocol()}, []
    for part in dict.fromkeys(run.arguments.parts):
        found, text = {"spectra": _spectra, "shift": _shift, "faults": _ablations}[part](run, loaded, stats, tokens)
        result |= found
        texts.append(text)
    return result | {"seconds": run.seconds}, "\n\n".join(texts)


def _spectra(run: Run, loaded: LoadedModel, stats: CalibrationStats, _: torch.Tensor) -> Answer:
    chosen = run.plan(loaded, stats)
    plan = chosen if isinstance(chosen, SlicePlan) else None  # a cross-module plan cuts none of these parts
    with run.timed("spectra"):
        frame = spectra_frame(stats, plan)
    pairs = []
    for layer in range(len(stats.layers)):
        found = pair_energies(loaded.model, stats, layer, None if plan is None else plan.layers[layer])
        pairs.append({name: value.tolist() for name, value in vars(found).items()})
    table = frame.assign(part=frame["part"].str.replace(r" \d+", "s (mean)", regex=True))
    table = table.groupby(["layer", "part"], sort=False).mean(numeric_only=True).round(1).reset_index()
    return {"spectra": records(frame), "pairs": pairs}, table.to_string(index=False, na_rep="")


def _shift(run: Run, loaded: LoadedModel, stats: CalibrationStats, tokens: torch.Tensor) -> Answer:
    models, removed = {}, {}
    for method in dict.fromkeys(run.arguments.methods):
        models[method], plan = run.slice(loaded, stats, tokens, method)
        removed[method] = plan.removed_fraction
    with run.timed("shift"):
        report = measure_shift(loaded.model, models, run.windows(loaded))
    frame = report.frame()
    counts = {"tokens": report.tokens, "massive_tokens": report.massive, "removed_fraction": removed}
    notes = ", ".join(f"{method} {fraction:.4f}" for method, fraction in removed.items())
    head = f"{report.massive} of {report.tokens} tokens are massive; decoder parameters removed: {notes}"
    return {"shift": records(frame), "shift_of": counts}, f"{head}\n{frame.round(3).to_string(index=False)}"


def _ablations(run: Run, loaded: LoadedModel, stats: CalibrationStats, tokens: torch.Tensor) -> Answer:
    plan = run.plan(loaded, stats, "crossmodule")
    assert isinstance(plan, CrossModulePlan)
    width = plan.width
    with run.timed("faults"):
        perplexities = measure_ablations(loaded.model, width, tokens, run.windows(loaded))
    lines = [f"perplexity when only this is cut to {width} axes, the residual stream kept whole:"]
    lines += [f"  {ablation:<18}{value:9.3f}" for ablation, value in perplexities.items()]
    return {"faults": {"width": width, "perplexity": perplexities}}, "\n".join(lines)


def sensitivity(run: Run) -> Answer:
    """What slicing each module alone costs, or all but it in context, and a verdict on the estimators."""
    a = run.arguments
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    windows = run.windows(loaded)
    with run.timed("sensitivity"):
        if a.context:
            measured = [_in_context(run, loaded, stats, tokens, windows)]
        else:
            measured = [measure_sensitivity(loaded, stats, windows, ratio) for ratio in _ratios(a.ratio)]
    profile = stats.profile_for(run.recipe.slicing)
    agreements = [compare_ranks(found, profile, a.measure) for found in measured]
    verdicts = [_record(found, agreement) for found, agreement in zip(measured, agreements, strict=True)]
    result = {"model": a.model, "measure": a.measure, **verdicts[0]}
    if len(verdicts) > 1:
        result["ratios"] = verdicts
    result |= {"protocol": run.recipe.protocol(), "seconds": run.seconds}
    texts = [_verdict(found, agreement, a.measure) for found, agreement in zip(measured, agreements, strict=True)]
    return result, "\n\n".join(texts)


def _ratios(given: list[float]) -> list[float]:
    for ratio in given:  # all of them, before the first is measured
        require_ratio(ratio)
    return list(dict.fromkeys(given))


def _in_context(
    run: Run, loaded: LoadedModel, stats: CalibrationStats, tokens: torch.Tensor, windows: torch.Tensor
) -> Sensitivity:
    method = run.recipe.method
    sliced, plan = run.slice(loaded, stats, tokens)
    if not isinstance(plan, SlicePlan):
        raise UserError(
            f"{method} slices no modules that could be dense again; expected another --method, or no --context"
        )
    return measure_in_context(loaded, stats, sliced, plan, windows, method)


def _record(found: Sensitivity, agreement: RankAgreement) -> dict[str, Any]:
    """One measurement of all modules and what it says of the estimators, as JSON."""
    return {
        "ratio": found.ratio,
        "base_loss": found.base_loss,
        "context": found.context and found.context._asdict(),
        "tokens": found.tokens,
        "modules": records(agreement.modules),
        "rho": agreement.rho,
        "ceiling": agreement.ceiling,
        "misjudged": [vars(module) for module in agreement.misjudged],
    }


def _verdict(found: Sensitivity, agreement: RankAgreement, measure: Measure) -> str:
    columns = ["layer", "module", "ratio", "removed", "damage", "standard_error", "place"]
    columns += [f"place_{estimator}" for estimator in agreement.rho]
    what = {"kl": "KL divergence from the dense model", "loss": "increase of the loss"}[measure]
    how = "each module alone" if found.context is None else "each module dense again, and what that heals"
    head = f"{how}: {what}, nats a token, on {found.tokens:,} tokens"
    if found.ratio is not None:
        head = f"ratio {found.ratio:g}; {head}"
    lines = [head, agreement.modules[columns].round(5).to_string(index=False, na_rep=""), ""]
    lines.append("Spearman's rho, measured against foretold:")
    for name, by_module in [*agreement.rho.items(), ("at best, for the noise of the tokens", agreement.ceiling)]:
        numbers = ", ".join(f"{kind} {'-' if rho is None else f'{rho:.2f}'}" for kind, rho in by_module.items())
        lines.append(f"  {name}: {numbers}")
    return "\n".join([*lines, "", *map(str, agreement.misjudged)])


def sweep_(run: Run) -> Answer:
    """Perplexity, KL from the dense model, parameters and speed of methods x estimators x sparsities."""
    a = run.arguments
    if a.csv is not None:
        require_folder(a.csv)
    speed = None if a.no_speed else SpeedConfig(prompt=a.prompt_tokens)
    loaded = run.load_dense()
    windows, others = run.windows(loaded), run.other_windows(loaded)
    stats, tokens = run.calibrate(loaded)
    texts = Texts(stats, tokens, windows, run.training_tokens(loaded), others)
    wanted = points(a.methods, a.estimators, a.sparsities)
    with run.timed("sweep"):
        frame = sweep(loaded, texts, wanted, run.recipe.slicing, speed)
    if a.csv is not None and speaks():
        frame.to_csv(a.csv, index=False)
    result = {"model": a.model, "rows": records(frame), "protocol": run.recipe.protocol(), "seconds": run.seconds}
    columns = [*_SHOWN, *(f"{column} {name}" for name in others for column in ("perplexity", "divergence"))]
    return result, _fixed(frame[[column for column in columns if column in frame]])


_SHOWN = (
    "method",
    "estimator",
    "sparsity",
    "removed_fraction",
    "sliced_total",
    "perplexity",
    "divergence",
    "prefill_ratio",
    "decode_ratio",
    "note",
)


def _fixed(frame: pandas.DataFrame) -> str:
    digits = {"removed_fraction": 4, "perplexity": 3, "divergence": 4, "prefill_ratio": 2, "decode_ratio": 2}
    rounded = {column: digits[kind] for column in frame if (kind := column.partition(" ")[0]) in digits}
    return frame.round(rounded).to_string(index=False, na_rep="")
