"""What the page is doing, as a value: no tensors, no gradio."""

from __future__ import annotations

from dataclasses import dataclass

from .. import limits


@dataclass(frozen=True)
class Status:
    """What the page is doing. `total` 0 means nothing to count; `kind` is busy, ready or error.

    The text of an error is what a client may read of it. A job's last status says whether the job was `stopped`, and
    whether the page's status line is `taken`: by a job that goes on, or by another one's error.
    """

    text: str
    kind: str = "busy"
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    stopped: bool = False
    taken: bool = False

    def __post_init__(self) -> None:
        if self.kind == "error":
            object.__setattr__(self, "text", limits.error_text(self.text))
