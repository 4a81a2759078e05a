"""What plans were made of while a calibration grew, kept beside it: a profile whenever its sequences had doubled."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from components.state.snapshots import plan as snapshot
from intraslice.core.cache import cache_path, keep, kept
from intraslice.loading import LoadedModel
from intraslice.planning.profile import Profile


def keep_profile(loaded: LoadedModel, tokens: Tensor, sequences: int, profile: Profile) -> None:
    """Keep what the first `sequences` of the calibration tokens (sequences, length) gave."""
    words = f"after {sequences} sequences"
    path = _folder(loaded, tokens) / f"{sequences}.npz"
    keep(path, lambda draft: snapshot.save(profile, words, draft), "how the ratios settle")


def kept_profiles(loaded: LoadedModel, tokens: Tensor) -> list[tuple[int, Profile]]:
    """The profiles that are kept, and after how many sequences they were found; none that is damaged."""
    profiles = {path: kept(path, snapshot.load) for path in _folder(loaded, tokens).glob("*.npz")}
    return sorted((int(path.stem), found[0]) for path, found in profiles.items() if found)


def _folder(loaded: LoadedModel, tokens: Tensor) -> Path:
    return cache_path("settling", "", loaded.fingerprint, loaded.model.dtype, tokens)
