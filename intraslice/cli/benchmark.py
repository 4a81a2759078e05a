"""The command `benchmark`: cost of the other commands. Returns its JSON object and its text, as Markdown."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from intraslice.cli.run import CommandResult, Run, peak_memory
from intraslice.core.config import FREE
from intraslice.evaluation.benchmark import REFERENCE_TOKENS, Costs, measure_costs, measure_shapes
from intraslice.pretrained.precision import choose_dtype
from intraslice.samples import calibration_sequences


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
    return result, _text(run, costs, result)


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


def _text(run: Run, costs: dict[str, Costs], result: dict[str, Any]) -> str:
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
        tables += [markdown(["shapes", "prefill", "decode", "perplexity"], rows), _conclusion(shapes)]
    return "\n\n".join(tables)


def _conclusion(shapes: dict[str, dict[str, float]]) -> str:
    """Which presets decode faster than free shapes, and how the perplexities compare."""
    free = shapes[FREE]
    faster = [
        f"{name} takes {1 - cost['decode'] / free['decode']:.0%} less time per decoded token than free shapes "
        f"(perplexity {cost['perplexity']:.2f}, free {free['perplexity']:.2f})"
        for name, cost in shapes.items()
        if cost["decode"] < free["decode"]
    ]
    return f"On this machine {'; '.join(faster) or 'no preset decodes faster than free shapes'}."


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with all columns except the first aligned to the right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *rows))
