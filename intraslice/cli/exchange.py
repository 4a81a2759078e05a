"""The command `exchange`: searches better ratios by measurement, and writes importances for `--estimator FILE.json`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from intraslice.cli.run import CommandResult, Run
from intraslice.core.config import GRADIENT_GROUP
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.diagnostics.ratio_search import SWAPS, SearchResult, Trials, search_ratios
from intraslice.distributed.sharing import is_main_process
from intraslice.planning.measured import importances_along
from intraslice.untrusted.importance_files import importances_json


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="FILE.json", help="importances, for --estimator")
    explanation = "sparsities to search at, each from the result of the previous one; ratios between are interpolated"
    add("--sparsities", nargs="+", type=float, default=[0.2, 0.3, 0.4, 0.5], metavar="F", help=explanation)
    add("--exchanges", type=int, default=SWAPS, metavar="N", help="swaps to try at each sparsity")
    add("--windows", type=int, default=4, metavar="N", help="calibration sequences to measure KL on")


def exchange(run: Run) -> CommandResult:
    """Swap parameters between modules while KL decreases, and write importances that reproduce the found ratios."""
    a, slicing = run.arguments, run.recipe.slicing
    if a.out.suffix != ".json" or not a.out.parent.is_dir():
        raise UserError(f"--out must be a .json file in an existing folder, got {a.out}")
    if not 2 <= a.windows <= a.sequences:
        raise UserError(f"--windows must be between 2 and {a.sequences} (--sequences), got {a.windows}")
    if a.exchanges < 1:
        raise UserError(f"--exchanges must be 1 or more, got {a.exchanges}")
    configs = [replace(slicing, sparsity=sparsity) for sparsity in sorted(set(a.sparsities))]
    has_default_units = (slicing.head_fraction, slicing.gradient_group) == (None, GRADIENT_GROUP)
    if ESTIMATORS[slicing.estimator].importance is None or not has_default_units:
        raise UserError(
            f"the search needs initial importances, got --estimator {slicing.estimator}; expected one with "
            "importances, and no --head-fraction or --gradient-group"
        )
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    results: list[SearchResult] = []
    for config in configs:
        with run.timed("exchange"):
            trials = Trials(a.exchanges, a.seed)
            results.append(search_ratios(loaded, stats, tokens[: a.windows], config, results[-1:], trials))
    ratios_by_sparsity = [(result.sparsity, result.ratios) for result in results]
    importances = importances_along(stats.profile, ratios_by_sparsity, slicing.estimator)
    if is_main_process():
        a.out.write_text(importances_json(importances), encoding="utf-8")
    lines = [
        f"{result.sparsity:.0%} removed: KL {result.before:.4f} -> {result.after:.4f} nats per token, "
        f"{result.stayed} of {a.exchanges} swaps accepted"
        for result in results
    ]
    lines.append(f"wrote the importances to {a.out}, for --estimator {a.out}")
    layers = range(len(stats.layers))
    plans = [
        asdict(result) | {"ratios": [(result.ratios[n, "attention"], result.ratios[n, "mlp"]) for n in layers]}
        for result in results
    ]
    output = {"plans": plans, "file": str(a.out), "protocol": run.recipe.protocol(), "seconds": run.seconds}
    return output, "\n".join(lines)
