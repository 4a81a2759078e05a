"""What models that share a tokenizer score in tasks of lm-eval, EleutherAI's harness, which is an extra of its own."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.errors import UserError, first_line
from intraslice.core.progress import Progress, ProgressCallback, progress_callback


@dataclass(frozen=True)
class TasksConfig:
    """Tasks and groups by lm-eval's names, and by those of the YAML files in `include_path`.

    `limit` is the number of documents that count of each task, `shots` that of the examples before each of them; None
    is all, and what the task says.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    shots: int | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError("no task is named; expected at least one, such as arc_easy")
        for field, least in {"limit": 1, "shots": 0, "batch": 1}.items():
            value = getattr(self, field)
            if value is not None and value < least:
                raise UserError(f"{field} must be {least} or more, got {value}")


def require_tasks(config: TasksConfig) -> Any:
    """lm-eval's manager of these tasks, whose data are there.

    Raises UserError, before any model is needed, where lm-eval, a task or its data cannot be had.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('tasks are those of lm-eval, which is not installed; run `pip install "lm-eval[hf]"`')
    if config.include_path is not None and not config.include_path.is_dir():
        raise UserError(f"{config.include_path} is no folder; expected one with the YAML files of tasks")
    from lm_eval.tasks import TaskManager  # takes seconds, and is no dependency

    with _quiet():
        manager = TaskManager(include_path=config.include_path)
    if unknown := set(config.tasks) - set(manager.all_tasks):
        raise UserError(
            f"lm-eval has no task {min(unknown)!r}; expected a name that `lm-eval ls tasks` prints, "
            "or --include-path with the folder of its YAML file"
        )
    try:
        with _quiet():
            manager.load(list(config.tasks))
    except Exception as error:  # of lm-eval, datasets, the Hub, and of code that comes with a task
        raise UserError(
            f"the data of {', '.join(config.tasks)} cannot be had ({first_line(error)}); connect this machine, "
            "or take a task over a file of yours"
        ) from error
    return manager


def measure_tasks(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    config: TasksConfig,
    manager: Any,
    *,
    progress: ProgressCallback | bool = True,
) -> pandas.DataFrame:
    """A row for each metric of each task and model, with the columns task, metric, model, value, standard_error.

    `manager` is what `require_tasks` returned. Groups have rows of their own beside those of their tasks. `progress`
    counts models. Raises UserError for tasks that cannot be run.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    rows: list[dict[str, Any]] = []
    report = progress_callback(progress)
    for done, (name, model) in enumerate(models.items()):
        report(Progress("tasks", done, len(models)))
        try:
            with _quiet():
                found = simple_evaluate(
                    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch),
                    tasks=list(config.tasks),
                    num_fewshot=config.shots,
                    limit=config.limit,
                    task_manager=manager,
                    log_samples=False,
                )
        except Exception as error:
            names = ", ".join(config.tasks)
            raise UserError(
                f"lm-eval cannot run {names} ({first_line(error)}); take others, or fewer at once"
            ) from error
        rows += _rows(name, found["results"])
    report(Progress("tasks", len(models), len(models)))
    return pandas.DataFrame(rows)


def _rows(model: str, results: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """lm-eval names a metric `acc,none` and its error `acc_stderr,none`, where `none` is how answers are filtered."""
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, how = key.partition(",")
            if how and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = metrics.get(f"{metric}_stderr,{how}")
                yield {
                    "task": task,
                    "metric": metric if how == "none" else f"{metric} ({how})",
                    "model": model,
                    "value": value,
                    "standard_error": error if isinstance(error, (int, float)) else None,  # else "N/A"
                }


@contextmanager
def _quiet() -> Iterator[None]:
    """What lm-eval prints goes to stderr, and of what it logs only errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
