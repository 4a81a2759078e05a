"""The data of a published page, as plain numbers: no tensors, no gradio."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from intraslice.core import checks
from intraslice.core.errors import UserError

from .. import limits
from ..activations.views import ShiftView
from ..compare.views import Answer, Costs, FactsView, Passage
from ..spectra.views import SpectraView
from ..state.plan_views import MapView
from ..state.settings import MAX_PERCENT, PROMPT
from ..state.views import Perplexities, PlanView, Reading
from ..sweep.views import SweepPoint, SweepView

MAX_STEPS, MAX_PROMPTS = 61, 8
PROMPTS = (PROMPT, "Write a short letter to a friend.", "Explain what a language model is to a child.")


class Choice(NamedTuple):
    """The slider's steps in per cent; the prompts, the most tokens of an answer, and the passage to score at each."""

    percents: Sequence[float] = tuple(range(0, 61, 5))
    prompts: Sequence[str] = PROMPTS
    tokens: int = 40
    passage: str = ""

    def validated(self) -> Self:
        """A copy with sorted, unique steps. Raises UserError if a value is invalid."""
        percents = sorted({checks.number("sparsity", percent, 0, MAX_PERCENT) for percent in self.percents})
        if not 2 <= len(percents) <= MAX_STEPS:
            count = len(percents)
            raise UserError("The slider must have 2 to {limit} steps, got {count}.", count=count, limit=MAX_STEPS)
        if not 1 <= (count := len(self.prompts)) <= MAX_PROMPTS:
            raise UserError("There must be 1 to {limit} prompts, got {count}.", count=count, limit=MAX_PROMPTS)
        for prompt in self.prompts:
            checks.require_words("a prompt", checks.text("Prompt", prompt, limits.PROMPT.value))
        tokens = checks.integer("Maximum new tokens", self.tokens, 1, limits.NEW_TOKENS.value)
        return self._replace(percents=tuple(percents), prompts=tuple(self.prompts), tokens=tokens)


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
    command: str

    @cached_property
    def sweep(self) -> SweepView:
        """The perplexities of both methods at all steps but 0 %."""
        points = []
        for method, estimator in (("intraslice", self.steps[0].plan.estimator), ("crossmodule", "")):
            for step in self.steps:
                cost, note = step.costs.columns.get(method), step.costs.problems.get(method, "")
                removed, parameters, perplexity = (
                    (cost.removed, cost.parameters, cost.perplexity) if cost else (None, None, None)
                )
                if step.percent:
                    target = step.percent / 100
                    points.append(SweepPoint(method, estimator, target, removed, parameters, perplexity, note=note))
        perplexities = self.steps[0].perplexities
        return SweepView(perplexities.values[0], tuple(points), len(points), perplexities.protocol)
