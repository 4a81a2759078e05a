"""The choice of the estimator by measurement, once for each calibration."""

from functools import cache

from intraslice.core.progress import Progress, ProgressCallback
from intraslice.search.choice import choose_estimator
from intraslice.search.ratio_search import search_bytes

from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Urgency
from ..jobs.jobs import job_progress
from .caches import JobMemory
from .calibrations import SAMPLING, Calibrated
from .request import CalibrationKey

CHOOSING = lazy_gettext("Choosing the estimator by measurement:")


def choose(job: Job, calibrated: Calibrated, key: CalibrationKey, memory: JobMemory) -> None:
    """Measure in the background which estimator is the best for a whole calibration; sets the choice of its key."""

    def measure(job: Job) -> None:
        loaded, stats, text = calibrated.loaded, calibrated.stats, calibrated.training[key.config.sequences :]

        @cache
        def report(stage: str) -> ProgressCallback:  # each times from its first event
            return job_progress(job, SAMPLING if stage == "samples" else CHOOSING)

        def progress(event: Progress) -> None:
            report(event.stage)(event)

        with memory.reserved(job, search_bytes(loaded.model), calibrated):
            key.note_choice(choose_estimator(loaded, stats, text, key.config.seed, progress=progress))

    urgency, job.urgency = job.urgency, Urgency.BACKGROUND
    job.share(("choice", key), measure)
    job.urgency = urgency
