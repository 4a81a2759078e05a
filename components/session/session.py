"""What every tab's files share of the library: loaded models, bounded caches, and jobs that can be stopped.

Everything is kept by what it was made of (model, text, settings), never by who asked, and is read-only once made, so
people share work and nobody can disturb another's slice. One heavy job at a time is the queue's business
(`page/context.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from components.session.caches import Caches
from components.session.choices import ESTIMATORS
from components.session.jobs import Jobs, statuses
from components.session.keys import calibration_key, evaluation_config, slice_config, slice_key
from components.session.plan_views import Source, importance_curves, plan_view
from components.session.settings import Settings, Status
from components.session.snapshots import plan as snapshot
from components.session.views import ImportanceCurve, Perplexities, PlanView
from intraslice import data
from intraslice.cache import cache_path, keep_record, kept_record
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.config import SliceConfig
from intraslice.errors import UserError
from intraslice.evaluation.perplexity import perplexity
from intraslice.loading import SUGGESTED_MODELS, LoadedModel, load_model, require_memory
from intraslice.methods.registry import plan_by, slice_by
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.pretrained.memory import available_bytes

TEXTS = ("default", "wikitext2")
NOT_CALIBRATED = "this model is not calibrated on this text yet; press Load and calibrate"


@dataclass
class Calibrated:
    """A model with its calibration and what is derived from it once."""

    loaded: LoadedModel
    stats: CalibrationStats
    tokens: torch.Tensor
    windows: torch.Tensor
    source: Source


class Session:
    """One for the whole app. `visitor` is any string that tells open pages apart.

    Args:
        evaluation_tokens: how many tokens every perplexity on the page is taken on.
    """

    models = SUGGESTED_MODELS
    texts = TEXTS

    def __init__(self, device: str = "cpu", evaluation_tokens: int = 2560) -> None:
        self.device = device
        self.evaluation_tokens = evaluation_tokens
        self._caches = Caches(available_bytes(device))
        self._snapshot = snapshot.source() if snapshot.FILE.is_file() else None
        self.jobs = Jobs()

    # What is known at once

    def plan(self, settings: Settings) -> PlanView | None:
        """The plan of a setting with the other estimators' beside it, or None where nothing is known of the model yet.

        Before its calibration is there, the default setting is answered from the snapshot, and says so.
        """
        config = slice_config(settings)
        source = self.source(settings)
        if source is None:
            return None
        others = {
            name: self._plan(settings, replace(config, estimator=name, locked=()))
            for name in reversed(ESTIMATORS)  # the first, which is the usual one, is drawn last and so above the others
            if (name in source.profile.estimators or not ESTIMATORS[name].importance)
            and (name != config.estimator or config.locked)
        }
        return plan_view(self._plan(settings, config), source, others)

    def importances(self, settings: Settings, layer: int) -> dict[str, ImportanceCurve]:
        """Sorted importances of a layer, by module. Raises UserError as `slice_plan` does."""
        plan = self.slice_plan(settings)
        return importance_curves(self.source(settings), plan, layer)

    def slice_plan(self, settings: Settings) -> SlicePlan:
        """What goes from every layer. Raises UserError where nothing is known of the model or too much is asked."""
        if self.source(settings) is None:
            raise UserError(NOT_CALIBRATED)
        return self._plan(settings, slice_config(settings))

    def is_calibrated(self, settings: Settings) -> bool:
        """Whether the model and its calibration are in memory."""
        return self._caches.calibrations.get(calibration_key(settings)) is not None

    def is_sliced(self, settings: Settings, method: str = "intraslice") -> bool:
        """Whether the sliced model of these settings is in memory, or no other than the dense one."""
        return settings.sparsity == 0 or self._caches.slices.get(slice_key(settings, method)) is not None

    def perplexities(self, settings: Settings) -> Perplexities:
        """Whatever has been measured for this setting."""
        key = calibration_key(settings)
        calibrated = self._caches.calibrations.get(key)
        if calibrated is None:
            return Perplexities()
        text = data.describe(key.config.text)
        windows, window = calibrated.windows.shape
        protocol = (
            f"Perplexity on {windows * window:,} tokens in windows of {window} without overlap, the first token of "
            f"each not scored; text: {text}. Calibrated on {key.config.sequences} x {key.config.length} tokens of "
            f"other documents of it, seed {key.config.seed}; {settings.order} slicing; float32."
        )
        sliced = slice_config(settings)
        dense = self._caches.perplexities.get((key, None))
        known = dense if sliced.sparsity == 0 else self._caches.perplexities.get((key, sliced))
        return Perplexities(dense, known, protocol, "held-out Wikipedia" if "Wikipedia" in text else "held-out text")

    def memory(self, model: str) -> str:
        """What a model needs, in words. Raises UserError when there is no such model, or it will not fit."""
        estimate = require_memory(model, torch.float32, self.device)
        return (
            f"{estimate.parameters / 1e6:,.0f} M parameters; slicing takes {estimate.needed / 2**30:.1f} GiB, "
            f"{estimate.available / 2**30:.1f} GiB are free."
        )

    def halt(self, visitor: str) -> bool:
        """Stop a visitor's job at its next step; returns whether there was one."""
        return self.jobs.halt(visitor)

    def leave(self, visitor: str) -> None:
        """Stop all work for a page that was closed."""
        self.jobs.leave(visitor)

    def give_way(self, visitor: str, settings: Settings) -> None:
        """Stop what follows a visitor's slider by itself, unless it is about these settings."""
        self.jobs.give_way(visitor, settings)

    # Jobs

    def prepare(self, settings: Settings, visitor: str) -> Iterator[Status]:
        """Load and calibrate, or find both in memory; ends with a ready or an error status."""
        yield from self.jobs.run(visitor, self.jobs.start(visitor, live=False), self._prepare(settings))

    def measure(self, settings: Settings, visitor: str) -> Iterator[Status]:
        """Slice, then take dense and sliced perplexity; ends with a ready or an error status, or nothing if stopped."""
        job = self.jobs.start(visitor, live=settings.order == "one-shot", about=settings)
        yield from self.jobs.run(visitor, job, self.measuring(settings))

    def ready(self, settings: Settings) -> Status:
        """What is loaded and calibrated, as a job's last status."""
        key = calibration_key(settings)
        loaded = self.calibrated(settings).loaded
        tokens = f"{key.config.sequences} x {key.config.length} tokens"
        return Status(f"{loaded.source}. Calibrated on {tokens}: {data.describe(key.config.text)}", "ready")

    def calibrated(self, settings: Settings) -> Calibrated:
        """The model and its calibration, once they are there. Raises UserError before that."""
        calibrated = self._caches.calibrations.get(calibration_key(settings))
        if calibrated is None:
            raise UserError(NOT_CALIBRATED)
        return calibrated

    def source(self, settings: Settings) -> Source | None:
        """Where plans of this model and text come from: its calibration, for the default also the snapshot."""
        key = calibration_key(settings)
        calibrated = self._caches.calibrations.get(key)
        if calibrated is not None:
            return calibrated.source
        return self._snapshot if key == calibration_key(Settings()) else None

    def calibrating(self, settings: Settings) -> Generator[Status, None, Calibrated]:
        """The model and its calibration, made now or found in memory: the first step of a longer job."""
        yield from self._prepare(settings)
        return self.calibrated(settings)

    def _plan(self, settings: Settings, config: SliceConfig) -> SlicePlan:
        source = self.source(settings)
        key = (calibration_key(settings), source.label, config)
        return self._caches.plans.get(key) or self._caches.plans.put(key, make_plan(source.profile, config), 1)

    def _prepare(self, settings: Settings) -> Iterator[Status]:
        key = calibration_key(settings)
        if self._caches.calibrations.get(key) is None:
            loaded = self._caches.models.get(key.model)
            if loaded is None:
                yield Status(f"Loading {key.model}")
                loaded = load_model(key.model, device=self.device)
                if loaded.made is not None:
                    raise UserError(f"{key.model} is sliced already; wanted a dense model")
                self._caches.models.put(key.model, loaded, _bytes(loaded.model))
            yield Status(f"Reading text: {data.describe(key.config.text)}")
            evaluation = evaluation_config(settings, self.evaluation_tokens)
            tokens = data.calibration_tokens(loaded.tokenizer, key.config, evaluation.text)
            windows = data.evaluation_tokens(loaded.tokenizer, evaluation, key.config.text)
            stats = yield from statuses(calibrate(loaded, tokens), f"Calibrating {Path(key.model).name}, sequence")
            held = sum(t.nbytes for layer in stats.layers for t in vars(layer).values())
            source = Source(stats.profile, loaded.model.lm_head.weight.numel())
            calibrated = Calibrated(loaded, stats, tokens, windows, source)
            self._caches.calibrations.put(key, calibrated, held)
        yield self.ready(settings)

    def slice(self, settings: Settings, method: str = "intraslice") -> Generator[Status, None, PreTrainedModel]:
        """The sliced model, made now or found in memory; the dense one where nothing is removed."""
        yield from self._prepare(settings)
        calibrated, config = self.calibrated(settings), slice_config(settings)
        loaded, stats = calibrated.loaded, calibrated.stats
        if config.sparsity == 0:
            return loaded.model
        key = slice_key(settings, method)
        sliced = self._caches.slices.get(key)
        if sliced is None:
            plan = plan_by(method, loaded.model, stats, key[1])
            work = slice_by(method, loaded.model, plan, stats, calibrated.tokens)
            name = "" if method == "intraslice" else f" ({method})"
            sliced = yield from statuses(work, f"Slicing{name}, layer")
            self._caches.slices.put(key, sliced, _bytes(sliced))
        return sliced

    def measuring(self, settings: Settings) -> Iterator[Status]:
        """`measure` as a step of a longer job."""
        sliced = yield from self.slice(settings)
        calibrated, key = self.calibrated(settings), calibration_key(settings)
        if self._caches.perplexities.get((key, None)) is None:
            dense = yield from _dense_perplexity(calibrated)
            self._caches.perplexities.put((key, None), dense, 1)
        config = slice_config(settings)
        if config.sparsity and self._caches.perplexities.get((key, config)) is None:
            value = yield from statuses(
                perplexity(sliced, calibrated.windows), "Perplexity of the sliced model, window"
            )
            self._caches.perplexities.put((key, config), value, 1)
        yield self.ready(settings)


def _dense_perplexity(calibrated: Calibrated) -> Generator[Status, None, float]:
    """Measured once and kept on disk, since it depends on the model and the text alone."""
    loaded, windows = calibrated.loaded, calibrated.windows
    path = cache_path("perplexity", ".json", loaded.fingerprint, loaded.model.dtype, windows)
    known = kept_record(path).get("dense")
    if known is None:
        known = yield from statuses(perplexity(loaded.model, windows), "Perplexity of the dense model, window")
        keep_record(path, {"dense": known}, "the dense perplexity")
    return known


def _bytes(model: PreTrainedModel) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
