"""The choice of the estimator by measurement, once for each calibration."""

from functools import cache

from intraslice.core.progress import ProgressCallback
from intraslice.search.choice import Choice, choose_estimator
from intraslice.search.ratio_search import search_bytes

from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Urgency
from ..jobs.jobs import job_progress
from .caches import JobMemory
from .calibrations import SAMPLING, Calibrated
from .precomputed import CHOICE, Precomputed
from .request import CalibrationKey

CHOOSING = lazy_gettext("Choosing the estimator by measurement:")


def note_stored(precomputed: Precomputed) -> None:
    """Set the stored choices, for their weights and for before these are loaded."""
    for manifest in precomputed.manifests.values():
        for dtype, digest in manifest.weights.items():
            key = CalibrationKey(manifest.model, dtype, manifest.calibration)
            if found := precomputed.find(CHOICE, key, Choice):
                for weights in ("", digest):
                    key.note_choice(found.value, weights)


def choose(job: Job, calibrated: Calibrated, key: CalibrationKey, memory: JobMemory) -> None:
    """Measure in the background which estimator is the best for a whole calibration; sets the choice of its key."""

    def measure(job: Job) -> None:
        loaded, stats, text = calibrated.loaded, calibrated.stats, calibrated.training[key.config.sequences :]

        @cache
        def report(stage: str) -> ProgressCallback:  # each times from its first event
            return job_progress(job, SAMPLING if stage == "samples" else CHOOSING)

        with memory.reserved(job, search_bytes(loaded.model), calibrated):
            choice = choose_estimator(loaded, stats, text, key.config.seed, progress=lambda at: report(at.stage)(at))
            key.note_choice(choice)

    urgency, job.urgency = job.urgency, Urgency.BACKGROUND
    job.share(("choice", key), measure)
    job.urgency = urgency
