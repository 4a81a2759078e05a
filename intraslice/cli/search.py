"""The command `search`: better ratios by measurement, as importances for `--estimator FILE.json`.

With `--depth`: modules to remove as a whole, as ratios for `--method shortgpt --ratios FILE.csv`.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

from intraslice.calibration.stats import CalibrationStats
from intraslice.cli.run import CommandResult, Run, require_writable
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.pipeline import WINDOWS_PER_SEQUENCE
from intraslice.search import ratio_search
from intraslice.search.evolution import COMPARED, SearchConfig, whole_layers
from intraslice.search.ratio_search import SearchResult, search_ratios
from intraslice.untrusted.layer_files import importances_json, ratios_csv

DEPTH = "shortgpt"  # the method that removes modules as a whole
Found = tuple[list[SearchResult], str, str]  # with the file's text, and a sentence on its use


def search(run: Run) -> CommandResult:
    """Search for better ratios by measuring KL, and save them as importances that reproduce the ratios."""
    a, slicing = run.arguments, run.recipe.slicing
    suffix = ".csv" if a.depth else ".json"
    if a.out.suffix != suffix or not a.out.parent.is_dir():
        raise UserError(f"--out must be a {suffix} file in an existing folder, got {a.out}")
    config = SearchConfig(a.passes, windows=a.windows, seed=a.seed)
    configs = [replace(slicing, sparsity=sparsity) for sparsity in dict.fromkeys(a.sparsities)]
    if a.depth:
        if len(configs) != 1:
            raise UserError(f"--depth requires one sparsity, such as --sparsities 0.3, got {len(configs)}")
        ratio_search.require_unlocked(configs[0])
        run.warn_of_unused("--depth", METHODS[DEPTH].unused)
    else:
        for each in configs:
            run.require_searchable(each, config)
    require_writable(a.out)
    loaded = run.load_dense()
    ratio_search.require_in_memory(loaded)
    stats, _ = run.calibrate(loaded)
    results, text, written = (_modules if a.depth else _ratios)(run, loaded, stats, configs, config)
    a.out.write_text(text, encoding="utf-8")
    lines = [
        f"{result.sparsity:.0%} removed: KL {result.before:.4f} -> {result.after:.4f} nats per token, "
        f"{result.accepted} of {len(result.changes)} generations accepted, {result.passes:.0f} dense passes"
        for result in results
    ]
    plans = [
        asdict(result) | {"ratios": _by_layer(result), "stayed": result.accepted}
        for result in sorted(results, key=lambda result: result.sparsity)
    ]
    output = {"plans": plans, "file": str(a.out), "protocol": run.recipe.protocol(), "seconds": run.seconds}
    return output, "\n".join([*lines, written])


def _ratios(
    run: Run, loaded: LoadedModel, stats: CalibrationStats, configs: Sequence[SliceConfig], config: SearchConfig
) -> Found:
    """Importances that reproduce the ratios found at each sparsity."""
    results: list[SearchResult] = []
    with run.timed("search"):
        windows = run.search_windows(loaded)
        for each in configs:
            results.append(search_ratios(loaded, stats, windows, each, results, config, progress=run.progress))
    importances = ratio_search.searched_importances(stats.profile, results, run.recipe.slicing.estimator)
    out = run.arguments.out
    return results, importances_json(importances), f"wrote the importances to {out}, for --estimator {out}"


def _modules(
    run: Run, loaded: LoadedModel, stats: CalibrationStats, configs: Sequence[SliceConfig], config: SearchConfig
) -> Found:
    """Which modules are removed and which kept. The method narrows those that are neither, until the size is right."""
    (each,) = configs
    # What is refused is refused before the text is sampled.
    ratio_search.groups_of(WINDOWS_PER_SEQUENCE * run.recipe.calibration.sequences, config, COMPARED)
    whole_layers(stats.sizes, each.sparsity)
    with run.timed("search"):
        windows = run.search_windows(loaded)
        result = ratio_search.search_depth(loaded, stats, windows, each.sparsity, config, progress=run.progress)
    whole = [[ratio if ratio in (0, 1) else None for ratio in pair] for pair in _by_layer(result)]
    out = run.arguments.out
    use = f"--method {DEPTH} --sparsity {each.sparsity:g} --ratios {out}"
    return [result], ratios_csv(whole), f"wrote the modules to {out}, for {use}"


def _by_layer(result: SearchResult) -> list[tuple[float, float]]:
    layers = range(len(result.ratios) // 2)
    return [(result.ratios[layer, "attention"], result.ratios[layer, "mlp"]) for layer in layers]
