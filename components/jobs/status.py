"""What the page is doing, as a value: no tensors, no gradio."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from .. import limits

# Numbers of views, each greater than all before, also than those of a process before this one.
NUMBERS = itertools.count(int(1e6 * time.time()))


@dataclass(frozen=True)
class Status:
    """What a job, or the page, is doing. `total` 0 means nothing to count; `kind` is busy, ready or error.

    The text of an error is what a client may read of it. A job's last status says whether the job was `stopped`, and
    whether that is since its client has moved on: `superseded`. `line` returns what the page's status line shows now,
    if the job has a part in it; that has a `number`: of two, the one with the greater number is newer. `about` is the
    key of the model that is being made, if it is one.
    """

    text: str
    kind: str = "busy"
    done: int = 0
    total: int = 0
    seconds_left: float | None = None
    stopped: bool = False
    superseded: bool = field(default=False, compare=False)
    about: Hashable = field(default=None, compare=False)
    number: int = field(default=0, compare=False)
    line: Callable[[], Status] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.kind == "error":
            object.__setattr__(self, "text", limits.error_text(self.text))
