"""Measurements of methods at about equal parameters, on several models and texts: `assets/leaderboard.csv`.

`components/make_leaderboard.py` writes it: a line per cell, in the columns of `Cell`.
"""

import datetime
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar, get_type_hints

import pandas

from intraslice.core.config import CalibrationConfig, SliceConfig
from intraslice.pretrained.sources import DEFAULT, DEFAULT_HUB_ID

from ..assets import ASSETS
from ..i18n.language import LazyString, day, lazy_gettext
from .choices import NO_RECOVERY

FILE = ASSETS / "leaderboard.csv"
TIMINGS = ASSETS / "speeds.csv"
WIKIPEDIA = "wikipedia"  # the text of the readings on the page
SEARCH = "search"  # in place of an estimator: ratios that a search found
SPARSITY = 0.3  # of the chart against model size, and of the speeds
TOKENS, DTYPE = 2048, "bfloat16"  # of every cell; the tokens are four windows of 512
STAGES = ("training-free", "longer calibration", "searched", "recovered")
Row = TypeVar("Row", bound=NamedTuple)


class Cell(NamedTuple):
    """A one-shot slice on a text. Speeds are relative to dense; they and the answers do not depend on the text."""

    model: str  # as in the page's list of models
    weights: str  # the type of the GGUF file that was dequantised
    parameters: int  # of the dense model's layers
    method: str
    ratios: str  # the estimator, SEARCH, or "" for a method that uses none
    recovery: str
    sequences: int  # of calibration text, 512 tokens each
    samples: int  # such sequences that the dense model sampled
    sparsity: float
    text: str
    dense_perplexity: float
    perplexity: float
    perplexity_ratio: float  # to the dense perplexity
    perplexity_ratio_error: float  # paired
    divergence: float  # KL from the dense model, nats per token
    divergence_error: float
    removed: float  # fraction of the layers' parameters
    passes: float  # dense passes of training and search; calibrating, slicing and what is sampled are not included
    prefill: float | None
    decode: float | None
    loops: float | None  # fraction of fifty greedy answers in which a 4-gram comes three times
    answer_tokens: float | None  # mean length of these answers
    date: str
    commit: str  # of the code that wrote the cell

    @property
    def model_name(self) -> str:
        """The model's name for people, without its owner."""
        return (DEFAULT_HUB_ID if self.model == DEFAULT else self.model).rpartition("/")[-1]

    @property
    def stage(self) -> str:
        """What was done besides slicing: one of `STAGES`."""
        if self.recovery != NO_RECOVERY:
            return "recovered"
        if self.ratios == SEARCH:
            return "searched"
        default = CalibrationConfig()
        is_default = (self.sequences, self.samples) == (default.sequences, default.samples)
        return "training-free" if is_default else "longer calibration"

    @property
    def other_estimator(self) -> str:
        """The estimator, unless it is the default or there is none."""
        return "" if self.ratios in (SEARCH, SliceConfig().estimator) else self.ratios

    @property
    def day(self) -> str:
        """The date of the measurement in the current language."""
        return day(datetime.date.fromisoformat(self.date))


class Timing(NamedTuple):
    """The dense default model, or a slice of `SPARSITY`: times per token relative to dense, measured in turns."""

    method: str  # or "dense"
    shapes: str  # a preset, or "" for free sizes
    divergence: float  # on Wikipedia
    prefill_1: float  # of one sequence
    decode_1: float
    prefill_8: float  # of eight sequences at once
    decode_8: float


OPTIONAL = ("prefill", "decode", "loops", "answer_tokens")  # None if only losses were measured
KEY = ("model", "method", "ratios", "recovery", "sequences", "samples", "sparsity", "text")


def read_rows(kind: type[Row], path: Path) -> tuple[Row, ...]:
    """The rows of a file that has a column for each field of `kind`; none if the file is missing."""
    if not path.is_file():
        return ()
    strings = [name for name, hint in get_type_hints(kind).items() if hint is str]
    numbers = [name for name in kind._fields if name not in strings]
    frame = pandas.read_csv(
        path, dtype=dict.fromkeys(strings, str), keep_default_na=False, na_values={name: [""] for name in numbers}
    )
    frame = frame.astype(object).where(frame.notna(), None)
    return tuple(kind(*row) for row in frame[list(kind._fields)].itertuples(index=False))


def merged(old: tuple[Cell, ...], new: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """All cells, sorted. `new` ones replace others of the same `KEY`, unless only the commit differs."""

    def key(cell: Cell) -> tuple[object, ...]:
        return tuple(getattr(cell, name) for name in KEY)

    cells = {key(cell): cell for cell in old}
    for cell in new:
        earlier = cells.get(key(cell))
        if earlier is not None and earlier.perplexity == cell.perplexity:  # what the new run left out
            missing = [name for name in OPTIONAL if getattr(cell, name) is None]
            cell = cell._replace(**{name: getattr(earlier, name) for name in missing})
        if earlier is None or earlier._replace(commit=cell.commit) != cell:
            cells[key(cell)] = cell
    return tuple(sorted(cells.values(), key=lambda cell: (cell.parameters, *key(cell))))


def write(rows: Sequence[NamedTuple], path: Path) -> None:
    """Write a file of cells or other rows, whole or not at all."""
    unfinished = path.with_suffix(".new")
    pandas.DataFrame(rows, columns=rows[0]._fields).to_csv(unfinished, index=False)
    unfinished.replace(path)


@cache
def cells() -> tuple[Cell, ...]:
    """The cells that the page ships with."""
    return read_rows(Cell, FILE)


@cache
def timings(model: str) -> tuple[Timing, ...]:
    """The speeds that the page ships with, from `python -m tests.speeds`; none of other models than the default one."""
    return read_rows(Timing, TIMINGS) if model == DEFAULT else ()


def measured(model: str, sparsity: float = SPARSITY) -> LazyString | None:
    """What slicing a model by the defaults costs, in a sentence; None for a model that is not on the leaderboard."""
    for cell in cells():
        asked = cell.method, cell.stage, cell.other_estimator, cell.text, cell.sparsity
        if cell.model == model and asked == ("intraslice", "training-free", "", WIKIPEDIA, sparsity):
            return lazy_gettext(
                "Measured with {weights} weights: if {sparsity:.0%} is removed, perplexity on Wikipedia rises from "
                "{dense:.1f} to {sliced:.1f}.",
                weights=cell.weights,
                sparsity=sparsity,
                dense=cell.dense_perplexity,
                sliced=cell.perplexity,
            )
    return None
