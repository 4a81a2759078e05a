"""Was the estimator right? Every module sliced alone, measured on held-out text, beside what was foretold of it.

That of the default model is kept in the repository (`make_snapshots.py`), so that the page has it at once.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Generator, Iterator
from dataclasses import asdict

from components.assets import ASSETS
from components.ratios.estimator_check.views import ModuleVerdict, VerdictView
from components.session.caches import BoundedCache
from components.session.jobs import told
from components.session.keys import CalibrationKey, calibration_key
from components.session.session import Calibrated, Session
from components.session.settings import Settings, Status
from intraslice.diagnostics.rank_agreement import JUDGED, judge
from intraslice.diagnostics.sensitivity import ModuleLoss, Sensitivity, measure_sensitivity
from intraslice.planning.importance import Profile
from intraslice.progress import Progress, finish

FILE = ASSETS / "sensitivity.json"
RATIO = 0.3
WINDOWS = 4  # of the held-out text


class Verdicts:
    """What has been measured, by model and calibration."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: BoundedCache[CalibrationKey, VerdictView] = BoundedCache(100)  # of size 1 each

    def known(self, settings: Settings) -> VerdictView | None:
        """The verdict, where all its measurements are there, or that of the default model, kept in the repository.

        Raises UserError for settings out of range.
        """
        key = calibration_key(settings)
        if (view := self._known.get(key)) is not None:
            return view
        source = self._session.source(settings)
        if source is None:
            return None
        if not source.label:  # it is no snapshot
            calibrated = self._session.calibrated(settings)
            measuring = measurement(calibrated)
            first = next(measuring)
            if first.done == first.total:
                return self._judged(key, calibrated, finish(measuring))
        return _kept(source.profile) if key == calibration_key(Settings()) and FILE.is_file() else None

    def measure(self, settings: Settings, visitor: str) -> Iterator[Status]:
        """Measure what is not measured yet; ends with a ready or an error status. What is done when stopped is kept."""

        def work() -> Iterator[Status]:
            calibrated = yield from self._session.calibrating(settings)
            result = yield from told(measurement(calibrated), "Slicing one module alone:")
            self._judged(calibration_key(settings), calibrated, result)
            yield Status("Measured", "ready")

        jobs = self._session.jobs
        yield from jobs.run(visitor, jobs.start(visitor, live=False), work())

    def _judged(self, key: CalibrationKey, calibrated: Calibrated, result: Sensitivity) -> VerdictView:
        measured_on = f"{result.tokens:,} held-out tokens"
        return self._known.put(key, verdict_view(result, calibrated.source.profile, measured_on), 1)


def verdict_view(result: Sensitivity, profile: Profile, measured_on: str) -> VerdictView:
    """Measurements and what the estimators foretold of them, as plain numbers."""
    judgement = judge(result, profile)
    modules = tuple(
        ModuleVerdict(
            layer=int(row["layer"]),
            module=row["module"],
            increase=row["increase"],
            error=row["standard_error"],
            place=int(row["place"]),
            foretold={name: row[name] for name in JUDGED},
            places={name: int(row[f"place_{name}"]) for name in JUDGED},
        )
        for _, row in judgement.modules.iterrows()
    )
    return VerdictView(
        ratio=result.ratio,
        tokens=result.tokens,
        modules=modules,
        rho=judgement.rho,
        ceiling={kind: None if share is None else share**0.5 for kind, share in judgement.reliability.items()},
        misjudged=tuple(
            (one.estimator, int(one.layer), one.module, int(one.measured), int(one.foretold), one.of)
            for one in judgement.misjudged
        ),
        measured_on=measured_on,
    )


def measurement(calibrated: Calibrated) -> Generator[Progress, None, Sensitivity]:
    """Measure every module of a model on a few windows of its held-out text."""
    return measure_sensitivity(calibrated.loaded, calibrated.stats, calibrated.windows[:WINDOWS], RATIO)


def _kept(profile: Profile) -> VerdictView:
    record = json.loads(FILE.read_text(encoding="utf-8"))
    modules = tuple(ModuleLoss(**module) for module in record["modules"])
    result = Sensitivity(record["ratio"], record["dense_loss"], record["tokens"], modules)
    return verdict_view(result, profile, record["measured_on"])


def save(sensitivity: Sensitivity) -> None:
    """Keep the default model's measurement for the page to open with."""
    date = f"{datetime.date.today():%d %B %Y}"
    record = {**asdict(sensitivity), "measured_on": f"{sensitivity.tokens:,} held-out tokens, {date}"}
    FILE.write_text(json.dumps(record, indent=0), encoding="utf-8")
