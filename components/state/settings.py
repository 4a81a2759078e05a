"""The values of the page's controls. Plain values: no tensors, no gradio."""

from __future__ import annotations

from typing import NamedTuple

PROMPT = "Why does it rain?"  # that the page opens with


class Settings(NamedTuple):
    """The values of the controls, in the order in which the handlers receive them."""

    model: str = "default"
    text: str = "default"
    upload: str | None = None
    sequences: int = 32
    length: int = 512
    seed: int = 0
    sparsity: float = 30  # per cent, as the slider shows it
    estimator: str = "pca"
    bias: float | None = None  # as the importances have it
    cap: float = 80  # per cent
    order: str = "one-shot"
    iterative: bool = False
    locked: str = ""  # ratios given by hand: "7 attention 25, 3 mlp 0", per cent
    dtype: str = "auto"
    shapes: str = "free"
    recovery: str = "none"
