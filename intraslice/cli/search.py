"""The command `search` (also `exchange`): better ratios by measurement, as importances for `--estimator FILE.json`.

With `--depth`: modules to remove as a whole, as ratios for `--method shortgpt --ratios FILE.csv`.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from intraslice.calibration.stats import CalibrationStats
from intraslice.cli.run import CommandResult, Run, require_writable
from intraslice.core.checks import integer
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import SearchResult, require_in_memory, require_unlocked, searched_importances
from intraslice.untrusted.layer_files import importances_json, ratios_csv

log = logging.getLogger(__name__)
DEPTH = "shortgpt"  # the method that removes modules as a whole
Found = tuple[list[SearchResult], str, str]  # with the file's text, and a sentence on its use


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    add = command.add_argument
    add(
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help=".json file to write the importances to, for --estimator; with --depth a .csv file, for --ratios",
    )
    explanation = "search for modules to remove as a whole instead of ratios (depth pruning), at one sparsity"
    add("--depth", action="store_true", help=explanation)
    explanation = (
        "sparsities to search at, in this order; each search constrains every ratio to lie between those found at the "
        "nearest smaller and larger sparsity; at other sparsities ratios are interpolated"
    )
    add("--sparsities", nargs="+", type=float, default=[0.3, 0.2, 0.4, 0.5], metavar="F", help=explanation)
    add("--exchanges", type=int, metavar="N", help="number of candidates to measure, instead of --passes")
    explanation = "number of windows of --length tokens that candidates are first compared on"
    add("--windows", type=int, default=SearchConfig().windows, metavar="N", help=explanation)


def search(run: Run) -> CommandResult:
    """Move parameters between modules while KL decreases, and write importances that reproduce the found ratios.

    With `--depth`, exchange whole modules, and write which are removed.
    """
    a, slicing = run.arguments, run.recipe.slicing
    suffix = ".csv" if a.depth else ".json"
    if a.out.suffix != suffix or not a.out.parent.is_dir():
        raise UserError(f"--out must be a {suffix} file in an existing folder, got {a.out}")
    config = SearchConfig(a.passes, windows=a.windows, seed=a.seed)
    if a.exchanges is not None:
        integer("--exchanges", a.exchanges, 1)
        config = replace(config, passes=a.exchanges * config.windows / a.sequences)
    configs = [replace(slicing, sparsity=sparsity) for sparsity in dict.fromkeys(a.sparsities)]
    if a.depth:
        _require_depth(configs)
    else:
        for each in configs:
            run.require_searchable(each, config)
    require_writable(a.out)
    loaded = run.load_dense()
    require_in_memory(loaded)
    stats, _ = run.calibrate(loaded)
    results, text, written = (_modules if a.depth else _ratios)(run, loaded, stats, configs, config)
    a.out.write_text(text, encoding="utf-8")
    lines = [
        f"{result.sparsity:.0%} removed: KL {result.before:.4f} -> {result.after:.4f} nats per token, "
        f"{result.accepted} of {len(result.changes)} generations accepted, {result.passes:.0f} dense passes"
        for result in results
    ]
    lines.append(written)
    plans = [
        {
            "sparsity": result.sparsity,
            "ratios": _by_layer(result),
            "before": result.before,
            "after": result.after,
            "stayed": result.accepted,
            "passes": result.passes,
            "changes": result.changes,
        }
        for result in sorted(results, key=lambda result: result.sparsity)
    ]
    output = {"plans": plans, "file": str(a.out), "protocol": run.recipe.protocol(), "seconds": run.seconds}
    return output, "\n".join(lines)


def _require_depth(configs: Sequence[SliceConfig]) -> None:
    """Raise UserError for settings that a search for whole modules cannot have; warn of those that it does not use."""
    if len(configs) != 1:
        raise UserError(f"--depth requires one sparsity, such as --sparsities 0.3, got {len(configs)}")
    require_unlocked(configs[0])
    if ignored := METHODS.require(DEPTH).ignored(configs[0]):
        log.warning("--depth does not use %s; ignored", ", ".join(ignored))


def _ratios(
    run: Run, loaded: LoadedModel, stats: CalibrationStats, configs: Sequence[SliceConfig], config: SearchConfig
) -> Found:
    """Importances that reproduce the ratios found at each sparsity."""
    results: list[SearchResult] = []
    for each in configs:
        results.append(run.search(loaded, stats, each, results, config))
    importances = searched_importances(stats.profile, results, run.recipe.slicing.estimator)
    out = run.arguments.out
    return results, importances_json(importances), f"wrote the importances to {out}, for --estimator {out}"


def _modules(
    run: Run, loaded: LoadedModel, stats: CalibrationStats, configs: Sequence[SliceConfig], config: SearchConfig
) -> Found:
    """Which modules are removed and which kept. The method narrows those that are neither, until the size is right."""
    (each,) = configs
    result = run.search_depth(loaded, stats, each.sparsity, config)
    whole = [(_if_whole(attention), _if_whole(mlp)) for attention, mlp in _by_layer(result)]
    out = run.arguments.out
    use = f"--method {DEPTH} --sparsity {each.sparsity:g} --ratios {out}"
    return [result], ratios_csv(whole), f"wrote the modules to {out}, for {use}"


def _if_whole(ratio: float) -> float | None:
    return ratio if ratio in (0, 1) else None


def _by_layer(result: SearchResult) -> list[tuple[float, float]]:
    layers = range(len(result.ratios) // 2)
    return [(result.ratios[layer, "attention"], result.ratios[layer, "mlp"]) for layer in layers]
