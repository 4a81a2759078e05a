"""The file that keeps the default model's spectra and shifts, thinned: what is in it, and how numbers are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from components.assets import ASSETS

FILE = ASSETS / "diagnostics.npz"
WIDE = ("mlp", "residual", "directions")
NUMBERS = ("error", "massive_error", "cosine", "massive_cosine", "distance")
MOMENTS = ("low", "high", "mean", "spread", "kurtosis")
FULL, BYTE = 65535, 255  # a share of 1 and the peak of a histogram, as kept


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays, and what they are about."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files if name != "about"}, json.loads(str(arrays["about"]))
