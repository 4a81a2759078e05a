"""The command `paper`: repeats the paper's measurement. Returns its JSON object and its text, as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from intraslice import data
from intraslice.cli.benchmark import markdown
from intraslice.cli.run import CommandResult, Run
from intraslice.core.errors import UserError
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.pretrained.memory import require_calibration_memory
from intraslice.pretrained.sources import DEFAULT
from intraslice.reporting import records

ALL_TOKENS = 2**31 - 1  # all tokens of the text
PROTOCOL: dict[str, Any] = {
    "calibration": "wikitext2",
    "eval": "wikitext2",
    "sequences": 128,
    "length": 2048,
    "eval_tokens": ALL_TOKENS,
}
# The protocol for the default model if WikiText-2 is not available: that of the README's tables. Takes minutes.
SMALL = {"calibration": "default", "eval": "default", "sequences": 32, "length": 512, "eval_tokens": 8192}
# By method and sparsity. Other cells are not published in the paper.
PUBLISHED: dict[str, Any] = {
    "source": "arXiv 2602.01975",
    "model": "Llama-2-7B",
    "dense": 5.47,
    "perplexity": {"crossmodule": {0.3: 8.64}, "intraslice": {0.3: 7.11}},
}

ROW_KEYS = (
    "method",
    "estimator",
    "sparsity",
    "removed_fraction",
    "perplexity",
    "divergence",
    "note",
)  # of a sweep's point


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of this command, and set the paper's protocol as the default."""
    add = command.add_argument
    add(
        "--methods",
        nargs="+",
        default=["crossmodule", "flap", "intraslice"],
        choices=METHODS,
        help="methods, one per row of the table",
    )
    add("--sparsities", nargs="+", type=float, default=[0.2, 0.3, 0.4], metavar="F", help="sparsities, one per column")
    command.set_defaults(**PROTOCOL)


def paper(run: Run) -> CommandResult:
    """Perplexities of sliced models by the paper's protocol, next to the published ones."""
    run = _with_available_texts(run)
    a, recipe = run.arguments, run.recipe
    for sparsity in a.sparsities:
        replace(recipe.slicing, sparsity=sparsity)  # validates it before any work
    loaded = run.load_dense()
    if a.device_map is None:
        sizes = recipe.calibration.sequences, recipe.calibration.length
        require_calibration_memory(loaded.model.config, *sizes, loaded.model.dtype, run.device)
    text_tokens = data.count_evaluation_tokens(loaded.tokenizer, a.eval, a.calibration)
    evaluation = replace(recipe.evaluation, tokens=max(a.length, min(a.eval_tokens, text_tokens)))
    windows = data.evaluation_tokens(loaded.tokenizer, evaluation, a.calibration)
    stats, tokens = run.calibrate(loaded)
    grid = points(a.methods, [recipe.slicing.estimator], a.sparsities)
    texts = Texts(stats, tokens, windows, run.training_tokens(loaded))
    with run.timed("sweep"):
        frame = sweep(loaded, texts, grid, recipe.slicing)
    protocol = replace(recipe, evaluation=evaluation).protocol()
    result = {
        "model": a.model,
        "source": loaded.source,
        "dense_perplexity": frame["dense_perplexity"].iloc[0],
        "rows": [_with_published(row) for row in records(frame)],
        "published": {name: PUBLISHED[name] for name in ("source", "model", "dense")},
        "differences": _differences(protocol, text_tokens),
        "protocol": protocol,
        "seconds": run.seconds,
    }
    return result, _text(loaded, result)


def _with_available_texts(run: Run) -> Run:
    """The run or, if WikiText-2 is not available and all options are at their defaults, the run of the small protocol.

    Raises UserError if a text is missing, before a model is loaded.
    """
    a = run.arguments
    try:
        data.read_documents(a.calibration, "calibration", a.eval)
        data.read_documents(a.eval, "evaluation", a.calibration)
    except UserError:
        if a.model != DEFAULT or any(getattr(a, name) != value for name, value in PROTOCOL.items()):
            raise
        return Run(argparse.Namespace(**vars(a) | SMALL))
    return run


def _with_published(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a sweep with the published value."""
    published = PUBLISHED["perplexity"].get(row["method"], {}).get(row["sparsity"])
    return {
        **{name: row[name] for name in ROW_KEYS},
        "times_dense": row["perplexity"] and row["perplexity"] / row["dense_perplexity"],
        "published": published,
        "published_times_dense": published and published / PUBLISHED["dense"],
    }


def _differences(protocol: Mapping[str, Any], text_tokens: int) -> list[str]:
    """Differences between a run and the paper's protocol, as phrases; the held-out text has `text_tokens` tokens."""
    text, sequences, length = (PROTOCOL[name] for name in ("eval", "sequences", "length"))
    differences = []
    if {protocol["eval"], protocol["calibration"]} != {text}:
        names = dict.fromkeys((protocol["calibration"], protocol["eval"]))
        differences.append(f"text: {'; '.join(map(data.describe, names))}, not WikiText-2")
    if protocol["window"] != length:
        differences.append(f"windows of {protocol['window']:,} tokens, not {length:,}")
    if protocol["calibration_tokens"] != sequences * length:
        count = protocol["calibration_tokens"] // protocol["window"]
        differences.append(f"calibrated on {count:,} x {protocol['window']:,} tokens, not {sequences} x {length:,}")
    if sampled := protocol.get("sampled_tokens"):
        differences.append(f"calibrated on {sampled:,} tokens sampled from the dense model as well")
    if protocol["eval_tokens"] < text_tokens // protocol["window"] * protocol["window"]:
        differences.append(f"perplexity of {protocol['eval_tokens']:,} tokens, not of all {text_tokens:,}")
    return differences


def _text(loaded: LoadedModel, result: Mapping[str, Any]) -> str:
    """The table with a row per method, and another if it is published, followed by a caption."""
    sparsities = sorted({row["sparsity"] for row in result["rows"]})
    lines = []
    for method in dict.fromkeys(row["method"] for row in result["rows"]):
        rows = {row["sparsity"]: row for row in result["rows"] if row["method"] == method}
        label = METHODS[method].label
        lines.append([f"{label}, here", f"{result['dense_perplexity']:.2f}", *(_cell(rows[s]) for s in sparsities)])
        cells = [_times(rows[s]["published"], rows[s]["published_times_dense"]) for s in sparsities]
        if any(cells):
            lines.append([f"{label}, published", f"{PUBLISHED['dense']:.2f}", *cells])
    table = markdown(["perplexity (times dense)", "dense", *(f"{sparsity:.0%}" for sparsity in sparsities)], lines)
    protocol, differences = result["protocol"], result["differences"]
    deviations = f"Not the paper's protocol: {'; '.join(differences)}." if differences else "The paper's protocol."
    notes = [f"{row['method']} at {row['sparsity']:.0%}: {row['note']}" for row in result["rows"] if row["note"]]
    caption = (
        f"Here: {loaded.source}; {protocol['eval_tokens']:,} tokens of {protocol['eval']} in windows of "
        f"{protocol['window']:,}, {protocol['calibration_tokens']:,} calibration tokens, {protocol['dtype']}. "
        f"{deviations} Published: {PUBLISHED['model']} ({PUBLISHED['source']}; cross-module is its SliceGPT). "
        "For different models, compare the ratios to dense, not the perplexities."
    )
    return "\n\n".join([table, caption, *notes])


def _cell(row: Mapping[str, Any]) -> str:
    """The measured perplexity, with the actual sparsity if it differs from the target."""
    if row["perplexity"] is None:
        return "out of reach"
    removed = row["removed_fraction"]
    actual = "" if abs(removed - row["sparsity"]) < 0.002 else f" at {removed:.1%}"
    return _times(row["perplexity"], row["times_dense"]) + actual


def _times(perplexity: float | None, times: float | None) -> str:
    return "" if perplexity is None else f"{perplexity:.2f} ({times:.2f})"
