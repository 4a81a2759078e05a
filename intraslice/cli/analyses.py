"""The commands inspect, sensitivity and sweep. Each returns its JSON object and its text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas
import torch
from pandas.api.types import is_numeric_dtype

from intraslice.calibration.stats import CalibrationStats
from intraslice.cli.run import CommandResult, Run, require_writable
from intraslice.core.config import CalibrationConfig
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
from intraslice.distributed import rank
from intraslice.evaluation.answers import AnswerStatistics, tokens_of_prompts
from intraslice.evaluation.perplexity import DenseStates
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.planning.baseline_plans import CrossModulePlan
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
    assert isinstance(plan, CrossModulePlan)
    width = plan.width
    with run.timed("faults"):
        perplexities = measure_ablations(loaded.model, width, tokens, run.windows(loaded))
    lines = [f"perplexity of the dense model when only these activations of all modules are projected on {width} axes:"]
    lines += [f"  {ablation:<18}{value:9.3f}" for ablation, value in perplexities.items()]
    return {"faults": {"width": width, "perplexity": perplexities}}, "\n".join(lines)


def sensitivity(run: Run) -> CommandResult:
    """Damage of slicing each module alone, or in context, compared with the ranks of the estimators."""
    a, ratios = run.arguments, _ratios(run.arguments.ratio)
    if a.context and METHODS[run.recipe.method].slices_residual_stream:
        raise UserError(
            f"--context needs a method that prunes individual modules, got {run.recipe.method}; choose another "
            "--method, or leave --context out"
        )
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    windows = run.windows(loaded)
    with run.timed("sensitivity"):
        if a.context:
            sensitivities = [_in_context(run, loaded, stats, tokens, windows)]
        else:
            sensitivities = [measure_sensitivity(loaded, stats, windows, ratio) for ratio in ratios]
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


def _ratios(ratios: list[float]) -> list[float]:
    for ratio in ratios:  # validate all before measuring the first
        require_ratio(ratio)
    return list(dict.fromkeys(ratios))


def _in_context(
    run: Run, loaded: LoadedModel, stats: CalibrationStats, tokens: torch.Tensor, windows: torch.Tensor
) -> Sensitivity:
    method = run.recipe.method
    sliced, plan = run.slice(loaded, stats, tokens)
    assert isinstance(plan, SlicePlan)
    return measure_in_context(loaded, stats, sliced, plan, windows, method)


def _record(sensitivity: Sensitivity, agreement: RankAgreement) -> dict[str, Any]:
    """One measurement of all modules and its agreement with the estimators, as JSON."""
    return {
        "ratio": sensitivity.ratio,
        "base_loss": sensitivity.base_loss,
        "context": sensitivity.context and sensitivity.context._asdict(),
        "tokens": sensitivity.tokens,
        "modules": records(agreement.modules),
        "rho": agreement.rho,
        "ceiling": agreement.ceiling,
        "misjudged": [
            {"foretold" if name == "predicted" else name: value for name, value in vars(module).items()}
            for module in agreement.misjudged
        ],
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


def sweep_(run: Run) -> CommandResult:
    """Perplexity, KL from the dense model, size and speed of methods x estimators x sparsities x types."""
    a = run.arguments
    if a.csv is not None:
        require_writable(a.csv)
    speed = None if a.no_speed else SpeedConfig(prompt=a.prompt_tokens)
    recipe = run.recipe
    calibrations = [replace(recipe.calibration, seed=seed) for seed in dict.fromkeys(a.seeds)] or [recipe.calibration]
    for sparsity in a.sparsities:
        replace(recipe.slicing, sparsity=sparsity)  # validates it before any work
    loaded = run.load_dense()
    windows, others = run.windows(loaded), run.other_windows(loaded)
    prompts = tokens_of_prompts(loaded.tokenizer) if a.answers else []
    grid, states = points(a.methods, a.estimators, a.sparsities, a.quantise), DenseStates(loaded.model)

    def sweep_from(calibration: CalibrationConfig) -> pandas.DataFrame:
        run.recipe = replace(recipe, calibration=calibration)
        stats, tokens = run.calibrate(loaded)
        texts = Texts(stats, tokens, windows, run.training_tokens(loaded), others, prompts)
        with run.timed("sweep"):
            frame = sweep(loaded, texts, grid, recipe.slicing, speed, states)
        return frame.assign(seed=calibration.seed) if a.seeds else frame

    frame = pandas.concat(map(sweep_from, calibrations), ignore_index=True)  # one calibration in memory at a time
    run.recipe = recipe
    if a.csv is not None and rank() == 0:
        frame.to_csv(a.csv, index=False)
    protocol = recipe.protocol() | ({"seed": list(dict.fromkeys(a.seeds))} if a.seeds else {})
    result = {"model": a.model, "rows": records(frame), "protocol": protocol, "seconds": run.seconds}
    table = _mean_over_seeds(frame) if a.seeds else frame
    shown = _SHOWN if any(point.quantise != "none" for point in grid) else [c for c in _SHOWN if c not in _OF_FILES]
    columns = [*shown, *(f"{column} {name}" for name in others for column in ("perplexity", "divergence"))]
    return result, _fixed(table[[column for column in columns if column in table]])


_SHOWN = (
    "method",
    "estimator",
    "recovery",
    "sparsity",
    "quantise",
    "removed_fraction",
    "sliced_total",
    "bytes",
    "perplexity",
    "perplexity_sd",
    "divergence",
    "divergence_sd",
    "recovery_training_passes",
    *AnswerStatistics._fields,
    "prefill_ratio",
    "decode_ratio",
    "note",
)

_OF_FILES = ("quantise", "bytes")
_POINT = ("method", "estimator", "recovery", "sparsity", "quantise")  # columns that name a point


def _mean_over_seeds(frame: pandas.DataFrame) -> pandas.DataFrame:
    """One row per point: means over its seeds, standard deviations (sd), and the first of what is no number."""
    points = frame.groupby([name for name in _POINT if name in frame], sort=False, dropna=False)
    kinds = {name: "mean" if is_numeric_dtype(frame[name]) else "first" for name in frame if name not in _POINT}
    spread = points[["perplexity", "divergence"]].std().add_suffix("_sd")
    return points.agg(kinds).join(spread).reset_index()


def _fixed(frame: pandas.DataFrame) -> str:
    digits = {"removed_fraction": 4, "perplexity": 3, "divergence": 4, "prefill_ratio": 2, "decode_ratio": 2}
    digits |= {"perplexity_sd": 3, "divergence_sd": 4}
    rounded = {column: digits[kind] for column in frame if (kind := column.partition(" ")[0]) in digits}
    return frame.round(rounded).to_string(index=False, na_rep="")
