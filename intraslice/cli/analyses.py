"""The commands check, inspect, sensitivity and benchmark. Each returns its JSON object and its text."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from intraslice.calibration.stats import CalibrationStats
from intraslice.check import check_model
from intraslice.cli.run import CommandResult, Run, peak_memory
from intraslice.core.errors import UserError
from intraslice.diagnostics.ablation import measure_ablations
from intraslice.diagnostics.sensitivity import (
    Measure,
    RankAgreement,
    Sensitivity,
    compare_ranks,
    measure_in_context,
    measure_sensitivity,
    require_ratio,
)
from intraslice.diagnostics.shift import measure_shift
from intraslice.diagnostics.spectra import pair_energies, spectra_frame
from intraslice.evaluation.benchmark import REFERENCE_TOKENS, Costs, measure_costs, measure_shapes
from intraslice.loading import LoadedModel
from intraslice.planning.ratios import SlicePlan
from intraslice.pretrained.precision import choose_dtype
from intraslice.records import records
from intraslice.samples import calibration_sequences


def check(run: Run) -> CommandResult:
    """What slicing gives and takes for a model that need not be downloaded yet."""
    recipe = run.recipe
    found = check_model(recipe.model, recipe.calibration, getattr(torch, recipe.dtype), run.device)
    return asdict(found), str(found)


def inspect(run: Run) -> CommandResult:
    """Spectra of the dense model, activation shift of each method, and ablations of the cross-module method."""
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    result, texts = run.recipe.slice_options() | {"protocol": run.recipe.protocol()}, []
    for part in dict.fromkeys(run.arguments.parts):
        part_result, text = PARTS[part](run, loaded, stats, tokens)
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


PARTS = {"spectra": _spectra, "shift": _shift, "faults": _ablations}  # of `inspect`


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
    pairs = [(sensitivity, compare_ranks(sensitivity, profile, a.measure)) for sensitivity in sensitivities]
    rank_records = [_record(*pair) for pair in pairs]
    result = {"model": a.model, "measure": a.measure, **rank_records[0]}
    if len(rank_records) > 1:
        result["ratios"] = rank_records
    result |= {"protocol": run.recipe.protocol(), "seconds": run.seconds}
    return result, "\n\n".join(_text(*pair, a.measure) for pair in pairs)


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
    change = "decrease when each module is restored to dense" if sensitivity.context else "each module sliced alone"
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


def benchmark(run: Run) -> CommandResult:
    """Cost of each stage, in multiples of a dense forward pass, in every requested precision."""
    main_dtype, shapes = run.recipe.dtype, dict[str, dict[str, float]]()
    costs = {dtype: _costs(run, dtype, shapes) for dtype in dict.fromkeys([main_dtype, *run.arguments.dtypes])}
    result = {
        "model": run.arguments.model,
        "ratios": costs[main_dtype].ratios,
        "plan_ms": costs[main_dtype].plan_ms,
        "peak_rss_bytes": peak_memory(),
        "by_dtype": {dtype: dtype_costs.ratios for dtype, dtype_costs in costs.items()},
        "dense_ms_per_token": {dtype: dtype_costs.dense_ms for dtype, dtype_costs in costs.items()},
        **({"shapes": shapes} if shapes else {}),
        "protocol": run.recipe.protocol()
        | {
            "usual_tokens": REFERENCE_TOKENS,
            "sparsity": run.recipe.slicing.sparsity,
            "estimator": run.recipe.slicing.estimator,
            "threads": torch.get_num_threads(),
            "device": run.device,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "bfloat16_is_native": choose_dtype(device=run.device) == "bfloat16",
        },
        "seconds": run.seconds,
    }
    return result, _benchmark_text(run, costs, result)


def _costs(run: Run, dtype: str, shapes: dict[str, dict[str, float]]) -> Costs:
    """Costs of the model in one precision. With `--speed`, adds those of several shapes in the run's precision."""
    other, calibration = copy.copy(run), run.recipe.calibration  # the times of whose stages are the run's
    other.recipe = replace(run.recipe, dtype=dtype)
    loaded = other.load_dense()
    tokens = calibration_sequences(loaded, calibration, run.recipe.evaluation.text)
    inputs = loaded, tokens, run.windows(loaded), run.recipe.slicing, calibration.targets
    with run.timed(dtype):
        costs = measure_costs(*inputs)
    if run.arguments.speed and dtype == run.recipe.dtype:
        with run.timed("shapes"):
            shapes |= measure_shapes(*inputs)
    return costs


def _benchmark_text(run: Run, costs: dict[str, Costs], result: dict[str, Any]) -> str:
    """A table with its caption; with `--speed` one of the shapes."""
    ratios = [[job, *(f"{by_job[job]:.3g}" for by_job in result["by_dtype"].values())] for job in result["ratios"]]
    plans = ["plan", *(f"{dtype_costs.plan_ms:.1f} ms" for dtype_costs in costs.values())]
    dense = ["dense forward", *(f"{dtype_costs.dense_ms:.2f} ms per token" for dtype_costs in costs.values())]
    calibration, protocol, peak = run.recipe.calibration, result["protocol"], result["peak_rss_bytes"]
    clock = "time" if run.device.startswith("cuda") else "CPU time"
    caption = f"""\
{run.arguments.model}: {clock} on {run.device} ({protocol["cpu"]}, CPU threads: {protocol["threads"]}), \
peak memory {"unknown" if peak is None else f"{peak / 1e9:.2f} GB"}.
Calibrating and slicing are in dense forwards over the default {REFERENCE_TOKENS:,} calibration tokens (measured on \
{calibration.sequences} x {calibration.length};
the time of forwards is scaled by the number of tokens), perplexity in dense forwards over the same text; prefill and
decode are seconds per token relative to the dense model: below 1 is faster."""
    tables = [markdown(["job", *costs], [*ratios, plans, dense]), caption]
    if shapes := result.get("shapes"):
        rows = [[name, *(f"{value:.3g}" for value in cost.values())] for name, cost in shapes.items()]
        tables.append(markdown(["shapes", "prefill", "decode", "perplexity"], rows))
    return "\n\n".join(tables)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with all columns except the first aligned to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
