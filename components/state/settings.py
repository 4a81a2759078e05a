"""The values of the page's controls. Plain values: no tensors, no gradio."""

from __future__ import annotations

from typing import NamedTuple

from intraslice.core.config import CalibrationConfig, SliceConfig

PROMPT = "Why does it rain?"  # shown when the page opens


class Settings(NamedTuple):
    """The values of the controls, in the order in which handlers receive them."""

    model: str = "default"
    text: str = CalibrationConfig.text
    upload: str | None = None
    sequences: int = CalibrationConfig.sequences
    length: int = CalibrationConfig.length
    seed: int = CalibrationConfig.seed
    sparsity: float = 20  # per cent, as on the slider: answers are still sentences
    estimator: str = SliceConfig.estimator
    bias: float | None = None  # None: set by the importances
    cap: float = round(100 * SliceConfig.cap)  # per cent
    order: str = "one-shot"
    iterative: bool = False
    locked: str = ""  # manual ratios in per cent: "7 attention 25, 3 mlp 0"
    dtype: str = "auto"
    shapes: str = SliceConfig.shapes
    recovery: str = SliceConfig.recovery
