"""Files with the `Profile` of a calibration: of the default model (`precomputed.py`), and cached ones.

Those of a running calibration are cached whenever its number of sequences has doubled, for the ratios' convergence.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intraslice.core.cache import cache_path, read_result, write_result
from intraslice.core.config import MODULE_KINDS
from intraslice.loading import LoadedModel
from intraslice.planning.estimators import Importances
from intraslice.planning.head_table import HeadTable
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.sizes import LayerSizes

FORMAT = "2"  # of cached profiles: raise it when changed code alters them


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile with layers of equal size."""
    layers = profile.layers
    importances = {
        f"{estimator}_{module}": torch.stack(profile.importances(estimator, module)).float().cpu().numpy()
        for estimator in profile.estimators
        for module in MODULE_KINDS
    }
    about = {
        "estimators": profile.estimators,
        "sizes": asdict(layers[0].sizes),
        "kv_head": layers[0].kv_head,
        "other_parameters": profile.other_parameters,
        "bytes_per_value": profile.bytes_per_value,
    }
    arrays: dict[str, Any] = {
        **importances,
        "alive": np.packbits(np.stack([layer.table.alive.cpu().numpy() for layer in layers]), axis=-1),
        "dim": np.stack([layer.table.dim.cpu().numpy() for layer in layers]).astype(np.int16),
        "about": json.dumps(about),
    }
    if rules := [layer.table.rule for layer in layers if layer.table.rule is not None]:
        arrays["rule"] = np.stack([rule.cpu().numpy() for rule in rules]).astype(np.int8)
    np.savez_compressed(path, **arrays)


def load_profile(path: Path) -> Profile:
    """The profile in a file."""
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        sizes = LayerSizes(**about["sizes"])
        alive = torch.from_numpy(np.unpackbits(arrays["alive"], axis=-1, count=sizes.heads).astype(bool))
        dim = torch.from_numpy(arrays["dim"].astype(np.int64))
        rule = torch.from_numpy(arrays["rule"].astype(np.int64)) if "rule" in arrays else [None] * len(dim)
        importances = {
            estimator: [torch.from_numpy(arrays[f"{estimator}_{module}"]) for module in MODULE_KINDS]
            for estimator in about["estimators"]
        }
    layers = tuple(
        LayerProfile(
            sizes=sizes,
            table=HeadTable(alive[index], dim[index], rule[index]),
            kv_head=tuple(about["kv_head"]),
            importances={
                estimator: Importances(attention[index], mlp[index])
                for estimator, (attention, mlp) in importances.items()
            },
        )
        for index in range(len(dim))
    )
    return Profile(layers, about["other_parameters"], about["bytes_per_value"])


def cache_profile(loaded: LoadedModel, tokens: Tensor, sequences: int, profile: Profile) -> None:
    """Cache the profile from the first `sequences` of the calibration tokens (sequences, length)."""
    path = _folder(loaded, tokens) / f"{sequences}.npz"
    write_result(path, lambda temporary: save_profile(profile, temporary), "the convergence of the ratios")


def cached_profiles(loaded: LoadedModel, tokens: Tensor) -> list[tuple[int, Profile]]:
    """The cached profiles by their number of sequences, in that order; without damaged files."""
    profiles = {path: read_result(path, load_profile) for path in _folder(loaded, tokens).glob("*.npz")}
    return sorted((int(path.stem), profile) for path, profile in profiles.items() if profile)


def _folder(loaded: LoadedModel, tokens: Tensor) -> Path:
    return cache_path("convergence", "", FORMAT, loaded.fingerprint, loaded.model.dtype, tokens)
