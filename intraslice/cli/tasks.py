"""The command `tasks`: scores in lm-eval's tasks. Returns its JSON object and its text."""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path

import pandas

from intraslice.cli.run import CommandResult, Run
from intraslice.evaluation.tasks import TasksConfig, measure_tasks, require_tasks
from intraslice.methods.registry import METHODS
from intraslice.reporting import records


def add_options(command: argparse.ArgumentParser) -> None:
    """Add the options of this command, under lm-eval's names."""
    add = command.add_argument
    add(
        "--tasks",
        nargs="+",
        required=True,
        metavar="TASK",
        help="task names, such as arc_easy; `lm-eval ls tasks` lists all",
    )
    add(
        "--methods",
        nargs="+",
        default=["intraslice", "crossmodule"],
        choices=METHODS,
        help="methods to compare with the dense model",
    )
    add("--include-path", type=Path, metavar="FOLDER", help="folder with YAML files of your own tasks")
    add("--limit", type=int, metavar="N", help="number of documents per task (default: all)")
    add(
        "--num-fewshot",
        type=int,
        metavar="N",
        help="number of examples before each question (default: set by the task)",
    )
    add("--batch-size", type=int, default=TasksConfig.batch, metavar="N", help="sequences per forward pass")


def tasks(run: Run) -> CommandResult:
    """Scores of the dense model and of its slices by each method, or of a sliced checkpoint only."""
    a = run.arguments
    config = TasksConfig(tuple(dict.fromkeys(a.tasks)), a.include_path, a.limit, a.num_fewshot, a.batch_size)
    manager = require_tasks(config)
    loaded = run.load_any()
    if loaded.made is not None:
        models, removed = {"sliced": loaded.model}, {"sliced": loaded.made.get("removed_fraction")}
    else:
        models, removed = {"dense": loaded.model}, {}
        stats, tokens = run.calibrate(loaded)
        for method in dict.fromkeys(a.methods):
            models[method], plan = run.slice(loaded, stats, tokens, method)
            removed[method] = plan.removed_fraction
    with run.timed("tasks"):
        frame = measure_tasks(models, loaded.tokenizer, config, manager)
    harness = {"lm_eval": version("lm-eval"), "limit": a.limit, "num_fewshot": a.num_fewshot}
    result = {"model": a.model, "rows": records(frame), "removed_fraction": removed}
    return result | {"protocol": run.recipe.protocol() | harness, "seconds": run.seconds}, _table(frame)


def _table(frame: pandas.DataFrame) -> str:
    """A table with a line for each metric of each task, and a column for each model."""
    errors = frame["standard_error"].map(lambda error: "" if pandas.isna(error) else f" ± {error:.4f}")
    frame = frame.assign(score=frame["value"].map("{:.4f}".format) + errors)
    table = frame.pivot_table("score", ["task", "metric"], "model", aggfunc="first", sort=False)
    return table.reset_index().to_string(index=False, na_rep="")
