"""Cached losses of dense and sliced models, updated after each window, and perplexities interpolated between them."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.config import CalibrationConfig, SliceConfig
from intraslice.core.progress import Progress
from intraslice.evaluation.perplexity import BLOCK, DenseStates, Losses, measure_half_window, measure_losses
from intraslice.recovery.registry import settings_of
from intraslice.token_windows import describe

from ..i18n.language import LazyString, lazy_gettext
from ..jobs.job import Job
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from .caches import BoundedCache, CachedEntry, Caches, CurveKey
from .calibrations import Calibrated
from .choices import METHODS, describe_samples, describe_slicing
from .precomputed import PERPLEXITY, Measurements, Precomputed
from .request import DENSE, CalibrationKey, Request, SliceKey
from .views import Basis, Perplexities, PrecomputedCosts, Provenance, Reading

Slicing = Callable[[Job, SliceKey, Calibrated], PreTrainedModel]

FORMAT = "4"  # of the losses: raise it when changed code alters them


class Readings:
    """The losses of every model on the held-out text. `sliced` returns a method's model, sliced now or cached."""

    def __init__(self, caches: Caches, sliced: Slicing, precomputed: Precomputed) -> None:
        self._caches, self._sliced, self._precomputed = caches, sliced, precomputed
        self._looked_up: BoundedCache[SliceKey, bool] = BoundedCache(10_000)  # on the disk; once, since it takes a hash

    def perplexity(self, key: SliceKey) -> float | None:
        """A method's perplexity, or None before all windows are measured."""
        cached = self._caches.losses.get(key)
        return _reading(cached.value).value if cached and _is_whole(cached.value) else None

    def losses(self, job: Job, key: SliceKey, calibrated: Calibrated, compared: bool = False) -> Losses:
        """The losses of a method's model or of the "dense" one, measured now or cached; slices first if necessary.

        `compared` adds the divergence from the dense model, which takes longer: the slider leaves it out.
        """
        is_dense = key.method == DENSE
        sequences = 0 if is_dense else calibrated.sequences
        self._recall(key, calibrated)
        if (whole := self._whole(key, sequences, compared)) is not None:
            return whole
        if self._caches.losses.get(key) is not None and not is_dense:
            job.note_result()  # its client sees it
        dense = calibrated.loaded.model
        model = dense if is_dense else self._sliced(job, key, calibrated)

        def measure(job: Job) -> Losses:
            if (whole := self._whole(key, sequences, compared)) is not None:  # measured while this was sliced
                return whole
            is_whole = self._whole(key, sequences, compared=False) is not None
            states = self.dense_states(key.calibration, dense) if compared else None
            is_first = not (is_dense or compared or self._caches.losses.get(key))
            if is_first and calibrated.windows.shape[1] > 2 * BLOCK:
                half = measure_half_window(model, calibrated.windows, progress=lambda _: job.checkpoint())
                self._store(key, CachedEntry(half, sequences))
                job.note_result()
                job.emit(Status(_status_text(key.method), "busy", 0, half.total))
            report = job_progress(job, _status_text(key.method), when_done=True)

            def progress(event: Progress) -> None:
                if event.partial is not None and event.done and not is_whole:  # partial losses never replace whole ones
                    self._store(key, CachedEntry(event.partial(), sequences))
                if event.done and not is_dense:
                    job.note_result()
                report(event)

            partial = self._partial(key, sequences, compared)
            losses = measure_losses(model, calibrated.windows, dense=states, so_far=partial, progress=progress)
            if is_dense or calibrated.is_whole:
                write_record(_path(key, calibrated), asdict(losses), "the losses")
            self._store(key, CachedEntry(losses, sequences))
            return losses

        return job.share(("losses", key, sequences, compared), measure)

    def _whole(self, key: SliceKey, sequences: int, compared: bool) -> Losses | None:
        """Cached losses on all windows of a slice from so many calibration sequences, or more."""
        cached = self._caches.losses.get(key)
        if cached is None or cached.sequences < sequences or not _is_whole(cached.value):
            return None
        return cached.value if cached.value.divergences or not compared else None

    def _partial(self, key: SliceKey, sequences: int, compared: bool) -> Losses | None:
        """The losses of just this slice on the first windows, which a stopped job has left behind."""
        cached = self._caches.losses.get(key)
        if cached is None or cached.sequences != sequences or not cached.value.done:
            return None
        if compared:
            return cached.value if cached.value.divergences else None
        return replace(cached.value, divergences=())

    def _recall(self, key: SliceKey, calibrated: Calibrated) -> None:
        """Read whole losses that were measured earlier from the disk, unless memory has them."""
        if self._looked_up.get(key):
            return
        self._looked_up.put(key, True)
        if record := read_record(_path(key, calibrated)):
            sequences = 0 if key.method == DENSE else len(calibrated.tokens)
            self._store(key, CachedEntry(Losses.from_record(record), sequences))

    def dense_states(self, key: CalibrationKey, dense: PreTrainedModel) -> DenseStates:
        """The dense states with which all models of a calibration are compared."""
        return self._caches.states.get(key) or self._caches.states.put(key, DenseStates(dense))

    def divergence(self, key: SliceKey) -> Reading | None:
        """A method's KL divergence from the dense model in nats per token, or None before it is measured."""
        cached = self._caches.losses.get(key)
        if cached is None or not _is_whole(cached.value) or (divergence := cached.value.divergence()) is None:
            return None
        return Reading(*divergence, cached.value.done, cached.value.total)

    def perplexities(self, request: Request, best: Calibrated | None, slicing: SliceConfig) -> Perplexities:
        """The best perplexities: measured here on all data, else before, else here so far.

        `best` is the setting's calibration so far, `slicing` the simplest config with its slice.
        """
        here, before = self._here(request, best), self._before(request, slicing)
        if before is None:
            return replace(here, expected=self._expected(request))
        return replace(here, costs=before.costs) if here.source.kind == "here" else before

    def _here(self, request: Request, best: Calibrated | None) -> Perplexities:
        """What is in memory and in the disk cache."""
        if best is None:
            return Perplexities()
        windows, window = best.windows.shape
        dense_key, sliced_key = request.slice_key(DENSE), request.slice_key("intraslice")
        self._recall(dense_key, best)
        self._recall(sliced_key, best)
        dense, sliced = self._caches.losses.get(dense_key), self._caches.losses.get(sliced_key)
        sequences, ratio, is_whole = best.sequences, None, False
        if sliced and request.slicing.sparsity:
            sequences = sliced.sequences
        if dense and sliced:
            ratio = _ratio(sliced.value, dense.value)
            is_whole = _is_whole(dense.value) and _is_whole(sliced.value) and sequences == len(best.tokens)
        divergence, key = self.divergence(sliced_key), request.calibration
        return Perplexities(
            dense=dense and _reading(dense.value),
            sliced=sliced and _paired(sliced.value, dense and dense.value),
            ratio=ratio,
            protocol=_protocol(key.config, request.slicing, windows, window, key.dtype),
            text=_text_name(request),
            source=Provenance("here" if is_whole else "so far", sequences, len(best.tokens)),
            divergence=None if divergence is None else divergence.value,
            basis=Basis(best.loaded.weights_digest, key.config.text, windows * window, window, key.dtype),
        )

    def _before(self, request: Request, slicing: SliceConfig) -> Perplexities | None:
        """What is in the precomputed layer."""
        found = self._precomputed.find(PERPLEXITY, request.calibration, Measurements)
        line = found and found.value.at(slicing)
        if not found or not line:
            return None
        window, windows = found.value.window, found.entry.tokens // found.value.window
        protocol = lazy_gettext(
            "Precomputed on {day}. {protocol}",
            day=found.source.day,
            protocol=_protocol(request.calibration.config, request.slicing, windows, window, found.entry.dtype),
        )
        return Perplexities(
            dense=Reading(*found.value.dense, windows, windows),
            sliced=Reading(line.perplexity, line.perplexity_error, windows, windows),
            ratio=Reading(line.ratio, line.ratio_error, windows, windows),
            protocol=protocol,
            text=_text_name(request),
            source=found.source,
            costs=PrecomputedCosts(found.source.day, line.divergence, line.prefill, line.decode),
            basis=Basis(found.weights, request.calibration.config.text, windows * window, window, found.entry.dtype),
        )

    def _store(self, key: SliceKey, losses: CachedEntry[Losses]) -> None:
        """Cache losses, unless whole ones from more calibration sequences are cached."""
        cached = self._caches.losses.get(key)
        if cached is None or cached.sequences <= losses.sequences or not _is_whole(cached.value):
            self._caches.losses.put(key, losses)
        if _is_whole(losses.value):
            points = self._caches.curves.get(_curve_key(key)) or {}
            points |= {key.config.sparsity: losses.value.perplexity().value}
            self._caches.curves.put(_curve_key(key), points)

    def _expected(self, request: Request) -> float | None:
        """The perplexity, interpolated linearly in its logarithm between measured ones; None outside of these."""
        key, sparsity = _curve_key(request.slice_key("intraslice")), request.slicing.sparsity
        found = self._precomputed.find(PERPLEXITY, request.calibration, Measurements)
        points = found.value.curve(request.slicing) if found else {}
        dense = self.perplexity(request.slice_key(DENSE))
        points |= ({} if dense is None else {0.0: dense}) | (self._caches.curves.get(key) or {})
        if len(points) < 2 or not min(points) <= sparsity <= max(points):
            return None
        removed, measured = zip(*sorted(points.items()), strict=True)
        return float(np.exp(np.interp(sparsity, removed, np.log(measured))))


def _status_text(method: str) -> LazyString:
    """The text of the status while a method's perplexity is measured."""
    if method == DENSE:
        return lazy_gettext("Perplexity of the dense model, window")
    if method == "intraslice":
        return lazy_gettext("Perplexity of the sliced model, window")
    return lazy_gettext("Perplexity of the {method} model, window", method=method)


def _curve_key(key: SliceKey) -> CurveKey:
    """The key of a curve of perplexity by sparsity: the slice's key without its sparsity."""
    return key.calibration, key.method, frozenset((vars(key.config) | {"sparsity": 0.0}).items())


@lru_cache(1_000)
def _protocol(config: CalibrationConfig, slicing: SliceConfig, windows: int, window: int, dtype: str) -> LazyString:
    return lazy_gettext(
        "Perplexity on {tokens:,} tokens in windows of {window} without overlap, the first "
        "token of each not scored; text: {text}. Calibrated on {sequences} x {length} "
        "tokens of other documents from the same source{sampled}, seed {seed}; {slicing}; {dtype}. "
        "Standard errors are computed over blocks of {block} tokens.",
        tokens=windows * window,
        window=window,
        text=describe(config.text),
        block=BLOCK,
        dtype=dtype,
        sequences=config.sequences,
        length=config.length,
        sampled=describe_samples(config),
        seed=config.seed,
        slicing=describe_slicing(slicing),
    )


def _text_name(request: Request) -> LazyString:
    is_wikipedia = "Wikipedia" in describe(request.calibration.config.text)
    return lazy_gettext("held-out Wikipedia") if is_wikipedia else lazy_gettext("held-out text")


def _is_whole(losses: Losses) -> bool:
    return losses.done == losses.total


# Asked for at every move of the slider.
@lru_cache(1_000)
def _reading(losses: Losses) -> Reading:
    return Reading(*losses.perplexity(), losses.windows, losses.total)


@lru_cache(1_000)
def _ratio(sliced: Losses, dense: Losses) -> Reading:
    return Reading(*sliced.ratio(dense), sliced.windows, sliced.total)


def _paired(sliced: Losses, dense: Losses | None) -> Reading:
    """The sliced perplexity; before all windows are measured, its ratio on the same windows times the dense one."""
    if _is_whole(sliced) or dense is None or not _is_whole(dense):
        return _reading(sliced)
    whole, ratio = _reading(dense).value, _ratio(sliced, dense)
    error = None if ratio.error is None else whole * ratio.error
    return replace(ratio, value=whole * ratio.value, error=error)


def _path(key: SliceKey, calibrated: Calibrated) -> Path:
    """Where the losses are on disk. A model in memory is not needed to find them, only its fingerprint."""
    sliced: tuple[object, ...] = ()
    if key.method != DENSE:
        sliced = calibrated.training, len(calibrated.tokens), key.method, key.config
        if (config := key.calibration.config).samples:  # which the training text does not have
            sliced = *sliced, calibrated.tokens[config.sequences :]
        if settings := settings_of(METHODS.require(key.method).recovery(key.config)):
            sliced = *sliced, settings
    dense = calibrated.loaded
    return cache_path("losses", ".json", FORMAT, dense.fingerprint, dense.model.dtype, calibrated.windows, *sliced)
