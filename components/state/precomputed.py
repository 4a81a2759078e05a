"""Measurements of the default model at every percentage of sparsity, made before and shown at once.

`assets/measured.json` has a line per setting: perplexity on the held-out text, its ratio to the dense model's and the
KL divergence from it, each with its standard error, and the speed relative to the dense model's.
`python -m components.make_snapshots --only measured` measures them again.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from intraslice.core.config import SliceConfig

from ...assets import ASSETS
from ...i18n.language import lazy_day
from ..request import default_slicing
from ..views import Reading, StoredMeasurement

FILE = ASSETS / "measured.json"
DIGITS = 5  # significant


class Columns(NamedTuple):
    """A line of the file, at a percentage of sparsity; speeds in multiples of the dense model's."""

    percent: int
    perplexity: float
    perplexity_error: float
    ratio: float
    ratio_error: float
    divergence: float  # KL, nats per token
    divergence_error: float
    prefill: float | None = None
    decode: float | None = None


@dataclass(frozen=True)
class Measurements:
    """The default model's measurements by estimator, order and percentage, and how they were made."""

    dtype: str
    tokens: int
    windows: int
    dense: Reading
    series: Mapping[tuple[str, str], Mapping[int, StoredMeasurement]]

    def at(self, slicing: SliceConfig) -> StoredMeasurement | None:
        """The measurement at a setting; None if there is none, or if a setting that was not varied is not the default.

        A percentage between whole ones has none.
        """
        percent, series = 100 * slicing.sparsity, self._series_of(slicing)
        if not series or not math.isclose(percent, round(percent), abs_tol=1e-6):
            return None
        return series.get(round(percent))

    def curve(self, slicing: SliceConfig) -> dict[float, float]:
        """Perplexity by sparsity (a fraction) of the setting's estimator and order, to interpolate between."""
        series = self._series_of(slicing)
        return {percent / 100: measured.perplexity.value for percent, measured in series.items()}

    def _series_of(self, slicing: SliceConfig) -> Mapping[int, StoredMeasurement]:
        default, estimator, order = default_slicing(), slicing.estimator, slicing.order
        is_known = slicing == replace(default, sparsity=slicing.sparsity, estimator=estimator, order=order)
        return self.series.get((slicing.estimator, slicing.order), {}) if is_known else {}


def load(path: Path = FILE) -> Measurements | None:
    """The measurements; None if the file is missing."""
    if not path.is_file():
        return None
    record = read(path)
    windows = record["tokens"] // record["window"]

    def reading(value: float, error: float) -> Reading:
        return Reading(value, error, windows, windows)

    def measured(line: Columns) -> StoredMeasurement:
        _, *perplexity, ratio, ratio_error, divergence, divergence_error, prefill, decode = line
        readings = (reading(*perplexity), reading(ratio, ratio_error), reading(divergence, divergence_error))
        return StoredMeasurement(day, *readings, prefill, decode)

    day, dense = lazy_day(record["day"]), reading(*record["dense"])
    nothing_removed = {0: StoredMeasurement(day, dense, reading(1.0, 0.0), reading(0.0, 0.0), 1.0, 1.0)}
    series = {
        (part["estimator"], part["order"]): nothing_removed
        | {line[0]: measured(Columns(*line)) for line in part["lines"]}
        for part in record["series"]
    }
    return Measurements(record["dtype"], record["tokens"], windows, dense, series)


def read(path: Path = FILE) -> dict[str, Any]:
    """The file's content."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write(record: dict[str, Any], path: Path = FILE) -> None:
    """Write a record with today's date, a line per measurement, rounded to `DIGITS` significant digits."""
    about = {name: value for name, value in record.items() if name != "series"}
    about["day"] = f"{datetime.date.today():%d %B %Y}"
    parts = []
    for part in record["series"]:
        lines = ",\n".join(json.dumps([_rounded(value) for value in line]) for line in sorted(part["lines"]))
        head = json.dumps({name: value for name, value in part.items() if name != "lines"})
        parts.append(f'{head[:-1]}, "lines": [\n{lines}\n]}}')
    path.write_text(json.dumps(about)[:-1] + ', "series": [\n' + ",\n".join(parts) + "\n]}\n", encoding="utf-8")


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
