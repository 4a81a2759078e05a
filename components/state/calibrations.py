"""Models and their calibrations: loaded and made when they are needed, and used while they are still being made.

A calibration's sums are valid after every sequence, so plans and slices come from what is there, and are replaced when
there is more.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter
from pathlib import Path

import torch

from components.i18n.language import later
from components.jobs.generators import SharedGenerators, Waiting, aside, statuses
from components.jobs.status import Status
from components.state.caches import Caches
from components.state.keys import CalibrationKey, calibration_key, described, evaluation_config
from components.state.plan_views import Source
from components.state.settings import Settings
from components.state.snapshots.settling import keep_profile, kept_profiles
from intraslice import data
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, repeating, stepwise
from intraslice.loading import LoadedModel, load_model
from intraslice.pretrained.memory import calibration_bytes, require_calibration_memory

ENOUGH = 4  # sequences, before anything is sliced: of fewer a slice says little


@dataclass(frozen=True)
class Calibrated:
    """A model with its calibration, on the first `sequences` of its tokens, and what is derived from it once."""

    loaded: LoadedModel
    stats: CalibrationStats
    training: torch.Tensor  # (more, length): the calibration's tokens, and what follows them, for methods that train
    tokens: torch.Tensor  # (sequences, length), all of the calibration's
    windows: torch.Tensor  # held-out text (windows, window)
    source: Source
    sequences: int

    @property
    def is_whole(self) -> bool:
        """Whether all sequences are in it."""
        return self.sequences == len(self.tokens)

    @property
    def is_enough(self) -> bool:
        """Whether it is worth slicing by."""
        return self.is_whole or self.sequences >= ENOUGH


class Calibrations:
    """By what they were made of. The generators are steps of jobs: whoever wants the same shares the work."""

    def __init__(self, caches: Caches, shared: SharedGenerators, device: str, evaluation_tokens: int) -> None:
        self._caches, self._scheduler = caches, shared
        self._device, self._evaluation_tokens = device, evaluation_tokens
        self._line: dict[CalibrationKey, int] = {}  # bytes of those that go on or wait for room, in their order

    def known(self, key: CalibrationKey) -> Calibrated | None:
        """The best there is of a calibration."""
        return self._caches.calibrations.get(key)

    def whole(self, key: CalibrationKey) -> Calibrated | None:
        """A calibration that has seen all its sequences."""
        calibrated = self.known(key)
        return calibrated if calibrated is not None and calibrated.is_whole else None

    def settling(self, key: CalibrationKey) -> list[tuple[int, Source]]:
        """What plans were made of while the calibration grew: after how many sequences, and what."""
        return self._caches.settling.get(key) or []

    def loading(self, key: CalibrationKey) -> Generator[Status, None, LoadedModel]:
        """The dense model, ready for use. Raises UserError where it cannot be had or is sliced already."""
        return (yield from self._scheduler.share(("model", key.model, key.dtype), lambda: self._load(key)))

    def making(self, settings: Settings, whole: bool = True, more_than: int = 0) -> Generator[Status, None, Calibrated]:
        """Take part in a calibration until it is whole, or if that is not wanted until it is worth using.

        Then it has enough sequences, and `more_than` so many.
        """
        key = calibration_key(settings)

        def found() -> Calibrated | None:
            calibrated = self.known(key)
            enough = calibrated is not None and calibrated.is_enough and calibrated.sequences > more_than
            return self.whole(key) or (calibrated if enough and not whole else None)

        while (calibrated := found()) is None:  # others' may have pushed it out of memory at once
            work = self._scheduler.share(("calibration", key), lambda: self._calibrate(settings, key))
            with closing(work) as events:
                for event in events:
                    yield event
                    if found() is not None:
                        break
        return calibrated

    def holding(self, settings: Settings) -> AbstractContextManager[None]:
        """While open, what has been calibrated so far is not given up; for a step of a job."""
        return self._scheduler.holding(("calibration", calibration_key(settings)))

    def _load(self, key: CalibrationKey) -> Generator[Status, None, LoadedModel]:
        loaded = self._caches.models.get(key[:2])
        if loaded is None:
            yield Status(later("Loading {model}", model=key.model))
            loaded = yield from aside(
                lambda: load_model(key.model, getattr(torch, key.dtype), self._device, progress=False)
            )
            if loaded.made is not None:
                raise UserError(later("{model} is sliced already; wanted a dense model", model=key.model))
            self._caches.models.put(key[:2], loaded)
        return loaded

    def _calibrate(self, settings: Settings, key: CalibrationKey) -> Generator[Status, None, None]:
        if self.whole(key) is not None:
            return
        loaded = yield from self.loading(key)
        model, config = loaded.model, key.config
        # Twice the sums: what has been seen so far is copied for use.
        sizes = model.config, config.sequences, config.length, model.dtype
        try:
            yield from self._in_line(key, calibration_bytes(*sizes, copies=2))
            require_calibration_memory(*sizes, self._device, copies=2)
            yield from self._calibrate_now(settings, key, loaded)
        finally:
            self._line.pop(key, None)

    def _in_line(self, key: CalibrationKey, needed: int) -> Generator[Status | Waiting, None, None]:
        """Wait until those who came before leave room for `needed` bytes. Who is the first waits for nobody."""
        self._line[key] = needed
        while before := list(takewhile(lambda other: other != key, self._line)):
            if sum(map(self._line.get, before)) + needed <= self._caches.rest:
                return
            yield Status(later("Waiting for memory: calibrations before this one: {count}", count=len(before)))
            yield Waiting(0.5)

    def _calibrate_now(
        self, settings: Settings, key: CalibrationKey, loaded: LoadedModel
    ) -> Generator[Status, None, None]:
        yield Status(later("Reading text: {text}", text=described(key.config.text)))
        evaluation = evaluation_config(settings, self._evaluation_tokens)
        training, windows = yield from aside(
            lambda: (
                data.training_tokens(loaded.tokenizer, key.config, evaluation.text),
                data.evaluation_tokens(loaded.tokenizer, evaluation, key.config.text),
            )
        )
        tokens, head_weights = training[: key.config.sequences], loaded.model.lm_head.weight.numel()
        self._caches.settling.put(
            key, [(count, Source(profile, head_weights, count)) for count, profile in kept_profiles(loaded, tokens)]
        )

        def note(stats: CalibrationStats, sequences: int) -> Iterator[Progress]:
            profile = yield from stepwise(lambda progress: stats.make_profile(progress=progress))
            stats.ranked_neurons = {}  # the slider slices often
            words = so_far(sequences, len(tokens))
            source = Source(profile, head_weights, sequences, words)
            if words:
                keep_profile(loaded, tokens, sequences, profile)
                others = [entry for entry in self.settling(key) if entry[0] != sequences]
                self._caches.settling.put(key, sorted([*others, (sequences, source)], key=itemgetter(0)))
            self._caches.calibrations.put(key, Calibrated(loaded, stats, training, tokens, windows, source, sequences))

        job = _noting(stepwise(lambda progress: calibrate(loaded, tokens, progress=progress)), note)
        yield from statuses(job, later("Calibrating {model}, sequence", model=Path(key.model).name))


def so_far(sequences: int, of: int) -> str:
    """On how many sequences a calibration has come by now; nothing of a whole one."""
    return (
        ""
        if sequences == of
        else later("Calibrated on {sequences} of {of} sequences so far.", sequences=sequences, of=of)
    )


def _noting(
    calibration: Generator[Progress, None, CalibrationStats], note: Callable[[CalibrationStats, int], Iterator]
) -> Iterator[Progress]:
    """Run a calibration to its end, and `note` what is there whenever its sequences have doubled, and at the end."""
    event, following = Progress("calibrate", 0, 0), 1
    while True:
        try:
            event = next(calibration)
        except StopIteration as end:
            yield from repeating(event, note(end.value, len(end.value.layers[0].mlp_gradients)))
            return
        yield event
        if event.partial is not None and following <= event.done < event.total:
            yield from repeating(event, note(event.partial(), event.done))
            following = 2 * event.done
