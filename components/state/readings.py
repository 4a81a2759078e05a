"""Perplexities as they grow: losses window by window, kept by what they are of, and what to expect between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from components.i18n.language import LazyString, lazy_gettext, term
from components.jobs.job import Job
from components.jobs.jobs import job_progress
from components.state.caches import CachedEntry, Caches
from components.state.calibrations import Calibrated
from components.state.choices import RECOVERIES, describe_text
from components.state.request import DENSE, CalibrationKey, Request, SliceKey, default_slicing
from components.state.views import Perplexities, Reading
from intraslice.core.cache import cache_path
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.core.progress import Progress
from intraslice.core.records import keep_record, kept_record
from intraslice.evaluation.divergence import DenseStates
from intraslice.evaluation.perplexity import BLOCK, Losses, measure_losses

Slicing = Callable[[Job, SliceKey, Calibrated], PreTrainedModel]

SLICING = {  # by order and shapes
    ("one-shot", "free"): lazy_gettext("one-shot slicing"),
    ("one-shot", "runtime"): lazy_gettext("one-shot slicing, runtime shapes"),
    ("sequential", "free"): lazy_gettext("sequential slicing"),
    ("sequential", "runtime"): lazy_gettext("sequential slicing, runtime shapes"),
}


class Readings:
    """What is known of every model's losses.

    Args:
        sliced: makes the model of a method, or finds it in memory.
        curve: perplexity by sparsity (a fraction) of what the page opens with, measured before.
    """

    def __init__(self, caches: Caches, sliced: Slicing, curve: Mapping[float, float]) -> None:
        self._caches, self._sliced, self._curve = caches, sliced, curve

    def known(self, key: SliceKey) -> CachedEntry[Losses] | None:
        """A method's losses as far as they are read, or those of the "dense" model."""
        return self._caches.losses.get(key)

    def perplexity(self, key: SliceKey) -> float | None:
        """A method's perplexity, where all windows are read."""
        known = self.known(key)
        return known.value.perplexity().value if known and _is_whole(known.value) else None

    def losses(self, job: Job, key: SliceKey, calibrated: Calibrated, compared: bool = False) -> Losses:
        """What a method's model, or the "dense" one, loses on the held-out text; slices first where need be.

        With `compared` also its divergence from the dense model, which the slider's readings do without: it takes the
        head twice, and after a start the dense model once more.
        """
        is_dense = key.method == DENSE
        sequences = 0 if is_dense else calibrated.sequences
        cached = self._caches.losses.get(key)
        known = cached.value if cached is not None and cached.sequences >= sequences else None
        is_known = known is not None and _is_whole(known)
        if known is not None and is_known and (known.divergences or not compared):
            return known  # maybe by more of the calibration than is in memory now
        dense = calibrated.loaded
        model = dense.model if is_dense else self._sliced(job, key, calibrated)

        def measure(job: Job) -> Losses:
            report = job_progress(job, _status_text(key.method), when_done=True)

            def progress(event: Progress) -> None:
                if event.partial is not None and event.done and not is_known:  # a whole one is not taken back
                    self._note(key, CachedEntry(event.partial(), sequences))
                report(event)

            # The dense ones are of the model and the text alone.
            path = cache_path("losses", ".json", dense.fingerprint, model.dtype, calibrated.windows)
            losses = _kept(path) if is_dense else None
            if losses is None:
                states = self._states_of(key.calibration, dense.model) if compared else None
                losses = measure_losses(model, calibrated.windows, dense=states, progress=progress)
                if is_dense:
                    keep_record(path, asdict(losses), "the dense losses")
            self._note(key, CachedEntry(losses, sequences))
            points = self._caches.curves.get(_curve_key(key)) or {}
            self._caches.curves.put(_curve_key(key), points | {key.config.sparsity: losses.perplexity().value})
            return losses

        return job.share(("losses", key, sequences, compared), measure)

    def _states_of(self, key: CalibrationKey, dense: PreTrainedModel) -> DenseStates:
        """Those that all models of a calibration are held against."""
        return self._caches.states.get(key) or self._caches.states.put(key, DenseStates(dense))

    def divergence(self, key: SliceKey) -> Reading | None:
        """A method's KL divergence from the dense model, nats a token, where it is measured."""
        known = self.known(key)
        if known is None or not _is_whole(known.value) or (found := known.value.divergence()) is None:
            return None
        return Reading(*found, known.value.done, known.value.total)

    def perplexities(self, request: Request, best: Calibrated | None) -> Perplexities:
        """Whatever has been measured for a setting, and what is to be expected where nothing has.

        Args:
            best: the best calibration that there is of it.
        """
        key, expected = request.calibration, self._expected(request)
        if best is None:
            return Perplexities(expected=expected)
        text, (windows, window) = describe_text(key.config.text), best.windows.shape
        dense_key = request.slice_key(DENSE)
        sliced_key = request.slice_key("intraslice") if request.slicing.sparsity else dense_key
        dense, sliced = self.known(dense_key), self.known(sliced_key)
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
                "Standard errors are found over blocks of {block} tokens.",
                tokens=windows * window,
                window=window,
                text=text,
                block=BLOCK,
                dtype=key.dtype,
                sequences=key.config.sequences,
                length=key.config.length,
                seed=key.config.seed,
                slicing=_slicing_words(request.slicing),
            ),
            text=lazy_gettext("held-out Wikipedia") if "Wikipedia" in text else lazy_gettext("held-out text"),
        )

    def _note(self, key: SliceKey, losses: CachedEntry[Losses]) -> None:
        """Keep losses, unless all are known by more of a calibration."""
        known = self._caches.losses.get(key)
        if known is None or known.sequences <= losses.sequences or not _is_whole(known.value):
            self._caches.losses.put(key, losses)

    def _expected(self, request: Request) -> float | None:
        """Between perplexities that are measured, by straight lines through their logarithms."""
        key, sparsity = _curve_key(request.slice_key("intraslice")), request.slicing.sparsity
        is_default = request.is_default_calibration and key.config == replace(default_slicing(), sparsity=0.0)
        points = dict(self._curve) if is_default else {}
        dense = self.perplexity(request.slice_key(DENSE))
        points |= ({} if dense is None else {0.0: dense}) | (self._caches.curves.get(key) or {})
        if len(points) < 2 or not min(points) <= sparsity <= max(points):
            return None
        removed, measured = zip(*sorted(points.items()), strict=True)
        return float(np.exp(np.interp(sparsity, removed, np.log(measured))))


def _slicing_words(config: SliceConfig) -> LazyString:
    """How the model is sliced, for the protocol."""
    words = SLICING[config.order, config.shapes]
    if config.recovery == NO_RECOVERY:
        return words
    return lazy_gettext(
        "{slicing}, recovery: {recovery}",
        slicing=words,
        recovery=LazyString(lambda: term(RECOVERIES[config.recovery].label)),
    )


def _status_text(method: str) -> LazyString:
    """What is being read, for the status."""
    known = {
        "dense": lazy_gettext("Perplexity of the dense model, window"),
        "intraslice": lazy_gettext("Perplexity of the sliced model, window"),
    }
    return known.get(method) or lazy_gettext("Perplexity of the {method} model, window", method=method)


def _curve_key(key: SliceKey) -> SliceKey:
    """What all points of a curve have in common."""
    return key._replace(config=replace(key.config, sparsity=0.0))


def _is_whole(losses: Losses) -> bool:
    return losses.done == losses.total


def _reading(losses: Losses) -> Reading:
    return Reading(*losses.perplexity(), losses.done, losses.total)


def _paired(sliced: Losses, dense: Losses | None) -> Reading:
    """The sliced model's perplexity; while it grows what its ratio to the dense one's makes of that on all windows.

    The first windows may be easy or hard, and both models read the same ones.
    """
    if _is_whole(sliced) or dense is None or not _is_whole(dense):
        return _reading(sliced)
    whole, ratio = dense.perplexity().value, sliced.ratio(dense)
    error = None if ratio.standard_error is None else whole * ratio.standard_error
    return Reading(whole * ratio.value, error, sliced.done, sliced.total)


def _kept(path: Path) -> Losses | None:
    kept = kept_record(path)
    if not kept:
        return None
    sums, sizes, divergences = tuple(map(tuple, kept["sums"])), tuple(kept["sizes"]), tuple(kept["divergences"])
    return Losses(kept["done"], kept["total"], sums, sizes, divergences)
