"""lm-eval for tests: a task over a local file, and none of the thousands of its own."""

from functools import partial
from pathlib import Path

import pytest

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = TASK + "output_type: multiple_choice\ndoc_to_choice: choices\ndoc_to_target: answer\n"


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """datasets keeps what it read of a file; lm-eval's own tasks, thousands of files, take seconds to list."""
    tasks = pytest.importorskip("lm_eval.tasks")
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
