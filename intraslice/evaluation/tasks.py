"""Scores models that share a tokenizer in tasks of lm-eval, EleutherAI's harness, an optional dependency."""

import importlib.util
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.checks import check_fields, integer
from intraslice.core.errors import UserError, first_line
from intraslice.core.progress import Progress, ProgressOption, progress_callback


@dataclass(frozen=True)
class TasksConfig:
    """Tasks and groups, by lm-eval's names or those of the YAML files in `include_path`.

    `limit` is the number of documents per task, None for all; `shots` the number of few-shot examples, None for the
    task's default.
    """

    tasks: tuple[str, ...]
    include_path: Path | None = None
    limit: int | None = None
    shots: int | None = None
    batch: int = 8

    def __post_init__(self) -> None:
        if not self.tasks:
            raise UserError(
                "--tasks must name at least one task, such as arc_easy; --fetch FOLDER makes some available"
            )
        check_fields(self, integer, limit=(1,), shots=(0,), batch=(1,))


def require_tasks(config: TasksConfig) -> Any:
    """lm-eval's task manager, once the tasks and their data are available.

    Raises UserError, before a model is loaded, if lm-eval, a task or its data is missing.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError('tasks need lm-eval, which is not installed; run `pip install "lm-eval[hf]"`')
    if config.include_path is not None and not config.include_path.is_dir():
        raise UserError(f"{config.include_path} is not a folder; expected a folder with YAML files of tasks")
    from lm_eval.tasks import TaskManager  # slow to import, and optional

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
    except Exception as error:  # from lm-eval, datasets, the Hub, or code of a task
        raise UserError(
            f"the data of {', '.join(config.tasks)} cannot be loaded ({first_line(error)}); connect to the internet, "
            "or choose a task whose data is a local file"
        ) from error
    return manager


def measure_tasks(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    config: TasksConfig,
    manager: Any,
    *,
    progress: ProgressOption = True,
) -> pandas.DataFrame:
    """A row for each metric of each task and model, with the columns task, metric, model, value, standard_error.

    `manager` is the result of `require_tasks`. Groups have rows in addition to those of their tasks. `progress` counts
    models. Raises UserError for tasks that cannot be run.
    """
    rows: list[dict[str, Any]] = []
    report = progress_callback(progress)
    for done, (name, model) in enumerate(models.items()):
        report(Progress("tasks", done, len(models)))
        rows += _rows(name, _evaluated(model, tokenizer, config, manager)["results"])
    report(Progress("tasks", len(models), len(models)))
    return pandas.DataFrame(rows)


def measure_hits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TasksConfig,
    manager: Any,
    documents: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, dict[str, list[bool]]]:
    """Whether the model chooses the right answer to each question, by task and metric (`acc`, `acc_norm`).

    Of multiple-choice tasks, in the order of their questions. `documents` are the indices of the questions, of tasks
    that have them all; None: those of the config. Raises UserError for tasks that cannot be run.
    """
    output = _evaluated(model, tokenizer, config, manager, log_samples=True, samples=documents)
    found = {}
    for task, samples in output["samples"].items():
        samples = sorted(samples, key=lambda sample: sample["doc_id"])
        metrics = [metric for metric in ("acc", "acc_norm") if metric in samples[0]]
        found[task] = {metric: [sample[metric] == 1 for sample in samples] for metric in metrics}
    return found


def _evaluated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: TasksConfig, manager: Any, **options: Any
) -> dict[str, Any]:
    """The output of lm-eval, without samples unless the `options` of its function ask for them."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        with _quiet():
            output: dict[str, Any] = simple_evaluate(
                HFLM(pretrained=model, tokenizer=tokenizer, batch_size=config.batch),
                tasks=list(config.tasks),
                num_fewshot=config.shots,
                limit=config.limit,
                task_manager=manager,
                **{"log_samples": False} | options,
            )
    except Exception as error:
        names = ", ".join(config.tasks)
        raise UserError(
            f"lm-eval cannot run {names} ({first_line(error)}); choose other tasks, or run fewer at once"
        ) from error
    return output


def _rows(model: str, results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of lm-eval's results, in which keys are `METRIC,FILTER`, such as `acc,none` and `acc_stderr,none`."""
    rows = []
    for task, metrics in results.items():
        for key, value in metrics.items():
            metric, _, filter_name = key.partition(",")
            if filter_name and not metric.endswith("_stderr") and isinstance(value, (int, float)):
                error = metrics.get(f"{metric}_stderr,{filter_name}")
                name = metric if filter_name == "none" else f"{metric} ({filter_name})"
                row: dict[str, Any] = {"task": task, "metric": name, "model": model, "value": value}
                rows.append(row | {"standard_error": error if isinstance(error, (int, float)) else None})  # else "N/A"
    return rows


@contextmanager
def _quiet() -> Iterator[None]:
    """Redirect lm-eval's output to stderr, and log only its errors."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)
