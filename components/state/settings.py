"""The values of the page's controls. Plain values: no tensors, no gradio."""

from __future__ import annotations

from typing import NamedTuple

PROMPT = "Why does it rain?"  # shown when the page opens


class Settings(NamedTuple):
    """The values of the controls, in the order in which handlers receive them."""

    model: str = "default"
    text: str = "default"
    upload: str | None = None
    sequences: int = 32
    length: int = 512
    seed: int = 0
    sparsity: float = 20  # per cent, as on the slider: answers are still sentences
    estimator: str = "pca"
    bias: float | None = None  # None: set by the importances
    cap: float = 80  # per cent
    order: str = "one-shot"
    iterative: bool = False
    locked: str = ""  # manual ratios in per cent: "7 attention 25, 3 mlp 0"
    dtype: str = "auto"
    shapes: str = "free"
    recovery: str = "none"
