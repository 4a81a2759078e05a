"""The three models that the Compare tab sets side by side, made when they are needed, and what each costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from transformers import PreTrainedModel

from components.compare.views import Cost, Costs
from components.i18n.language import later
from components.jobs.job import Job
from components.jobs.jobs import job_progress
from components.jobs.status import Status
from components.jobs.turns import Urgency
from components.state.caches import BoundedCache
from components.state.crossmodule import nearest_plan
from components.state.keys import CalibrationKey, calibration_key, slice_config
from components.state.session import Session
from components.state.settings import Settings
from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.evaluation.speed import Speed, SpeedConfig, measure_speed
from intraslice.loading import LoadedModel
from intraslice.modeling.counts import kv_bytes_per_token
from intraslice.planning.crossmodule_plan import CrossModulePlan

SPEED = SpeedConfig(prompt=256, new=8, repeats=3)


class Columns:
    """Models and their costs, by settings; what is measured is kept."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._stopped: set[str] = set()
        self._cross: BoundedCache[tuple[CalibrationKey, float], tuple[CrossModulePlan, bool]] = BoundedCache(1000)
        self._speeds: BoundedCache[tuple[CalibrationKey, SliceConfig], dict[str, Speed]] = BoundedCache(1000)

    def is_ready(self, settings: Settings) -> bool:
        """Whether dense and sliced model are in memory, so that asking either takes no preparation."""
        return self.session.is_calibrated(settings) and self.session.is_sliced(settings)

    def dense(self, job: Job, settings: Settings) -> LoadedModel:
        """The dense model, which needs no calibration."""
        return self.session.calibrations.load(job, calibration_key(settings))

    def pair(self, job: Job, settings: Settings) -> dict[str, PreTrainedModel]:
        """The dense and the IntraSlice model."""
        sliced = self.session.slice(job, settings)
        return {"dense": self.session.calibrated(settings).loaded.model, "intraslice": sliced}

    def model(self, job: Job, settings: Settings, name: str, whole: bool = True) -> PreTrainedModel:
        """A column's model; without `whole` by what the calibration has seen so far.

        Raises UserError where the cross-module method cannot remove as much on this model.
        """
        loaded = self.dense(job, settings)
        if name == "dense" or settings.sparsity == 0:
            return loaded.model
        if name == "crossmodule" and (problem := self._unequal(settings, loaded.model)):
            raise UserError(problem)
        return self.session.slice(job, settings, name, whole or settings.order == "sequential")

    def _unequal(self, settings: Settings, dense: PreTrainedModel) -> str:
        (plan, near), asked = self._nearest_plan(settings, dense), settings.sparsity / 100
        if near:
            return ""
        return later(
            "Cross-module slicing cannot remove {asked:.0%} of this model's layers: its nearest width, {width} "
            "of {hidden}, removes {removed:.1%}, which would be no equal comparison.",
            asked=asked,
            width=plan.width,
            hidden=plan.hidden,
            removed=plan.removed_fraction,
        )

    def _nearest_plan(self, settings: Settings, dense: PreTrainedModel) -> tuple[CrossModulePlan, bool]:
        key = (calibration_key(settings), settings.sparsity)
        return self._cross.get(key) or self._cross.put(key, nearest_plan(dense, settings.sparsity / 100))

    # Costs

    def known(self, settings: Settings) -> Costs:
        """What is known without computing. Raises UserError for settings out of range."""
        plan = self.session.plan(settings)
        if plan is None:
            return Costs({}, {})
        measured, key = self.session.perplexities(settings), calibration_key(settings)
        columns = {
            "dense": Cost(plan.parameters_dense, 0.0, plan.kv_dense, measured.dense),
            "intraslice": Cost(plan.parameters_sliced, plan.removed, plan.kv_sliced, measured.sliced),
        }
        problems = {}
        if settings.sparsity == 0:
            columns["crossmodule"] = columns["dense"]
        elif self.session.is_calibrated(settings):
            dense = self.session.calibrated(settings).loaded.model
            if problem := self._unequal(settings, dense):
                problems["crossmodule"] = problem
            else:
                cross, _ = self._nearest_plan(settings, dense)
                value = self.session.readings.perplexity(settings, "crossmodule")
                # It cuts what heads read and write, not what they keep.
                kept = kv_bytes_per_token(dense)
                columns["crossmodule"] = Cost(cross.parameters.sliced_total, cross.removed_fraction, kept, value)
        speeds = self._speeds.get((key, slice_config(settings))) or {}
        for name, speed in speeds.items():
            columns[name] = replace(columns[name], prefill=speed.prefill, decode=speed.decode)
        for name in columns.keys() - {"dense"} if settings.sparsity else ():
            if far := self.session.readings.divergence(settings, name):
                columns[name] = replace(columns[name], divergence=(far.value, far.error))
        return Costs(columns, problems, measured.protocol, self._speed_protocol() if speeds else "")

    def measure(self, settings: Settings, client: str, pinned: Settings | None = None) -> Iterator[Status]:
        """Perplexities and speeds that are not known yet, in the background of what people ask for."""
        work = partial(self._measure, settings=settings, pinned=pinned)
        yield from self.session.jobs.run(client, "costs", work, urgency=Urgency.BACKGROUND, settings=settings)

    def note_end(self, client: str, stopped: bool) -> None:
        """A client's answer came to its end, or to none."""
        (self._stopped.add if stopped else self._stopped.discard)(client)

    def was_stopped(self, client: str) -> bool:
        """Whether a client's last answer came to no end."""
        return client in self._stopped

    def _measure(self, job: Job, settings: Settings, pinned: Settings | None) -> None:
        self.session.measure_perplexities(job, settings)
        models = self.pair(job, settings)
        if settings.sparsity:
            with suppress(UserError, NumericalError):  # `known` says so in words
                models["crossmodule"] = self.model(job, settings, "crossmodule")
            calibrated = self.session.calibrated(settings)
            for name in [name for name in models if name != "dense"]:
                self.session.readings.losses(job, settings, name, calibrated, compared=True)
        self._measure_speed(job, settings, models)
        if pinned is not None and pinned.sparsity:
            self.session.measure_perplexities(job, pinned)
            models, calibrated = self.pair(job, pinned), self.session.calibrated(pinned)
            self.session.readings.losses(job, pinned, "intraslice", calibrated, compared=True)
            self._measure_speed(job, pinned, models)
        job.emit(self.session.ready(settings))

    def _measure_speed(self, job: Job, settings: Settings, models: dict[str, PreTrainedModel]) -> None:
        """Take the speeds of a setting's models, unless they are known."""
        key = calibration_key(settings), slice_config(settings)
        cached = self._speeds.get(key) or {}
        if settings.sparsity and not models.keys() <= cached.keys():
            progress = job_progress(job, later("Speeds, the models in turn; turn"))
            self._speeds.put(key, measure_speed(models, SPEED, progress=progress))

    def _speed_protocol(self) -> str:
        return later(
            "Speeds of one sequence{threads}, the models in turn, medians of {repeats}: {prompt} tokens "
            "read at once, then {new} written one by one. Another machine gives other numbers.",
            threads=self.session.threads(),
            repeats=SPEED.repeats,
            prompt=SPEED.prompt,
            new=SPEED.new,
        )
