"""What is kept on disk, and what happens when it cannot be."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from intraslice.cache import cache_path, keep, keep_record, kept_record


def test_every_part_tells_paths_apart(own_cache):
    tokens = torch.arange(6)
    paths = [
        cache_path("kind", ".json", "a", tokens),
        cache_path("kind", ".json", "b", tokens),
        cache_path("kind", ".json", "a", tokens.view(2, 3)),
        cache_path("kind", ".json", "a", tokens.int()),
        cache_path("kind", ".json", "a", tokens + 1),
        cache_path("kind", ".json", "a", tokens, ""),
        cache_path("other", ".json", "a", tokens),
    ]
    assert len(set(paths)) == len(paths)
    assert paths[0] == cache_path("kind", ".json", "a", torch.arange(6))
    assert paths[0].parent == own_cache / "kind"


def test_a_record_comes_back(tmp_path: Path):
    path = tmp_path / "new" / "record.json"
    assert kept_record(path) == {}
    keep_record(path, {"a": [1, 2.5]}, "it")
    assert kept_record(path) == {"a": [1, 2.5]}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("damaged", ["", '{"a": ', "[1]", "\xff"])
def test_a_damaged_record_counts_as_none(tmp_path: Path, damaged: str):
    path = tmp_path / "record.json"
    path.write_text(damaged, encoding="latin-1")
    assert kept_record(path) == {}


def test_an_interrupted_write_leaves_the_old_record(tmp_path: Path):
    path = tmp_path / "record.json"
    keep_record(path, {"a": 1}, "it")

    def killed(draft: Path) -> None:
        draft.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(path, killed, "it")
    assert kept_record(path) == {"a": 1}


def test_what_cannot_be_kept_is_a_warning(tmp_path: Path, caplog):
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        keep_record(tmp_path / "file" / "record.json", {}, "the result")
    assert "cannot keep the result" in caplog.text
    assert "INTRASLICE_CACHE" in caplog.text
