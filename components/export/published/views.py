"""What a published page shows, as plain numbers: no tensors, no gradio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from components.activations.views import ShiftView
from components.compare.views import Answer, Costs
from components.spectra.views import SpectraView
from components.state.settings import PROMPT
from components.state.views import Perplexities, PlanView, Reading
from components.sweep.views import SweepView

PROMPTS = (PROMPT, "Write a short letter to a friend.", "Explain what a language model is to a child.")


class Choice(NamedTuple):
    """The slider's steps in per cent, and what the three models answer at each, with so many tokens at the most."""

    percents: Sequence[float] = tuple(range(0, 61, 5))
    prompts: Sequence[str] = PROMPTS
    tokens: int = 40


@dataclass(frozen=True)
class Step:
    """Everything at one position of the slider.

    `spectra` has a layer each, `answers` a prompt each, by column. The cross-module model's perplexity, `cross`, and
    its ratio to the dense one's are None where it cannot remove as much, and `shift` where nothing is removed.
    """

    percent: float
    plan: PlanView
    perplexities: Perplexities
    costs: Costs
    cross: Reading | None
    cross_ratio: Reading | None
    spectra: tuple[SpectraView, ...]
    shift: ShiftView | None
    answers: tuple[Mapping[str, Answer], ...]


@dataclass(frozen=True)
class Published:
    """All steps, what they have in common, and the command line that measures the same."""

    name: str
    source: str
    choice: Choice
    first: int  # the step that the page opens with
    steps: tuple[Step, ...]
    sweep: SweepView
    command: str

    @property
    def protocol(self) -> str:
        """What perplexities were taken on."""
        return self.steps[0].perplexities.protocol
