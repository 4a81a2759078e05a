"""The commands sweep, tasks and paper, which compare methods. Each returns its JSON object and its text."""

import argparse
from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from importlib.metadata import version
from typing import Any

import pandas
from pandas.api.types import is_numeric_dtype

from intraslice import token_windows
from intraslice.cli.analyses import markdown
from intraslice.cli.run import CommandResult, Run, require_writable
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.core.errors import UserError
from intraslice.evaluation.answers import AnswerStatistics, tokens_of_prompts
from intraslice.evaluation.perplexity import DenseStates
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.evaluation.tasks import TasksConfig, fetch_tasks, measure_tasks, require_tasks
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.pretrained.memory import require_calibration_memory
from intraslice.pretrained.sources import DEFAULT
from intraslice.records import Recipe, checkpoint_record, records

_SHOWN = ["method", "estimator", "recovery", "sparsity", "quantise", "removed_fraction", "sliced_total", "bytes"]
_SHOWN += ["perplexity", "perplexity_sd", "divergence", "divergence_sd", "recovery_training_passes"]
_SHOWN += [*AnswerStatistics._fields, "facts_says", "facts_selects", "facts_of"]
_SHOWN += ["prefill_ratio", "decode_ratio", "note"]
_OF_FILES = ("quantise", "bytes")
_POINT = ("method", "estimator", "recovery", "sparsity", "quantise")  # columns that name a point
ALL_TOKENS = 2**31 - 1  # all tokens of the text
TEXTS = {"calibration": "wikitext2", "eval": "wikitext2"}
PROTOCOL: dict[str, Any] = TEXTS | {"sequences": 128, "length": 2048, "eval_tokens": ALL_TOKENS}
# The settings of the paper.
PAPER = Recipe(
    DEFAULT,
    METHODS["paper"].configured(SliceConfig()),
    CalibrationConfig(TEXTS["calibration"], sequences=128, length=2048, targets="text"),
    EvaluationConfig(TEXTS["eval"], ALL_TOKENS, window=2048),
    method="paper",
)
NOT_COMPARED = ("sparsity", "seed")
# The protocol for the default model if WikiText-2 is not available: that of the README's tables. Takes minutes.
SMALL = {"calibration": "default", "eval": "default", "sequences": 32, "length": 512, "eval_tokens": 8192}
# By method and sparsity. Other cells are not published in the paper.
PUBLISHED: dict[str, Any] = {
    "source": "arXiv 2602.01975",
    "model": "Llama-2-7B",
    "dense": 5.47,
    "perplexity": {"crossmodule": {0.3: 8.64}, "paper": {0.3: 7.11}},
}

# Of a sweep's point.
ROW_KEYS = ("method", "estimator", "sparsity", "removed_fraction", "perplexity", "divergence", "note")


def sweep_(run: Run) -> CommandResult:
    """Perplexity, size and speed for all combinations of methods, estimators, sparsities and GGUF types."""
    a = run.arguments
    if a.csv is not None:
        require_writable(a.csv)
    speed = None if a.no_speed else SpeedConfig(prompt=a.prompt_tokens)
    recipe = run.recipe
    seeds = dict.fromkeys(a.seeds) or [recipe.calibration.seed]
    recipes = [replace(recipe, calibration=replace(recipe.calibration, seed=seed)) for seed in seeds]
    for sparsity in a.sparsities:
        replace(recipe.slicing, sparsity=sparsity)  # validates it before any work
    loaded = run.load_dense()
    windows, others = run.windows(loaded), run.other_windows(loaded)
    prompts = tokens_of_prompts(loaded.tokenizer, a.answers)
    grid, states = points(a.methods, a.estimators, a.sparsities, a.quantise), DenseStates(loaded.model)

    def sweep_by(seeded: Recipe) -> pandas.DataFrame:
        run.recipe = seeded
        stats, tokens = run.calibrate(loaded)
        facts = a.facts or ""
        sweep_texts = Texts(stats, tokens, windows, run.training_tokens(loaded), others, prompts, facts)
        with run.timed("sweep"):
            frame = sweep(loaded, sweep_texts, grid, recipe.slicing, speed, states)
        return frame.assign(seed=seeded.calibration.seed) if a.seeds else frame

    frame = pandas.concat(map(sweep_by, recipes), ignore_index=True)  # one calibration in memory at a time
    run.recipe = recipe
    if a.csv is not None and run.is_first:
        frame.to_csv(a.csv, index=False)
    protocol = recipe.protocol() | ({"seed": list(dict.fromkeys(a.seeds))} if a.seeds else {})
    result = {"model": a.model, "rows": records(frame), "protocol": protocol, "seconds": run.seconds}
    table = _mean_over_seeds(frame) if a.seeds else frame
    shown = _SHOWN if any(point.quantise != "none" for point in grid) else [c for c in _SHOWN if c not in _OF_FILES]
    columns = [*shown, *(f"{column} {name}" for name in others for column in ("perplexity", "divergence"))]
    return result, _fixed(table[[column for column in columns if column in table]])


def _mean_over_seeds(frame: pandas.DataFrame) -> pandas.DataFrame:
    """One row per point: means over its seeds, standard deviations (sd), and the first of what is no number."""
    frame = frame.assign(note=frame["note"].where(frame["note"] != ""))  # so that "first" passes over empty notes
    points = frame.groupby([name for name in _POINT if name in frame], sort=False, dropna=False)
    kinds = {name: "mean" if is_numeric_dtype(frame[name]) else "first" for name in frame if name not in _POINT}
    spread = points[["perplexity", "divergence"]].std().add_suffix("_sd")
    return points.agg(kinds).join(spread).reset_index()


def _fixed(frame: pandas.DataFrame) -> str:
    digits = {"removed_fraction": 4, "perplexity": 3, "divergence": 4, "prefill_ratio": 2, "decode_ratio": 2}
    digits |= {"perplexity_sd": 3, "divergence_sd": 4}
    rounded = {column: digits[kind] for column in frame if (kind := column.partition(" ")[0]) in digits}
    return frame.round(rounded).to_string(index=False, na_rep="")


def tasks(run: Run) -> CommandResult:
    """Lm-eval task scores of the dense and the sliced models, or of a sliced checkpoint only; or fetches tasks."""
    a = run.arguments
    if a.fetch is not None:
        licences = fetch_tasks(a.fetch)
        lines = "\n".join(f"{task} ({licence})" for task, licence in licences.items())
        return {"include_path": str(a.fetch), "licences": licences}, lines
    config = TasksConfig(tuple(dict.fromkeys(a.tasks)), a.include_path, a.limit, a.num_fewshot, a.batch_size)
    manager = require_tasks(config)
    loaded = run.load_any()
    if loaded.record is not None:
        models, removed = {"sliced": loaded.model}, {"sliced": loaded.record.get("removed_fraction")}
        protocol = checkpoint_record(loaded, run.recipe)["protocol"]
    else:
        models, removed, protocol = {"dense": loaded.model}, {}, run.recipe.protocol()
        stats, tokens = run.calibrate(loaded)
        for method in dict.fromkeys(a.methods):
            models[method], plan = run.slice(loaded, stats, tokens, method)
            removed[method] = plan.removed_fraction
    with run.timed("tasks"):
        frame = measure_tasks(models, loaded.tokenizer, config, manager)
    harness = {"lm_eval": version("lm-eval"), "limit": a.limit, "num_fewshot": a.num_fewshot}
    result = {"model": a.model, "rows": records(frame), "removed_fraction": removed}
    return result | {"protocol": protocol | harness, "seconds": run.seconds}, _task_table(frame)


def _task_table(frame: pandas.DataFrame) -> str:
    """A table with a line for each metric of each task, and a column for each model."""
    errors = frame["standard_error"].map(lambda error: "" if pandas.isna(error) else f" ± {error:.4f}")
    frame = frame.assign(score=frame["value"].map("{:.4f}".format) + errors)
    table = frame.pivot_table("score", ["task", "metric"], "model", aggfunc="first", sort=False)
    return table.reset_index().to_string(index=False, na_rep="")


def paper(run: Run) -> CommandResult:
    """The table of the IntraSlice paper (arXiv 2602.01975), measured here, next to the published numbers."""
    run = _with_available_texts(run)
    a, recipe = run.arguments, run.recipe
    for sparsity in a.sparsities:
        replace(recipe.slicing, sparsity=sparsity)  # validates it before any work
    loaded = run.load_dense()
    if a.device_map is None:
        sizes = recipe.calibration.sequences, recipe.calibration.length
        require_calibration_memory(loaded.model.config, *sizes, loaded.model.dtype, run.device)
    text_tokens = token_windows.count_evaluation_tokens(loaded.tokenizer, a.eval, a.calibration)
    evaluation = replace(recipe.evaluation, tokens=max(a.length, min(a.eval_tokens, text_tokens)))
    windows = token_windows.evaluation_tokens(loaded.tokenizer, evaluation, a.calibration)
    stats, tokens = run.calibrate(loaded)
    grid = points(a.methods, [recipe.slicing.estimator], a.sparsities)
    sweep_texts = Texts(stats, tokens, windows, run.training_tokens(loaded))
    with run.timed("sweep"):
        frame = sweep(loaded, sweep_texts, grid, recipe.slicing)
    protocol = replace(recipe, evaluation=evaluation).protocol()
    result = {
        "model": a.model,
        "source": loaded.source,
        "dense_perplexity": frame["dense_perplexity"].iloc[0],
        "rows": [_with_published(row) for row in records(frame)],
        "published": {name: PUBLISHED[name] for name in ("source", "model", "dense")},
        "differences": differences(replace(recipe, evaluation=evaluation), text_tokens),
        "protocol": protocol,
        "seconds": run.seconds,
    }
    return result, _paper_text(loaded, result)


def _with_available_texts(run: Run) -> Run:
    """The run, or that of the small protocol if WikiText-2 is missing and all options are at their defaults."""
    a = run.arguments
    try:
        token_windows.read_documents(a.calibration, "calibration", a.eval)
        token_windows.read_documents(a.eval, "evaluation", a.calibration)
    except UserError:
        if a.model != DEFAULT or any(getattr(a, name) != value for name, value in PROTOCOL.items()):
            raise
        return Run(argparse.Namespace(**vars(a) | SMALL | {"explicit": []}))
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


def differences(recipe: Recipe, text_tokens: int) -> list[str]:
    """Return every setting in which method `paper` with `recipe` differs from `PAPER`, such as "length: 512, not 2048".

    The held-out text has `text_tokens` tokens, of which the paper evaluates all. Not compared are the model, its
    precision, the sparsity and the seed.
    """
    method = METHODS[PAPER.method]
    run = replace(
        recipe,
        slicing=method.configured(recipe.slicing),
        calibration=replace(recipe.calibration, targets=method.targets or recipe.calibration.targets),
    )
    window = run.evaluation.window
    is_whole = run.evaluation.tokens >= text_tokens // window * window
    skipped = (*NOT_COMPARED, "tokens") if is_whole else NOT_COMPARED
    evaluation = replace(PAPER.evaluation, tokens=max(text_tokens, PAPER.evaluation.window))
    found = []
    for part, expected in (
        ("slicing", PAPER.slicing),
        ("calibration", PAPER.calibration),
        ("evaluation", evaluation),
    ):
        theirs, ours = _settings(expected), _settings(getattr(run, part))
        found += [
            f"{part} {name}: {ours[name]}, not {value}"
            for name, value in theirs.items()
            if ours[name] != value and name not in skipped
        ]
    return found


def _settings(config: Any) -> dict[str, Any]:
    """Return the fields of a config and of the configs inside it, by name; texts by the names that are shown."""
    settings: dict[str, Any] = {}
    for name, value in vars(config).items():
        if is_dataclass(value):
            settings |= {f"{name}.{inner}": setting for inner, setting in _settings(value).items()}
        else:
            settings[name] = token_windows.display_name(value) if name == "text" else value
    return settings


def _paper_text(loaded: LoadedModel, result: Mapping[str, Any]) -> str:
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
    protocol, differing = result["protocol"], result["differences"]
    deviations = f"Settings that differ from the paper's: {'; '.join(differing) or 'none'}."
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
