"""Prepares the default model before the first client comes: its weights, its calibration, and the most usual slices.

Every page loads the weights when its process starts. A hosted one does the rest, too, unless `INTRASLICE_WARM` is
`0`; another one if it is `1`. All of it stays in memory although it is unused, until that memory is needed.
"""

import logging
import os
import threading

from .. import limits
from ..i18n.language import translate
from ..jobs.job import Job, Urgency
from ..jobs.jobs import EXPECTED, failure
from ..jobs.status import Status
from ..state.caches import BUDGET
from ..state.session import Session

log = logging.getLogger(__name__)

VARIABLE = "INTRASLICE_WARM"
SPARSITIES = (20, 30, 40, 10, 50)  # percent
RECOVERED = (20, 30, 40)
CLIENT = "warming"  # as which the scheduler knows the jobs


def is_wanted() -> bool:
    """Whether the environment asks for it, or a hosted page does because the environment says nothing."""
    value = os.environ.get(VARIABLE, "").strip()
    return value != "0" if value else limits.hosted()


def load_weights(session: Session) -> Job:
    """Start a job that loads the default model. Where that fails, the first client tries again, and is told."""

    def work(job: Job) -> None:
        try:
            session.calibrations.load(job, session.opening.calibration)
        except EXPECTED as problem:
            log.warning("the default model was not loaded: %s", problem)

    return session.jobs.scheduler.start(CLIENT, work, Urgency.BACKGROUND)


class Warming:
    """The background job; its `progress` is "calibration, 12 of 32", "done" or why it ended; empty before its start."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._step = self.progress = ""

    def start(self) -> threading.Thread:
        """Start the job; returns the thread that follows its progress."""
        self.progress = "waiting"
        job = self._session.jobs.scheduler.start(CLIENT, self._work, Urgency.BACKGROUND)
        thread = threading.Thread(target=self._follow, args=(job,), name="warming", daemon=True)
        thread.start()
        return thread

    def _follow(self, job: Job) -> None:
        try:
            for events in job.events():
                for event in events:
                    if isinstance(event, Status):
                        done = f", {event.done} of {event.total}" if event.total else ""
                        self.progress = f"{self._step}{done}"
            self.progress = "stopped" if job.stopped else "done"
        except Exception as problem:
            self.progress = f"failed: {translate(failure(problem).text)}"
            log.warning("warming ended: %s", problem)

    def _work(self, job: Job) -> None:
        session, first = self._session, self._session.opening
        self._begin("calibration", job)
        calibrated = session.calibrations.calibrate(job, first.calibration)
        session.keep(first)
        model = calibrated.loaded.model
        size = sum(parameter.nbytes for parameter in model.parameters())
        weights, length = calibrated.stats.profile.dense_decoder, calibrated.tokens.shape[1]
        self._begin("measurement", job)
        session.measure_perplexities(job, first)
        requests = [("slice", first.with_settings(sparsity=percent)) for percent in SPARSITIES]
        requests += [("recovery", first.with_settings(sparsity=percent, recovery="distill")) for percent in RECOVERED]
        for step, request in requests:
            if BUDGET.held_bytes() + size > BUDGET.max_bytes:
                log.info("warming ends: the caches have no memory for another slice")
                return
            if not session.slice_memory.can_train(request.slicing.recovery, model, weights, length):
                log.info("warming ends: training would leave other jobs too little memory")
                return
            self._begin(f"{step} at {request.settings.sparsity:g}%", job)
            session.slice(job, request)
            session.keep(request)

    def _begin(self, step: str, job: Job) -> None:
        self._step = self.progress = step
        job.checkpoint()
