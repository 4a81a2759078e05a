"""Measures rows of the zero-shot accuracies, `assets/tasks.csv`, with lm-eval.

    python -m intraslice tasks --fetch FOLDER
    python -m components.make_tasks --include-path FOLDER --weights Q4_1

The dense model comes first. The file is written after each model; rows that it has are not measured again, so a run
that was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from filelock import FileLock

from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.config import NO_RECOVERY, CalibrationConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.evaluation.question_sets import PREFIX
from intraslice.evaluation.tasks import TasksConfig, measure_hits, require_tasks
from intraslice.methods.registry import METHODS

from .make_leaderboard import CALIBRATIONS, LOCK, parsed, rounded, shared_options, shared_words
from .state.leaderboard import STAGES, read_rows, write
from .state.task_scores import DENSE, FILE, SLICE, TASKS, Score, Slice, difference, packed, with_error

DOCUMENTS = {"hellaswag": range(0, 10_000, 20)}  # 500 of its questions, which are ordered by source; else all
FREE, LONGER, _, RECOVERED = STAGES
BATCH = 32


def measure(arguments: argparse.Namespace, stage: str, commit: str) -> Iterator[list[Score]]:
    """The rows of a stage that the file lacks, a model at a time; the caller writes them before the next."""
    a, calibration = arguments, CALIBRATIONS.get(stage, CalibrationConfig())
    recovery = "distill" if stage == RECOVERED else NO_RECOVERY
    todo: dict[Slice, list[str]] = {}
    for key in slices(a, recovery, calibration):
        present = {row.task for row in read_rows(Score, FILE) if (row.model, row.slice) == (a.name, key)}
        if missing := [task for task in a.tasks if task not in present]:
            todo[key] = missing
    if not todo:
        return
    words, about = shared_words(a, calibration, commit)
    run = Run(parser().parse_args(["tasks", *words, "--recover", recovery]))
    manager = require_tasks(TasksConfig(tuple(PREFIX + task for task in a.tasks), a.include_path))
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    for key, missing in todo.items():
        method, ratios, *_, sparsity = key
        model, removed = loaded.model, 0.0
        if method != DENSE:
            slicing = replace(run.recipe.slicing, sparsity=sparsity)
            run.recipe = replace(run.recipe, slicing=replace(slicing, estimator=ratios) if ratios else slicing)
            model, plan = run.slice(loaded, stats, tokens, method)
            removed = plan.removed_fraction
        config = TasksConfig(tuple(PREFIX + task for task in missing), a.include_path, batch=BATCH)
        documents = {PREFIX + task: list(chosen) for task, chosen in DOCUMENTS.items()}
        hits = measure_hits(model, loaded.tokenizer, config, manager, documents)
        yield [row_of(key, task, hits[PREFIX + task], about | {"removed": removed}) for task in missing]


def slices(arguments: argparse.Namespace, recovery: str, calibration: CalibrationConfig) -> Iterator[Slice]:
    """The dense model, and every slice at one sparsity after another."""
    yield DENSE, "", NO_RECOVERY, 0, 0, 0.0
    for sparsity in arguments.sparsities:
        for method in arguments.methods:
            for ratios in arguments.estimators if METHODS[method].uses_estimator else [""]:
                yield method, ratios, recovery, calibration.sequences, calibration.samples, sparsity


def row_of(key: Slice, task: str, hits: dict[str, list[bool]], about: dict[str, Any]) -> Score:
    """The row of a model in a task, from its hits by metric."""
    accuracy, error = with_error(numpy.array(hits["acc"], float))
    normalised = with_error(numpy.array(hits["acc_norm"], float)) if "acc_norm" in hits else (None, None)
    values = (
        about
        | dict(zip(SLICE, key, strict=True))
        | {
            "task": task,
            "questions": len(hits["acc"]),
            "accuracy": accuracy,
            "accuracy_error": error,
            "normalised": normalised[0],
            "normalised_error": normalised[1],
            "difference": 0.0,
            "difference_error": 0.0,
            "hits": packed(hits["acc"]),
            "normalised_hits": packed(hits["acc_norm"]) if "acc_norm" in hits else "",
            "date": datetime.date.today().isoformat(),
        }
    )
    row = Score(**values)
    for dense in read_rows(Score, FILE):
        if (dense.model, dense.method, dense.task) == (row.model, DENSE, task):
            change, paired_error = difference(row, dense)
            row = row._replace(difference=change, difference_error=paired_error)
    return Score(*map(rounded, row))


def main(argv: list[str] | None = None) -> None:
    """Measure the stages one after another, and write the file after each model."""
    options = shared_options("make_tasks", __doc__, (FREE, LONGER, RECOVERED))
    options.add_argument("--include-path", type=Path, required=True, metavar="FOLDER", help="of `tasks --fetch`")
    options.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    arguments, commit = parsed(options, argv)
    for stage in arguments.stages:
        try:
            for measured in measure(arguments, stage, commit):
                with FileLock(LOCK):
                    write(sorted((*read_rows(Score, FILE), *measured)), FILE)
                print(f"{stage}: {measured[0].slice} in {len(measured)} tasks written to {FILE}", flush=True)
        except (UserError, NumericalError) as error:
            sys.exit(f"python -m components.make_tasks: {error}")


if __name__ == "__main__":
    main()
