"""The format of the file with spectra and activation shifts of the default model, at reduced resolution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ...assets import ASSETS

FILE = ASSETS / "diagnostics.npz"
WIDE = ("mlp", "residual", "directions")
NUMBERS = ("error", "massive_error", "cosine", "massive_cosine", "distance")
MOMENTS = ("low", "high", "mean", "spread", "kurtosis")
FULL, BYTE = 65535, 255  # how a fraction of 1 and the peak of a histogram are stored


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """All arrays, and the record `about` that describes them."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files if name != "about"}, json.loads(str(arrays["about"]))
