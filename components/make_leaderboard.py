"""Measures cells of the leaderboard, `assets/leaderboard.csv`, and accuracies in tasks, `assets/tasks.csv`.

    python -m tests.texts FOLDER
    python -m components.make_leaderboard --texts FOLDER --weights Q4_1
    python -m intraslice tasks --fetch FOLDER
    python -m components.make_leaderboard --questions FOLDER --weights Q4_1

A run that was stopped continues where it was: points of sweeps and generations of searches are cached, and accuracies
that are in the file are not measured again. Cells of other models, methods, stages and sparsities stay as they are.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from filelock import FileLock

from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.cli.search import DEPTH
from intraslice.core.config import NO_RECOVERY, CalibrationConfig, SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.evaluation.sweep import LOSSES
from intraslice.evaluation.tasks import PREFIX, TasksConfig, measure_hits, require_tasks
from intraslice.methods.registry import METHODS
from intraslice.pretrained.sources import SUGGESTED_MODELS

from .state.leaderboard import DTYPE, FILE, SEARCH, STAGES, TOKENS, WIKIPEDIA, Cell, merged, read_rows, write
from .state.task_scores import DENSE, SCORES, SLICE, TASKS, Score, Slice, scored, slice_of

COMPARED = ("intraslice", "flap", "wanda", "modegpt", "flatllm", "shortgpt", "shortgpt-rescaled", "crossmodule")
SPARSITIES = (0.2, 0.3, 0.4, 0.5)
TEXTS = {"news": "lee.txt", "help": "help.txt", "source": "source.jsonl"}
LONGER = CalibrationConfig.thorough()
SEARCHED = ("intraslice", DEPTH)  # methods with a search
SEARCH_START, SEARCH_PASSES = "output-error", 100  # the estimator whose plan a search starts from, and its budget
DIGITS = 5  # significant
DOCUMENTS = {PREFIX + "hellaswag": list(range(0, 10_000, 20))}  # its questions are ordered by source; of others: all
BATCH = 32  # questions at once


def commands(
    arguments: argparse.Namespace, calibration: CalibrationConfig, commit: str
) -> tuple[list[str], list[str], dict[str, Any]]:
    """The words that commands with this calibration share, those of a sweep, and values of all cells they measure."""
    a = arguments
    sizes = {"sequences": calibration.sequences, "samples": calibration.samples}
    common = ["--model", a.model, "--order", "one-shot", "--dtype", DTYPE, "--eval-tokens", str(TOKENS)]
    common += [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    common += ["--threads", str(a.threads)] if a.threads else []
    texts = [str(a.texts / file) for file in TEXTS.values()] if a.texts else []
    sweep = ["sweep", *common, "--also-eval", *texts, "--no-speed" if a.losses_only else "--answers"]
    return common, sweep, {"model": a.name or a.model, "weights": a.weights, "commit": commit, **sizes}


def measure(arguments: argparse.Namespace, stage: str, commit: str) -> Iterator[list[Cell]]:
    """The cells of a stage, of all texts, a sparsity at a time."""
    a = arguments
    if stage == "searched":
        for method in (method for method in SEARCHED if method in a.methods):
            yield from measure_searched(a, method, commit)
        return
    _, sweep, about = commands(a, LONGER if stage == "longer calibration" else CalibrationConfig(), commit)
    recovery = ["--recover", "distill"] if stage == "recovered" else []
    sliced = ["--methods", *a.methods, "--estimators", *a.estimators]
    for sparsity in a.sparsities:
        yield list(cells(run([*sweep, "--sparsities", str(sparsity), *recovery, *sliced]), about))


def measure_searched(arguments: argparse.Namespace, method: str, commit: str) -> Iterator[list[Cell]]:
    """The cells of a method whose ratios are found by search, of all texts, a sparsity at a time.

    For `shortgpt` the search decides which modules are removed. The calibration decides where it starts, and how
    another module is narrowed until the size is right.
    """
    is_depth = method == DEPTH
    calibration = CalibrationConfig() if is_depth else LONGER
    common, sweep, about = commands(arguments, calibration, commit)
    # Dense passes are over the default calibration.
    relative = (calibration.sequences + calibration.samples) / CalibrationConfig().sequences
    for sparsity in arguments.sparsities:
        at = ["--sparsities", str(sparsity)]
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / ("ratios.csv" if is_depth else "importances.json"))
            kind = ["--depth"] if is_depth else ["--estimator", SEARCH_START]
            budget = ["--passes", str(SEARCH_PASSES / relative)]
            (plan,) = run(["search", *common, *at, *kind, *budget, "--out", file])["plans"]
            found = ["--ratios" if is_depth else "--estimators", file]
            result = run([*sweep, *at, "--methods", method, *found])
        yield list(cells(result, about | {"ratios": SEARCH, "passes": relative * plan["passes"]}))


def run(words: list[str]) -> dict[str, Any]:
    """The JSON result of a command of `python -m intraslice`."""
    arguments = parser().parse_args(words)
    result: dict[str, Any] = arguments.run(Run(arguments))[0]
    return result


def cells(result: dict[str, Any], about: dict[str, Any]) -> Iterator[Cell]:
    """A cell for every point of a sweep and text, with values `about` all; of a failed point the reason on stderr."""
    suffixes = {WIKIPEDIA: "", **{text: f" {Path(file).stem}" for text, file in TEXTS.items()}}
    for row in result["rows"]:
        perplexities = [row[f"perplexity{suffix}"] for suffix in suffixes.values()]
        if not all(value is not None and math.isfinite(value) for value in perplexities):
            reason = row["note"] or f"perplexities are {perplexities}"
            print(f"no cells of {row['method']} at {row['sparsity']}: {reason}", file=sys.stderr)
            continue
        common = {
            "parameters": int(row["dense_decoder"]),
            "method": row["method"],
            "ratios": row["estimator"] or "",
            "recovery": row.get("recovery") or NO_RECOVERY,
            "sparsity": row["sparsity"],
            "removed": row["removed_fraction"],
            "passes": row.get("recovery_training_passes") or 0.0,
            "prefill": row.get("prefill_ratio"),
            "decode": row.get("decode_ratio"),
            "loops": row.get("loops"),
            "answer_tokens": row.get("answer_tokens"),
            "date": row["date"],
        }
        for text, suffix in suffixes.items():
            losses = {name: row[f"{name}{suffix}"] for name in ("dense_perplexity", *LOSSES)}
            values = common | losses | about | {"text": text}
            yield Cell(**{name: _rounded(value) for name, value in values.items()})


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def measure_scores(arguments: argparse.Namespace, stage: str, commit: str) -> Iterator[list[Score]]:
    """The accuracies of a stage that the file lacks, a model at a time; none of ratios by search."""
    a, calibration = arguments, LONGER if stage == "longer calibration" else CalibrationConfig()
    common, _, about = commands(a, calibration, commit)
    recovery = "distill" if stage == "recovered" else NO_RECOVERY
    rows = [row for row in read_rows(Score, SCORES) if row.model == about["model"]]
    present, todo = {(slice_of(row), row.task) for row in rows}, dict[Slice, list[str]]()
    for key in slices(a, recovery, calibration):
        if missing := [task for task in a.tasks if (key, task) not in present]:
            todo[key] = missing
    if stage == "searched" or not todo:
        return
    run = Run(parser().parse_args(["tasks", *common, "--recover", recovery]))
    manager = require_tasks(TasksConfig(tuple(PREFIX + task for task in a.tasks), a.questions))
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    dense = {row.task: row for row in rows if row.method == DENSE}
    for key, missing in todo.items():
        method, ratios, *_, sparsity = key
        model, removed = loaded.model, 0.0
        if method != DENSE:
            slicing = replace(run.recipe.slicing, sparsity=sparsity, estimator=ratios or run.recipe.slicing.estimator)
            run.recipe = replace(run.recipe, slicing=slicing)
            model, plan = run.slice(loaded, stats, tokens, method)
            removed = plan.removed_fraction
        config = TasksConfig(tuple(PREFIX + task for task in missing), a.questions, batch=BATCH)
        hits = measure_hits(model, loaded.tokenizer, config, manager, DOCUMENTS)
        about |= dict(zip(SLICE, key, strict=True)) | {"removed": removed, "date": date.today().isoformat()}
        scores = [scored(hits[PREFIX + task], dense.get(task), about | {"task": task}) for task in missing]
        dense |= {score.task: score for score in scores if method == DENSE}
        yield [Score(*map(_rounded, score)) for score in scores]


def slices(arguments: argparse.Namespace, recovery: str, calibration: CalibrationConfig) -> Iterator[Slice]:
    """The dense model, and every slice, a sparsity after another."""
    yield DENSE, "", NO_RECOVERY, 0, 0, 0.0
    for sparsity in arguments.sparsities:
        for method in arguments.methods:
            for ratios in arguments.estimators if METHODS[method].uses_estimator else [""]:
                yield method, ratios, recovery, calibration.sequences, calibration.samples, sparsity


def main(argv: list[str] | None = None) -> None:
    """Measure the stages one after another, and write the file after each sparsity."""
    options = argparse.ArgumentParser(
        prog="python -m components.make_leaderboard",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    kind = options.add_mutually_exclusive_group(required=True)
    kind.add_argument("--texts", type=Path, metavar="FOLDER", help="folder with the texts")
    kind.add_argument("--questions", type=Path, metavar="FOLDER", help="folder of `tasks --fetch`: measure accuracies")
    add("--tasks", nargs="+", default=TASKS, choices=TASKS, help="with --questions")
    add("--model", default="default", help="as for python -m intraslice")
    add("--name", help="the model's name in the page's list, if it is not that of --model")
    add("--weights", required=True, help="type of the weights, such as Q4_1 or bfloat16")
    add("--stages", nargs="+", default=STAGES, choices=STAGES)
    add("--methods", nargs="+", default=COMPARED, choices=list(METHODS))
    about = "of intraslice, but for searches"
    add("--estimators", nargs="+", default=[SliceConfig().estimator], choices=list(ESTIMATORS), help=about)
    add("--sparsities", nargs="+", type=float, default=SPARSITIES)
    add("--threads", type=int, help="number of CPU threads (default: PyTorch's)")
    add("--losses-only", action="store_true", help="measure no answers, and no speed, which needs an idle machine")
    arguments = options.parse_args(argv)
    if (name := arguments.name or arguments.model) not in SUGGESTED_MODELS:
        options.error(f"--name must be one of the page's models ({', '.join(SUGGESTED_MODELS)}), got {name}")
    if arguments.texts and (missing := [file for file in TEXTS.values() if not (arguments.texts / file).is_file()]):
        options.error(f"{arguments.texts} lacks {', '.join(missing)}; run `python -m tests.texts {arguments.texts}`")
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    measure_stage: Callable[..., Iterator[list[Any]]] = measure if arguments.texts else measure_scores
    for stage in arguments.stages:
        try:
            for measured in measure_stage(arguments, stage, commit):
                with FileLock(Path(tempfile.gettempdir()) / "intraslice-leaderboard.lock"):  # of another run
                    if arguments.texts:
                        write(merged(read_rows(Cell, FILE), tuple(measured)), FILE)
                    else:
                        write(sorted((*read_rows(Score, SCORES), *measured)), SCORES)
                print(f"{stage}: {len(measured)} rows written", flush=True)
        except (UserError, NumericalError) as error:
            sys.exit(f"python -m components.make_leaderboard: {error}")


if __name__ == "__main__":
    main()
