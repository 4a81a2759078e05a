"""The values of the page's controls, and what it tells while it works. Plain values: no tensors, no gradio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from components.session import limits

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


@dataclass(frozen=True)
class Status:
    """What the page is doing. `total` 0 means nothing to count; `kind` is busy, ready or error.

    The text of an error is what a visitor may read of it.
    """

    text: str
    kind: str = "busy"
    done: int = 0
    total: int = 0
    seconds_left: float | None = None

    def __post_init__(self) -> None:
        if self.kind == "error":
            object.__setattr__(self, "text", limits.told(self.text))
