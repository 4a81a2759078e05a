"""The snapshot: a file with the `Profile` of the default model, without weights.

With it the page computes ratios and sizes while the model is still loading. `python -m components.make_snapshots`
measures it again.
"""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from intraslice.core.config import MODULE_KINDS
from intraslice.planning.estimators import Importances
from intraslice.planning.head_table import HeadTable
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.sizes import LayerSizes
from intraslice.pretrained.precision import Precision

from ...assets import ASSETS
from ...i18n.language import lazy_day, lazy_gettext
from ..choices import PRECISIONS
from ..plan_views import Source
from ..request import parse
from ..settings import Settings

FILE = ASSETS / "snapshot.npz"


def save(profile: Profile, label: str, path: Path = FILE) -> None:
    """Write a profile with layers of equal size, and a label that says what it was measured on."""
    layers = profile.layers
    importances = {
        f"{estimator}_{module}": torch.stack(profile.importances(estimator, module)).float().cpu().numpy()
        for estimator in profile.estimators
        for module in MODULE_KINDS
    }
    about = {
        "label": label,
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
    np.savez_compressed(path, **arrays)


def load(path: Path = FILE) -> tuple[Profile, str]:
    """The profile and its label."""
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        sizes = LayerSizes(**about["sizes"])
        alive = torch.from_numpy(np.unpackbits(arrays["alive"], axis=-1, count=sizes.heads).astype(bool))
        dim = torch.from_numpy(arrays["dim"].astype(np.int64))
        importances = {
            estimator: [torch.from_numpy(arrays[f"{estimator}_{module}"]) for module in MODULE_KINDS]
            for estimator in about["estimators"]
        }
    layers = tuple(
        LayerProfile(
            sizes=sizes,
            table=HeadTable(alive[index], dim[index]),
            kv_head=tuple(about["kv_head"]),
            importances={
                estimator: Importances(attention[index], mlp[index])
                for estimator, (attention, mlp) in importances.items()
            },
        )
        for index in range(len(dim))
    )
    return Profile(layers, about["other_parameters"], about["bytes_per_value"]), about["label"]


def sources(path: Path = FILE) -> dict[Precision, Source]:
    """The snapshot as a source of plans, by the precision that the page calculates in."""
    profile, raw_label = load(path)
    # The default model's head is tied to its embeddings; outside of the layers there is only the last norm besides.
    head_weights = profile.other_parameters - profile.layers[0].sizes.hidden
    provisional = lazy_gettext("Precomputed: {label}", label=translatable_label(raw_label))
    return {
        precision: Source(
            replace(profile, bytes_per_value=getattr(torch, precision).itemsize),
            head_weights,
            parse(Settings(dtype=precision)).calibration,
            provisional=provisional,
        )
        for precision in PRECISIONS
    }


def translatable_label(label: str) -> str:
    """A snapshot's label as a lazy string, if it has the form that `label` writes; otherwise unchanged."""
    parts = re.fullmatch(r"(\S+) on (\d+) x (\d+) tokens of Wikipedia's lead sections, (\d+ \w+ \d{4})\.", label)
    if parts is None:
        return label
    model, sequences, length, date = parts.groups()
    return lazy_gettext(
        "{model} on {sequences} x {length} tokens of Wikipedia's lead sections, {day}.",
        model=model,
        sequences=sequences,
        length=length,
        day=lazy_day(date),
    )


def label() -> str:
    """The label of a snapshot measured today."""
    return f"SmolLM2-135M-Instruct on 32 x 512 tokens of Wikipedia's lead sections, {datetime.date.today():%d %B %Y}."
