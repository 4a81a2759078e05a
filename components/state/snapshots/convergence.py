"""Cached profiles of a running calibration, one whenever its number of sequences has doubled."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from intraslice.core.cache import cache_path, read_result, write_result
from intraslice.loading import LoadedModel
from intraslice.planning.profile import Profile

from . import plan as snapshot

FORMAT = "2"  # of the profiles: raise it when changed code alters them


def keep_profile(loaded: LoadedModel, tokens: Tensor, sequences: int, profile: Profile) -> None:
    """Cache the profile from the first `sequences` of the calibration tokens (sequences, length)."""
    label = f"after {sequences} sequences"
    path = _folder(loaded, tokens) / f"{sequences}.npz"
    write_result(path, lambda temporary: snapshot.save(profile, label, temporary), "the convergence of the ratios")


def kept_profiles(loaded: LoadedModel, tokens: Tensor) -> list[tuple[int, Profile]]:
    """The cached profiles by their number of sequences, in that order; without damaged files."""
    profiles = {path: read_result(path, snapshot.load) for path in _folder(loaded, tokens).glob("*.npz")}
    return sorted((int(path.stem), loaded_file[0]) for path, loaded_file in profiles.items() if loaded_file)


def _folder(loaded: LoadedModel, tokens: Tensor) -> Path:
    return cache_path("convergence", "", FORMAT, loaded.fingerprint, loaded.model.dtype, tokens)
