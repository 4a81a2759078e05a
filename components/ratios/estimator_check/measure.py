"""Was the estimator right? Every module sliced alone, measured on held-out text, beside what was foretold of it.

That of the default model is kept in the repository (`make_snapshots.py`), so that the page has it at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from components.assets import ASSETS
from components.i18n.language import lazy_gettext
from components.jobs.job import Job
from components.jobs.jobs import job_progress
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.ratios.estimator_check.views import Misjudged, ModuleVerdict, VerdictView
from components.state.caches import BoundedCache
from components.state.calibrations import Calibrated
from components.state.request import CalibrationKey, Request
from components.state.session import Session
from components.state.snapshots import modules as modules_file
from intraslice.core.config import CalibrationConfig, EvaluationConfig
from intraslice.core.progress import ProgressCallback
from intraslice.data import evaluation_tokens
from intraslice.diagnostics.rank_agreement import compare_ranks
from intraslice.diagnostics.sensitivity import ModuleDamage, Sensitivity, kept_sensitivity, measure_sensitivity
from intraslice.planning.profile import Profile

FILE = ASSETS / "sensitivity.json"
RATIO = 0.3
KEPT = EvaluationConfig(tokens=8192)  # what the default model's are measured on, once


class Verdicts:
    """What has been measured, by model and calibration."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: BoundedCache[CalibrationKey, VerdictView] = BoundedCache(100)

    def known(self, request: Request) -> VerdictView | None:
        """The verdict, where all its measurements are there, or that of the default model, kept in the repository."""
        key = request.calibration
        if (view := self._known.get(key)) is not None:
            return view
        source = self._session.source(request)
        if source is None:
            return None
        if self._session.is_calibrated(request):
            calibrated = self._session.calibrated(request)
            sensitivity = kept_sensitivity(calibrated.loaded, calibrated.stats, calibrated.windows, RATIO)
            if sensitivity is not None:
                return self._judged(key, calibrated, sensitivity)
        return _kept(source.profile) if request.is_default_calibration and FILE.is_file() else None

    def measure(self, request: Request, client: str) -> Iterator[Status | VerdictView]:
        """Measure what is not measured yet; ends with the verdict or an error status. What is done is kept."""

        def work(job: Job) -> None:
            calibrated = self._session.calibrations.calibrate(job, request.calibration)
            progress = job_progress(job, lazy_gettext("Slicing one module alone:"))
            loaded, stats, windows = calibrated.loaded, calibrated.stats, calibrated.windows
            sensitivity = measure_sensitivity(loaded, stats, windows, RATIO, progress=progress)
            job.emit(self._judged(request.calibration, calibrated, sensitivity))

        yield from self._session.jobs.run(client, "sensitivity", work, urgency=Urgency.BACKGROUND)

    def _judged(self, key: CalibrationKey, calibrated: Calibrated, sensitivity: Sensitivity) -> VerdictView:
        measured_on = lazy_gettext(
            "{tokens:,} held-out tokens{rounding}", tokens=sensitivity.tokens, rounding=rounding(key)
        )
        return self._known.put(key, verdict_view(sensitivity, calibrated.source.profile, measured_on))


def rounding(key: CalibrationKey) -> str:
    """What is to be known of numbers in a low precision."""
    if key.dtype == "float32":
        return ""
    return lazy_gettext(" in {dtype}, whose rounding alone is some {nats:.3f} nats", dtype=key.dtype, nats=0.002)


def verdict_view(sensitivity: Sensitivity, profile: Profile, measured_on: str) -> VerdictView:
    """Measurements and what the estimators foretold of them, as plain numbers."""
    agreement = compare_ranks(sensitivity, profile)
    assert sensitivity.ratio is not None  # measured alone, not in context
    modules = tuple(
        ModuleVerdict(
            layer=int(row["layer"]),
            module=row["module"],
            damage=row["damage"],
            error=row["standard_error"] or 0.0,
            place=int(row["place"]),
            predicted={name: row[name] for name in profile.estimators},
            places={name: int(row[f"place_{name}"]) for name in profile.estimators},
        )
        for _, row in agreement.modules.iterrows()
    )
    return VerdictView(
        ratio=sensitivity.ratio,
        tokens=sensitivity.tokens,
        modules=modules,
        rho=agreement.rho,
        ceiling=agreement.ceiling,
        misjudged=tuple(
            Misjudged(
                module.estimator,
                int(module.layer),
                module.module,
                int(module.measured),
                int(module.predicted),
                module.of,
            )
            for module in agreement.misjudged
        ),
        measured_on=measured_on,
    )


def long_measurement(calibrated: Calibrated, progress: ProgressCallback | bool = True) -> Sensitivity:
    """Measure every module of the default model on more text; takes half an hour of one core."""
    windows = evaluation_tokens(calibrated.loaded.tokenizer, KEPT, CalibrationConfig().text)
    return measure_sensitivity(calibrated.loaded, calibrated.stats, windows, RATIO, progress=progress)


def _kept(profile: Profile) -> VerdictView:
    record = modules_file.load(FILE)
    modules = tuple(ModuleDamage(**module) for module in record["modules"])
    sensitivity = Sensitivity(record["ratio"], record["base_loss"], record["tokens"], modules)
    return verdict_view(sensitivity, profile, record["measured_on"])


def save(sensitivity: Sensitivity) -> None:
    """Keep the default model's measurement for the page to open with."""
    modules_file.save(FILE, asdict(sensitivity))
