"""What the Compare tab shows, as plain numbers and texts: no tensors, no gradio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from components.i18n.language import LazyString, lazy_gettext
from components.ui.labels import METHODS, Terms

PINNED = "pinned"  # the column of the pinned setting A, where there is one
COLUMNS = Terms(
    {
        "dense": lazy_gettext("Dense"),
        **{name: LazyString(partial(METHODS.__getitem__, name)) for name in ("intraslice", "crossmodule")},
    }
)


class Question(NamedTuple):
    """What is asked of every column. `raw` leaves the tokenizer's chat template out."""

    prompt: str
    tokens: int = 64  # new ones, at most
    temperature: float = 0.0
    seed: int = 0
    raw: bool = False


@dataclass(frozen=True)
class Answer:
    """One column's answer as it grows: what it shares with the dense one, the token where it parts, and the rest.

    `state` is waiting, later (its model is still to be made), growing, ended (by itself), cut (at the most tokens),
    stopped or refused (see `problem`).
    """

    same: str = ""
    token: str = ""
    rest: str = ""
    count: int = 0  # new tokens, the end token included
    state: str = "waiting"
    parts_at: int | None = None  # how many tokens are shared before the first that is not
    instead_of: str = ""  # the dense model's token there
    problem: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return self.same + self.token + self.rest


@dataclass(frozen=True)
class Cost:
    """What one column's model costs; None where not measured yet. Speeds are in tokens a second.

    `divergence` is KL from the dense model, in nats a token, with its standard error where it is known.
    """

    parameters: int
    removed: float  # of the layers' parameters, a fraction
    kv: float  # bytes a token
    perplexity: float | None = None
    prefill: float | None = None
    decode: float | None = None
    divergence: tuple[float, float | None] | None = None


@dataclass(frozen=True)
class Costs:
    """The columns' costs by method, a problem in words where a method has none, and how they were measured."""

    columns: Mapping[str, Cost]
    problems: Mapping[str, str]
    protocol: str = ""
    speed_protocol: str = ""


@dataclass(frozen=True)
class Candidate:
    """A token that may come next, with its probability under both models."""

    text: str
    dense: float
    sliced: float


@dataclass(frozen=True)
class PassageToken:
    """One token of a passage: its probability under both models, what slicing costs it (nats), and the likeliest."""

    text: str
    dense: float
    sliced: float
    extra: float
    likeliest: tuple[Candidate, ...]


@dataclass(frozen=True)
class PassageView:
    """A scored passage; its first token has no score. `agreement` is the share of places with the same best token."""

    first: str
    tokens: tuple[PassageToken, ...]
    agreement: float
