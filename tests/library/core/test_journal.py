"""Folders of unfinished runs: kept for the run that goes on, within the cache's maximum size, never taken from it."""

from __future__ import annotations

from contextlib import suppress

import pytest

from intraslice.core.cache import MAX_BYTES_VARIABLE, temporary_folder, temporary_sibling
from intraslice.core.errors import UserError
from intraslice.core.journal import resumable_cache_folder, resumable_sibling

DIGEST, OTHER = "0" * 32, "1" * 32


def stop_in(folder):
    with suppress(KeyboardInterrupt), folder as path:
        (path / "step").write_text("finished")
        raise KeyboardInterrupt
    return path


def test_a_folder_is_kept_until_its_run_ends(own_cache):
    path = stop_in(resumable_cache_folder(DIGEST, 100))
    with resumable_cache_folder(DIGEST, 100) as again:
        assert again == path
        assert (again / "step").read_text() == "finished"
    assert not path.exists()


def test_two_processes_do_not_share_a_folder(own_cache):
    with (
        resumable_cache_folder(DIGEST, 100),
        pytest.raises(UserError, match="another process is already working in"),
        resumable_cache_folder(DIGEST, 100),
    ):
        pass


def test_an_abandoned_folder_is_removed_once_its_space_is_needed(own_cache, monkeypatch):
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "1000")
    abandoned = stop_in(resumable_cache_folder(DIGEST, 600))
    with temporary_folder(300):
        assert abandoned.exists()
    with resumable_cache_folder(OTHER, 700):
        assert not abandoned.exists()
        with pytest.raises(OSError, match="exceed the space"), temporary_folder(400):  # what is in use is not removed
            pass
    with pytest.raises(UserError, match=MAX_BYTES_VARIABLE), resumable_cache_folder(OTHER, 1100):
        pass


def test_a_sibling_is_removed_by_the_next_one_that_writes_there(tmp_path):
    path = stop_in(resumable_sibling(tmp_path / "model", DIGEST))
    with temporary_sibling(tmp_path / "model"):
        assert not path.exists()
