"""Cached losses of dense and sliced models, updated after each window, and perplexities interpolated between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from intraslice.core.cache import cache_path
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.core.progress import Progress
from intraslice.core.records import read_record, write_record
from intraslice.evaluation.divergence import DenseStates
from intraslice.evaluation.perplexity import BLOCK, Losses, measure_losses

from ..i18n.language import LazyString, lazy_gettext, term
from ..jobs.job import Job
from ..jobs.jobs import job_progress
from .caches import CachedEntry, Caches
from .calibrations import Calibrated
from .choices import RECOVERIES, describe_text
from .request import DENSE, CalibrationKey, Request, SliceKey, default_slicing
from .views import Perplexities, Reading

Slicing = Callable[[Job, SliceKey, Calibrated], PreTrainedModel]

SLICING_NAMES = {  # by order and shapes
    ("one-shot", "free"): lazy_gettext("one-shot slicing"),
    ("one-shot", "runtime"): lazy_gettext("one-shot slicing, runtime shapes"),
    ("sequential", "free"): lazy_gettext("sequential slicing"),
    ("sequential", "runtime"): lazy_gettext("sequential slicing, runtime shapes"),
}


class Readings:
    """The losses of every model on the held-out text.

    Args:
        sliced: returns a method's model, sliced now or cached.
        curve: the snapshot's perplexities of the default setting by sparsity (a fraction).
    """

    def __init__(self, caches: Caches, sliced: Slicing, curve: Mapping[float, float]) -> None:
        self._caches, self._sliced, self._curve = caches, sliced, curve

    def cached_losses(self, key: SliceKey) -> CachedEntry[Losses] | None:
        """The losses of a method or of the "dense" model, possibly on the first windows only."""
        return self._caches.losses.get(key)

    def perplexity(self, key: SliceKey) -> float | None:
        """A method's perplexity, or None before all windows are measured."""
        cached = self.cached_losses(key)
        return cached.value.perplexity().value if cached and _is_whole(cached.value) else None

    def losses(self, job: Job, key: SliceKey, calibrated: Calibrated, compared: bool = False) -> Losses:
        """Measure the losses of a method's model or of the "dense" one; slices first if necessary.

        `compared` adds the divergence from the dense model. The slider leaves it out: it runs the head twice, and the
        dense model once more if its states are not cached.
        """
        is_dense = key.method == DENSE
        sequences = 0 if is_dense else calibrated.sequences
        cached = self._caches.losses.get(key)
        cached_losses = cached.value if cached is not None and cached.sequences >= sequences else None
        is_whole = cached_losses is not None and _is_whole(cached_losses)
        if cached_losses is not None and is_whole and (cached_losses.divergences or not compared):
            return cached_losses  # possibly from more calibration sequences than `calibrated`
        dense = calibrated.loaded
        model = dense.model if is_dense else self._sliced(job, key, calibrated)

        def measure(job: Job) -> Losses:
            report = job_progress(job, _status_text(key.method), when_done=True)

            def progress(event: Progress) -> None:
                if event.partial is not None and event.done and not is_whole:  # partial losses never replace whole ones
                    self._store(key, CachedEntry(event.partial(), sequences))
                if event.done and not is_dense:
                    job.note_result()
                report(event)

            # The dense losses depend on the model and the text alone, so they are cached on disk.
            path = cache_path("losses", ".json", dense.fingerprint, model.dtype, calibrated.windows)
            losses = _read_losses(path) if is_dense else None
            if losses is None:
                states = self._states_of(key.calibration, dense.model) if compared else None
                losses = measure_losses(model, calibrated.windows, dense=states, progress=progress)
                if is_dense:
                    write_record(path, asdict(losses), "the dense losses")
            self._store(key, CachedEntry(losses, sequences))
            points = self._caches.curves.get(_curve_key(key)) or {}
            self._caches.curves.put(_curve_key(key), points | {key.config.sparsity: losses.perplexity().value})
            return losses

        return job.share(("losses", key, sequences, compared), measure)

    def _states_of(self, key: CalibrationKey, dense: PreTrainedModel) -> DenseStates:
        """The dense states with which all models of a calibration are compared."""
        return self._caches.states.get(key) or self._caches.states.put(key, DenseStates(dense))

    def divergence(self, key: SliceKey) -> Reading | None:
        """A method's KL divergence from the dense model in nats per token, or None before it is measured."""
        cached = self.cached_losses(key)
        if cached is None or not _is_whole(cached.value) or (divergence := cached.value.divergence()) is None:
            return None
        return Reading(*divergence, cached.value.done, cached.value.total)

    def perplexities(self, request: Request, best: Calibrated | None) -> Perplexities:
        """The perplexities measured for a setting, and an interpolated one.

        Args:
            best: the setting's calibration on the sequences seen so far.
        """
        key, expected = request.calibration, self._expected(request)
        if best is None:
            return Perplexities(expected=expected)
        text, (windows, window) = describe_text(key.config.text), best.windows.shape
        dense_key = request.slice_key(DENSE)
        sliced_key = request.slice_key("intraslice") if request.slicing.sparsity else dense_key
        dense, sliced = self.cached_losses(dense_key), self.cached_losses(sliced_key)
        ratio = None
        if dense and sliced:
            ratio = Reading(*sliced.value.ratio(dense.value), sliced.value.done, sliced.value.total)
        return Perplexities(
            dense=self.perplexity(dense_key),
            sliced=self.perplexity(sliced_key),
            dense_reading=dense and _reading(dense.value),
            sliced_reading=sliced and _paired(sliced.value, dense and dense.value),
            ratio=ratio,
            expected=expected,
            sequences=sliced.sequences if sliced and request.slicing.sparsity else best.sequences,
            all_sequences=len(best.tokens),
            protocol=lazy_gettext(
                "Perplexity on {tokens:,} tokens in windows of {window} without overlap, the first "
                "token of each not scored; text: {text}. Calibrated on {sequences} x {length} "
                "tokens of other documents of the same text, seed {seed}; {slicing}; {dtype}. "
                "Standard errors are computed over blocks of {block} tokens.",
                tokens=windows * window,
                window=window,
                text=text,
                block=BLOCK,
                dtype=key.dtype,
                sequences=key.config.sequences,
                length=key.config.length,
                seed=key.config.seed,
                slicing=_slicing_name(request.slicing),
            ),
            text=lazy_gettext("held-out Wikipedia") if "Wikipedia" in text else lazy_gettext("held-out text"),
        )

    def _store(self, key: SliceKey, losses: CachedEntry[Losses]) -> None:
        """Cache losses, unless whole ones from more calibration sequences are cached."""
        cached = self._caches.losses.get(key)
        if cached is None or cached.sequences <= losses.sequences or not _is_whole(cached.value):
            self._caches.losses.put(key, losses)

    def _expected(self, request: Request) -> float | None:
        """The perplexity, interpolated linearly in its logarithm between measured ones; None outside of these."""
        key, sparsity = _curve_key(request.slice_key("intraslice")), request.slicing.sparsity
        is_default = request.is_default_calibration and key.config == replace(default_slicing(), sparsity=0.0)
        points = dict(self._curve) if is_default else {}
        dense = self.perplexity(request.slice_key(DENSE))
        points |= ({} if dense is None else {0.0: dense}) | (self._caches.curves.get(key) or {})
        if len(points) < 2 or not min(points) <= sparsity <= max(points):
            return None
        removed, measured = zip(*sorted(points.items()), strict=True)
        return float(np.exp(np.interp(sparsity, removed, np.log(measured))))


def _slicing_name(config: SliceConfig) -> LazyString:
    """How the model is sliced, for the protocol."""
    name = SLICING_NAMES[config.order, config.shapes]
    if config.recovery == NO_RECOVERY:
        return name
    return lazy_gettext(
        "{slicing}, recovery: {recovery}",
        slicing=name,
        recovery=LazyString(lambda: term(RECOVERIES[config.recovery].label)),
    )


def _status_text(method: str) -> LazyString:
    """The text of the status while a method's perplexity is measured."""
    texts = {
        "dense": lazy_gettext("Perplexity of the dense model, window"),
        "intraslice": lazy_gettext("Perplexity of the sliced model, window"),
    }
    return texts.get(method) or lazy_gettext("Perplexity of the {method} model, window", method=method)


def _curve_key(key: SliceKey) -> SliceKey:
    """The key of a curve of perplexity by sparsity: the slice's key without its sparsity."""
    return key._replace(config=replace(key.config, sparsity=0.0))


def _is_whole(losses: Losses) -> bool:
    return losses.done == losses.total


def _reading(losses: Losses) -> Reading:
    return Reading(*losses.perplexity(), losses.done, losses.total)


def _paired(sliced: Losses, dense: Losses | None) -> Reading:
    """The sliced model's perplexity; before all windows are measured, its ratio times the dense perplexity.

    The first windows may be easy or hard; in the ratio on the same windows that cancels.
    """
    if _is_whole(sliced) or dense is None or not _is_whole(dense):
        return _reading(sliced)
    whole, ratio = dense.perplexity().value, sliced.ratio(dense)
    error = None if ratio.standard_error is None else whole * ratio.standard_error
    return Reading(whole * ratio.value, error, sliced.done, sliced.total)


def _read_losses(path: Path) -> Losses | None:
    record = read_record(path)
    if not record:
        return None
    sums, sizes, divergences = tuple(map(tuple, record["sums"])), tuple(record["sizes"]), tuple(record["divergences"])
    return Losses(record["done"], record["total"], sums, sizes, divergences)
