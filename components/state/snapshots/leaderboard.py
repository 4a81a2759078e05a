"""Measurements of methods at equal parameters, on several models and texts: `assets/leaderboard.csv`.

`python -m components.make_leaderboard` measures them. The file has a line per cell, in the columns of `Cell`.
"""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pandas

from ...assets import ASSETS
from ...i18n.language import LazyString, day, lazy_gettext
from ..choices import NO_RECOVERY

FILE = ASSETS / "leaderboard.csv"
WIKIPEDIA = "wikipedia"  # the text of the readings on the page
SEARCH = "search"  # in place of an estimator: ratios that a search found


class Cell(NamedTuple):
    """A sliced model on a text. Costs are in dense passes, beside calibrating and slicing; speeds relative to dense.

    Speeds and answers do not depend on the text.
    """

    model: str  # as in the page's list of models
    weights: str  # the type of the GGUF file that was dequantised
    parameters: int  # of the dense model
    method: str
    ratios: str  # the estimator, SEARCH, or "" for a method that uses none
    recovery: str
    sparsity: float
    text: str
    dense_perplexity: float
    perplexity: float
    ratio: float  # to the dense perplexity
    ratio_error: float  # paired
    divergence: float  # KL from the dense model, nats per token
    divergence_error: float
    removed: float  # fraction of the layers' parameters
    passes: float
    prefill: float | None
    decode: float | None
    loops: float | None  # fraction of fifty greedy answers in which a 4-gram comes three times
    answer_tokens: float | None  # mean length of these answers
    date: str
    commit: str

    @property
    def stage(self) -> str:
        """How much work was spent on the slice: one of `make_leaderboard.STAGES`."""
        if self.recovery != NO_RECOVERY:
            return "recovered"
        return "searched" if self.ratios == SEARCH else "training-free"

    @property
    def day(self) -> str:
        """The date of the measurement in the current language."""
        return day(datetime.date.fromisoformat(self.date))


OPTIONAL = ("prefill", "decode", "loops", "answer_tokens")  # measured for small models only
KEY = ("model", "method", "ratios", "recovery", "sparsity", "text")


def read(path: Path = FILE) -> tuple[Cell, ...]:
    """All cells; none if the file is missing."""
    if not path.is_file():
        return ()
    text = {"ratios": str, "recovery": str, "commit": str}
    frame = pandas.read_csv(path, dtype=text, keep_default_na=False, na_values={name: [""] for name in OPTIONAL})
    frame = frame.astype(object).where(frame.notna(), None)
    return tuple(Cell(*row) for row in frame[list(Cell._fields)].itertuples(index=False))


def merged(old: tuple[Cell, ...], new: tuple[Cell, ...]) -> tuple[Cell, ...]:
    """`new` cells replace old ones of the same `KEY`, unless only the commit differs; sorted."""

    def key(cell: Cell) -> tuple[object, ...]:
        return tuple(getattr(cell, name) for name in KEY)

    cells = {key(cell): cell for cell in old}
    for cell in new:
        earlier = cells.get(key(cell))
        if earlier is None or earlier._replace(commit=cell.commit) != cell:
            cells[key(cell)] = cell
    return tuple(sorted(cells.values(), key=lambda cell: (cell.parameters, *key(cell))))


def write(cells: tuple[Cell, ...], path: Path = FILE) -> None:
    """Write the file."""
    pandas.DataFrame(cells, columns=Cell._fields).to_csv(path, index=False)


@cache
def cells() -> tuple[Cell, ...]:
    """The cells that the page ships with."""
    return read()


def measured(model: str, sparsity: float = 0.3) -> LazyString | None:
    """What slicing a model costs at a sparsity, in a sentence; None for a model that is not on the leaderboard."""
    for cell in cells():
        asked = cell.method, cell.stage, cell.text, cell.sparsity
        if cell.model == model and asked == ("intraslice", "training-free", WIKIPEDIA, sparsity):
            return lazy_gettext(
                "Measured with {weights} weights: removing {sparsity:.0%} raises perplexity on Wikipedia from "
                "{dense:.1f} to {sliced:.1f}.",
                weights=cell.weights,
                sparsity=sparsity,
                dense=cell.dense_perplexity,
                sliced=cell.perplexity,
            )
    return None
