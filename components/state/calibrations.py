"""Models and their calibrations: loaded and computed on demand, and used while calibration is still running.

A calibration's sums are valid after every sequence, so plans and slices use the sequences seen so far.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from intraslice import token_windows
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.progress import Progress
from intraslice.loading import LoadedModel, load_model, require_dense
from intraslice.pretrained.hub import fetched_for_others
from intraslice.pretrained.memory import calibration_bytes, estimate_memory, require_calibration_memory
from intraslice.pretrained.sources import DEFAULT, verify_weights
from intraslice.samples import with_samples
from intraslice.slicing.one_shot import SliceCache
from intraslice.token_windows import describe
from intraslice.untrusted.text_files import reading_bytes

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..jobs.waiting import JobSemaphore
from .caches import BUDGET, Caches, JobMemory, return_freed_memory
from .plan_views import Source
from .precomputed import Precomputed, cache_profile, cached_profiles
from .request import CalibrationKey
from .units import units_of
from .views import Provenance

READERS = JobSemaphore(limits.MAX_READERS, lazy_gettext("Waiting for other uploads to be read"))
SAMPLING = lazy_gettext("Sampling text from the dense model, token")
MIN_SEQUENCES = 4  # that a slice needs: one from fewer sequences says little


@dataclass(frozen=True)
class Calibrated:
    """A model with its calibration on the first `sequences` of its tokens, and the plans' source derived from it."""

    loaded: LoadedModel
    stats: CalibrationStats
    training: torch.Tensor  # (more sequences, length): calibration tokens and the text after them, for training
    tokens: torch.Tensor  # (all sequences, length): the calibration tokens, and then the samples
    windows: torch.Tensor  # held-out text (windows, window)
    source: Source
    sequences: int
    slice_cache: SliceCache = field(default_factory=SliceCache)  # of slices without recovery, which no job changes

    @property
    def is_whole(self) -> bool:
        """Whether the calibration includes all sequences."""
        return self.sequences == len(self.tokens)


class Calibrations:
    """Cached models and calibrations. Methods that take a `job` run in it; jobs that need the same share the work."""

    def __init__(self, caches: Caches, device: str, evaluation_tokens: int, precomputed: Precomputed) -> None:
        if limits.hosted():
            verify_weights(DEFAULT)
        self._caches, self._device, self._precomputed = caches, device, precomputed
        # No load waits for calibrations that wait.
        self._memory, self._loads, self._reads = (JobMemory(caches, device) for _ in range(3))
        self._evaluation_tokens = evaluation_tokens
        # A job or a calibration may still use what the caches have evicted: its memory is in use, so others share it.
        self._in_use: WeakValueDictionary[CalibrationKey, Calibrated] = WeakValueDictionary()
        self._models_in_use: WeakValueDictionary[tuple[str, str], LoadedModel] = WeakValueDictionary()

    def best(self, key: CalibrationKey) -> Calibrated | None:
        """The calibration on the sequences seen so far, or None."""
        return self._caches.calibrations.get(key) or self._in_use.get(key)

    def whole(self, key: CalibrationKey) -> Calibrated | None:
        """The calibration if it includes all sequences, or None."""
        calibrated = self.best(key)
        return calibrated if calibrated is not None and calibrated.is_whole else None

    def partial_sources(self, key: CalibrationKey) -> dict[int, Source]:
        """The sources of plans while the calibration was running, by the number of sequences."""
        return self._caches.partial_sources.get(key) or {}

    def load(self, job: Job, key: CalibrationKey) -> LoadedModel:
        """The dense model. Raises UserError if it cannot be loaded or is already sliced."""
        loaded = self.load_any(job, key)
        require_dense(loaded)
        return loaded

    def load_any(self, job: Job, key: CalibrationKey) -> LoadedModel:
        """The model, dense or sliced. Raises UserError if it cannot be loaded."""
        return job.share(("model", key.model, key.dtype), lambda job: self._load(job, key))

    def calibrate(self, job: Job, key: CalibrationKey, whole: bool = True, more_than: int = 0) -> Calibrated:
        """Calibrate on all sequences; without `whole` on enough to slice from, and on more than `more_than`."""

        def sufficient() -> Calibrated | None:
            best = self.best(key)
            if best is None or best.is_whole:
                return best
            return best if not whole and best.sequences >= max(MIN_SEQUENCES, more_than + 1) else None

        while (calibrated := sufficient()) is None:  # again if the cache has already evicted the result
            with job.begin(("calibration", key), lambda job: self._calibrate(job, key)) as calibration:
                if calibration.wait(until=lambda: sufficient() is not None):
                    calibration.result()  # raises the calibration's error, if any
        return calibrated

    def holding(self, job: Job, key: CalibrationKey) -> AbstractContextManager[None]:
        """A context in which a running calibration is kept even while no job waits for it."""
        return job.holding(("calibration", key))

    @staticmethod
    def bounded_hub_cache(model: str) -> AbstractContextManager[None]:
        """A context in which a model may be fetched: on a hosted page its clients' models are bounded."""
        is_bounded = limits.hosted() and model != DEFAULT
        return fetched_for_others(model, limits.HUB_BYTES.value) if is_bounded else nullcontext()

    def _load(self, job: Job, key: CalibrationKey) -> LoadedModel:
        loaded = self._caches.models.get(key[:2])
        if loaded is None:
            loaded = self._models_in_use.get(key[:2]) or self._load_now(job, key)
            self._models_in_use[key[:2]] = self._caches.models.put(key[:2], loaded)
        return loaded

    def _load_now(self, job: Job, key: CalibrationKey) -> LoadedModel:
        loading, dtype = Status(lazy_gettext("Loading {model}", model=key.model)), getattr(torch, key.dtype)
        job.emit(loading)
        with job.waiting():
            estimate = estimate_memory(key.model, dtype, self._device)
        # One for which the caches' memory would not be enough is refused, and they keep theirs.
        fits = estimate.needed <= estimate.available + BUDGET.held_bytes()
        with self._loads.reserved(job, estimate.needed if fits else 0, None):
            job.emit(loading)
            with job.waiting(), self.bounded_hub_cache(key.model):
                loaded = load_model(key.model, dtype, self._device, progress=lambda _: job.raise_if_cancelled())
                key.note_identity(loaded.identity)  # computed here, where others run
                return loaded

    def _calibrate(self, job: Job, key: CalibrationKey) -> None:
        if self.whole(key) is not None:
            return
        loaded = self.load(job, key)
        model, config = loaded.model, key.config
        # Two copies of the sums: plans and slices use a copy while calibration continues.
        sizes = model.config, config.sequences + config.samples, config.length, model.dtype
        with self._memory.reserved(job, calibration_bytes(*sizes, copies=2), loaded):
            require_calibration_memory(*sizes, self._device, copies=2)
            self._calibrate_now(job, key, loaded)

    def _calibrate_now(self, job: Job, key: CalibrationKey, loaded: LoadedModel) -> None:
        job.emit(Status(lazy_gettext("Reading text: {text}", text=describe(key.config.text))))
        evaluation = key.evaluation(self._evaluation_tokens)
        needed = reading_bytes(key.config.text)
        with self._reads.reserved(job, needed, loaded) if needed else nullcontext(), READERS.held(job), job.waiting():
            training = token_windows.training_tokens(loaded.tokenizer, key.config, evaluation.text)
            windows = token_windows.evaluation_tokens(loaded.tokenizer, evaluation, key.config.text)
        text, head_weights = training[: key.config.sequences], loaded.model.lm_head.weight.numel()
        tokens = with_samples(loaded, text, key.config, job_progress(job, SAMPLING))
        sources = {
            count: Source(profile, head_weights, key, Provenance("so far", count, len(tokens)))
            for count, profile in cached_profiles(loaded, tokens).items()
        }
        self._caches.partial_sources.put(key, sources)
        report = job_progress(job, lazy_gettext("Calibrating {model}, sequence", model=Path(key.model).name))

        def keep(event: Progress, stats: CalibrationStats, sequences: int) -> None:
            """Publish the calibration on the first `sequences`; reports `event` again while it is prepared."""
            is_part = sequences < len(tokens)
            best = self.best(key)
            if is_part and best is not None and best.sequences >= sequences:  # one that was stopped came further
                return
            profile = stats.make_profile(progress=lambda _: report(event))
            provenance = Provenance("so far" if is_part else "here", sequences, len(tokens))
            units = units_of(loaded.model, stats, lambda: report(event))
            source = Source(profile, head_weights, key, provenance, units)
            if is_part:
                cache_profile(loaded, tokens, sequences, profile)
                self._caches.partial_sources.put(key, self.partial_sources(key) | {sequences: source})
            calibrated = Calibrated(loaded, stats, training, tokens, windows, source, sequences)
            self._in_use[key] = self._caches.calibrations.put(key, calibrated)

        # Published whenever the number of sequences has doubled. One for which the page has plans waits until it is
        # enough to slice from.
        next_count = MIN_SEQUENCES if self._precomputed.source(key) else 1
        last = Progress("calibrate", len(tokens), len(tokens))  # where a whole one is on the disk

        def progress(event: Progress) -> None:
            nonlocal next_count, last
            last = event
            report(event)
            if event.partial is not None and next_count <= event.done < event.total:
                keep(event, event.partial(), event.done)
                next_count = 2 * event.done

        stats = calibrate(loaded, tokens, progress=progress)
        keep(last, stats, len(tokens))
        return_freed_memory()  # from the backward passes; the C library would keep it for this thread
