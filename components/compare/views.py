"""The data that the Compare tab shows, as plain numbers and texts, some in classes of the library: no tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from intraslice.diagnostics.token_scores import NextToken as NextToken
from intraslice.diagnostics.token_scores import Passage as Passage
from intraslice.diagnostics.token_scores import TokenScore as TokenScore
from intraslice.evaluation.facts import LEVELS as LEVELS
from intraslice.evaluation.facts import Fact
from intraslice.evaluation.facts import Question as FactQuestion
from intraslice.evaluation.facts import fact_counts as fact_counts
from intraslice.evaluation.generation import Sampling

from ..state.views import HERE, PrecomputedCosts, Provenance

COLUMNS = ("dense", "intraslice", "crossmodule")
PINNED = "pinned"  # the column of the pinned setting A, if a setting is pinned
OTHER = "other"  # the column of another model, if one is named
MAX_GUESSES = 3  # of either model, per token of the passage
TOKENS = Sampling.max_new_tokens


class Question(NamedTuple):
    """The prompt and the sampling options, equal for all columns. `raw` omits the tokenizer's chat template."""

    prompt: str
    tokens: int = TOKENS  # maximum number of new tokens
    temperature: float = 0.0
    sample_seed: int = 0
    raw: bool = False


@dataclass(frozen=True)
class Answer:
    """One column's answer so far: the text shared with the dense answer, the first divergent token, and the rest.

    `state` is waiting, pending (its model is not sliced yet), growing, ended (by an end token), cut (at the maximum
    number of tokens), stopped or refused (see `problem`).
    """

    shared: str = ""
    token: str = ""
    rest: str = ""
    count: int = 0  # new tokens, including the end token
    state: str = "waiting"
    diverges_at: int | None = None  # position of the first divergent token
    dense_token: str = ""  # the dense model's token at that position
    problem: str = ""
    loops: bool = False  # four tokens in a row come three times
    identical: bool = False  # to its end, with the dense answer

    @property
    def text(self) -> str:
        """The whole answer."""
        return self.shared + self.token + self.rest


@dataclass(frozen=True)
class Cost:
    """The costs of one column's model; None if not measured yet."""

    parameters: int
    removed: float  # fraction of the layers' parameters
    kv: float  # bytes per token
    perplexity: float | None = None
    prefill: float | None = None  # tokens per second
    decode: float | None = None
    divergence: tuple[float, float | None] | None = None  # KL from dense, nats per token, and its standard error
    precomputed: PrecomputedCosts | None = None


@dataclass(frozen=True)
class Costs:
    """The costs by column, the reason if a column has none, and how the speeds were measured."""

    columns: Mapping[str, Cost]
    problems: Mapping[str, str]
    speed_protocol: str = ""


class FactsColumn(NamedTuple):
    """A model's answers to the questions; `stored_at` is the percentage of a stored slice, None if measured here."""

    facts: Sequence[Fact]
    stored_at: float | None = None


@dataclass(frozen=True)
class FactsView:
    """The questions, each column's answers, and indices of those lost and gained, the dense model's surest first."""

    questions: Sequence[FactQuestion]
    columns: Mapping[str, FactsColumn]
    percent: float
    lost: Sequence[int]
    gained: Sequence[int]
    source: Provenance = HERE

    @property
    def is_exact(self) -> bool:
        """Whether all answers are of this percentage, none of the nearest one that has stored answers."""
        sliced = [column for name, column in self.columns.items() if name != "dense"]
        return all(column.stored_at in (None, self.percent) for column in sliced)
