"""The data of a published page, as plain numbers: no tensors, no gradio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..activations.views import ShiftView
from ..compare.views import Answer, Costs, FactsView, Passage
from ..spectra.views import SpectraView
from ..state.plan_views import MapView
from ..state.settings import PROMPT
from ..state.views import Perplexities, PlanView, Reading
from ..sweep.views import SweepView

PROMPTS = (PROMPT, "Write a short letter to a friend.", "Explain what a language model is to a child.")


class Choice(NamedTuple):
    """The slider's steps in per cent; the prompts, the most tokens of an answer, and the passage to score at each."""

    percents: Sequence[float] = tuple(range(0, 61, 5))
    prompts: Sequence[str] = PROMPTS
    tokens: int = 40
    passage: str = ""


@dataclass(frozen=True)
class Step:
    """Everything at one position of the slider; `answers` are by prompt and column."""

    percent: float
    plan: PlanView
    anatomy: MapView
    perplexities: Perplexities
    costs: Costs
    cross: Reading | None  # perplexity of the cross-module model, if that reaches the sparsity
    cross_ratio: Reading | None  # to the dense one
    spectra: tuple[SpectraView, ...]  # by layer
    shift: ShiftView | None  # None at 0 %
    answers: tuple[Mapping[str, Answer], ...]
    facts: FactsView
    passage: Passage | None = None


@dataclass(frozen=True)
class Published:
    """All steps, their common data, and the command line that reproduces the page or the site."""

    name: str
    source: str
    choice: Choice
    first: int  # index of the step that the page opens with
    steps: tuple[Step, ...]
    sweep: SweepView
    command: str
