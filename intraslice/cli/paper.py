"""The command that repeats the paper's measurement: paper. Returns its JSON object and its text, as Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from intraslice import data
from intraslice.cli.benchmark import markdown
from intraslice.cli.run import Answer, Run
from intraslice.core.errors import UserError
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.loading import DEFAULT, LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.pretrained.memory import require_calibration_memory
from intraslice.reporting import records

WHOLE = 2**31 - 1  # tokens: however many the text has
PROTOCOL: dict[str, Any] = {
    "calibration": "wikitext2",
    "eval": "wikitext2",
    "sequences": 128,
    "length": 2048,
    "eval_tokens": WHOLE,
}
# Where WikiText-2 cannot be had, of the default model: what the README's tables are measured on, in minutes.
SMALL = {"calibration": "default", "eval": "default", "sequences": 32, "length": 512, "eval_tokens": 8192}
# By method and sparsity; a cell that is not here is one that we have not seen in the paper.
PUBLISHED: dict[str, Any] = {
    "source": "arXiv 2602.01975",
    "model": "Llama-2-7B",
    "dense": 5.47,
    "perplexity": {"crossmodule": {0.3: 8.64}, "intraslice": {0.3: 7.11}},
}

KEPT = ("method", "estimator", "sparsity", "removed_fraction", "perplexity", "divergence", "note")  # of a sweep's point


def add_options(command: argparse.ArgumentParser) -> None:
    """What only this command takes, and the paper's protocol in place of the usual one."""
    add = command.add_argument
    add("--methods", nargs="+", default=["crossmodule", "flap", "intraslice"], choices=METHODS, help="the table's rows")
    add("--sparsities", nargs="+", type=float, default=[0.2, 0.3, 0.4], metavar="F", help="its columns")
    command.set_defaults(**PROTOCOL)


def paper(run: Run) -> Answer:
    """Perplexities of sliced models by the paper's protocol, beside those that the paper has for its own model."""
    run = _with_text(run)
    a, recipe = run.arguments, run.recipe
    for sparsity in a.sparsities:
        replace(recipe.slicing, sparsity=sparsity)  # refused before any work
    loaded = run.load_dense()
    if a.device_map is None:
        sizes = recipe.calibration.sequences, recipe.calibration.length
        require_calibration_memory(loaded.model.config, *sizes, loaded.model.dtype, run.device)
    there = data.count_evaluation_tokens(loaded.tokenizer, a.eval, a.calibration)
    evaluation = replace(recipe.evaluation, tokens=max(a.length, min(a.eval_tokens, there)))
    windows = data.evaluation_tokens(loaded.tokenizer, evaluation, a.calibration)
    stats, tokens = run.calibrate(loaded)
    wanted = points(a.methods, [recipe.slicing.estimator], a.sparsities)
    texts = Texts(stats, tokens, windows, run.training_tokens(loaded))
    with run.timed("sweep"):
        frame = sweep(loaded, texts, wanted, recipe.slicing)
    protocol = replace(recipe, evaluation=evaluation).protocol()
    result = {
        "model": a.model,
        "source": loaded.source,
        "dense_perplexity": frame["dense_perplexity"].iloc[0],
        "rows": [_beside(row) for row in records(frame)],
        "published": {name: PUBLISHED[name] for name in ("source", "model", "dense")},
        "differences": _differences(protocol, there),
        "protocol": protocol,
        "seconds": run.seconds,
    }
    return result, _text(loaded, result)


def _with_text(run: Run) -> Run:
    """The run, or the small one of the default model where WikiText-2 cannot be had and nothing else was asked for.

    Raises UserError where a text is missing, before a model is loaded.
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


def _beside(row: Mapping[str, Any]) -> dict[str, Any]:
    """A sweep's point with what the paper has for its model."""
    published = PUBLISHED["perplexity"].get(row["method"], {}).get(row["sparsity"])
    return {
        **{name: row[name] for name in KEPT},
        "times_dense": row["perplexity"] and row["perplexity"] / row["dense_perplexity"],
        "published": published,
        "published_times_dense": published and published / PUBLISHED["dense"],
    }


def _differences(protocol: Mapping[str, Any], there: int) -> list[str]:
    """In which ways a run is not by the paper's protocol, in words; `there` are the tokens of the evaluation's text."""
    text, sequences, length = (PROTOCOL[name] for name in ("eval", "sequences", "length"))
    found = []
    if {protocol["eval"], protocol["calibration"]} != {text}:
        names = dict.fromkeys((protocol["calibration"], protocol["eval"]))
        found.append(f"text: {'; '.join(map(data.describe, names))}, not WikiText-2")
    if protocol["window"] != length:
        found.append(f"windows of {protocol['window']:,} tokens, not {length:,}")
    if protocol["calibration_tokens"] != sequences * length:
        count = protocol["calibration_tokens"] // protocol["window"]
        found.append(f"calibrated on {count:,} x {protocol['window']:,} tokens, not {sequences} x {length:,}")
    if protocol["eval_tokens"] < there // protocol["window"] * protocol["window"]:
        found.append(f"perplexity of {protocol['eval_tokens']:,} tokens, not of all {there:,}")
    return found


def _text(loaded: LoadedModel, result: Mapping[str, Any]) -> str:
    """The table, two rows a method where the paper has it, and what its numbers are."""
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
    verdict = f"Not the paper's protocol: {'; '.join(differences)}." if differences else "The paper's protocol."
    missed = [f"{row['method']} at {row['sparsity']:.0%}: {row['note']}" for row in result["rows"] if row["note"]]
    caption = (
        f"Here: {loaded.source}; {protocol['eval_tokens']:,} tokens of {protocol['eval']} in windows of "
        f"{protocol['window']:,}, {protocol['calibration_tokens']:,} calibration tokens, {protocol['dtype']}. "
        f"{verdict} Published: {PUBLISHED['model']} ({PUBLISHED['source']}; cross-module is its SliceGPT). "
        "Between unlike models compare the times dense, not the perplexities."
    )
    return "\n\n".join([table, caption, *missed])


def _cell(row: Mapping[str, Any]) -> str:
    """What was measured, and how much was really removed where that is not what was asked."""
    if row["perplexity"] is None:
        return "out of reach"
    removed = row["removed_fraction"]
    share = "" if abs(removed - row["sparsity"]) < 0.002 else f" at {removed:.1%}"
    return _times(row["perplexity"], row["times_dense"]) + share


def _times(perplexity: float | None, times: float | None) -> str:
    return "" if perplexity is None else f"{perplexity:.2f} ({times:.2f})"
