"""The three models of the Compare tab, sliced on demand, and the costs of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.evaluation.speed import Speed, SpeedConfig, measure_speed
from intraslice.loading import LoadedModel
from intraslice.modeling.counts import kv_bytes_per_token
from intraslice.planning.crossmodule_plan import CrossModulePlan

from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..jobs.turns import Urgency
from ..state.caches import BoundedCache
from ..state.crossmodule import nearest_plan
from ..state.request import DENSE, CalibrationKey, Request
from ..state.session import Session
from .token_streams import TokenStreams
from .views import Cost, Costs

SPEED = SpeedConfig(prompt=256, new=8, repeats=3)


class Columns:
    """Models and their costs by setting; measurements are cached."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.streams = TokenStreams()
        self._stopped: set[str] = set()
        self._plans: BoundedCache[tuple[CalibrationKey, float], tuple[CrossModulePlan, bool]] = BoundedCache(1000)
        self._speeds: BoundedCache[tuple[CalibrationKey, SliceConfig], dict[str, Speed]] = BoundedCache(1000)

    def is_ready(self, request: Request) -> bool:
        """Whether the dense and the sliced model are in memory."""
        return self.session.is_calibrated(request) and self.session.is_sliced(request)

    def dense(self, job: Job, request: Request) -> LoadedModel:
        """The dense model; needs no calibration."""
        return self.session.calibrations.load(job, request.calibration)

    def pair(self, job: Job, request: Request) -> dict[str, PreTrainedModel]:
        """The dense and the IntraSlice model."""
        return {"dense": self.dense(job, request).model, "intraslice": self.session.slice(job, request)}

    def model(self, job: Job, request: Request, name: str, full_calibration: bool = True) -> PreTrainedModel:
        """A column's model; without `full_calibration` from the sequences that the calibration has read so far.

        Raises UserError if the cross-module method cannot reach the sparsity on this model.
        """
        loaded = self.dense(job, request)
        if name == DENSE or request.slicing.sparsity == 0:
            return loaded.model
        if name == "crossmodule" and (problem := self._unreachable(request, loaded.model)):
            raise UserError(problem)
        return self.session.slice(job, request, name, full_calibration or not request.is_live)

    def _unreachable(self, request: Request, dense: PreTrainedModel) -> str:
        plan, is_close = self._nearest_plan(request, dense)
        if is_close:
            return ""
        return lazy_gettext(
            "Cross-module slicing cannot remove {target:.0%} of this model's layer parameters: the nearest width, "
            "{width} of {hidden}, removes {removed:.1%}, too different for a fair comparison. Choose another sparsity "
            "to compare.",
            target=request.slicing.sparsity,
            width=plan.width,
            hidden=plan.hidden,
            removed=plan.removed_fraction,
        )

    def _nearest_plan(self, request: Request, dense: PreTrainedModel) -> tuple[CrossModulePlan, bool]:
        key = (request.calibration, request.slicing.sparsity)
        return self._plans.get(key) or self._plans.put(key, nearest_plan(dense, request.slicing.sparsity))

    # Costs

    def cached_costs(self, request: Request) -> Costs:
        """The costs measured so far, without computing. Raises UserError for an impossible setting."""
        plan = self.session.plan(request)
        if plan is None:
            return Costs({}, {})
        measured, key = self.session.perplexities(request), request.calibration
        columns = {
            "dense": Cost(plan.parameters_dense, 0.0, plan.kv_dense, measured.dense),
            "intraslice": Cost(plan.parameters_sliced, plan.removed, plan.kv_sliced, measured.sliced),
        }
        problems = {}
        if request.slicing.sparsity == 0:
            columns["crossmodule"] = columns["dense"]
        elif self.session.is_calibrated(request):
            dense = self.session.calibrated(request).loaded.model
            if problem := self._unreachable(request, dense):
                problems["crossmodule"] = problem
            else:
                cross, _ = self._nearest_plan(request, dense)
                value = self.session.readings.perplexity(request.slice_key("crossmodule"))
                # Cross-module slicing cuts the inputs and outputs of the heads, not their keys and values.
                kv_bytes = kv_bytes_per_token(dense)
                columns["crossmodule"] = Cost(cross.parameters.sliced_total, cross.removed_fraction, kv_bytes, value)
        speeds = self._speeds.get((key, request.slicing)) or {}
        for name, speed in speeds.items():
            columns[name] = replace(columns[name], prefill=speed.prefill, decode=speed.decode)
        for name in columns.keys() - {"dense"} if request.slicing.sparsity else ():
            if divergence := self.session.readings.divergence(request.slice_key(name)):
                columns[name] = replace(columns[name], divergence=(divergence.value, divergence.error))
        return Costs(columns, problems, measured.protocol, self._speed_protocol() if speeds else "")

    def measure(self, request: Request, client: str, pinned: Request | None = None) -> Iterator[Status]:
        """Measure the missing perplexities and speeds, with background priority."""
        work = partial(self._measure, request=request, pinned=pinned)
        follows: dict[str, Any] = {"request": request, "pinned": pinned}
        yield from self.session.jobs.run(client, "costs", work, urgency=Urgency.BACKGROUND, **follows)

    def is_measuring(self, request: Request, client: str, pinned: Request | None) -> bool:
        """Whether `measure` runs for a client with these settings."""
        return self.session.jobs.is_running(client, "costs", request=request, pinned=pinned)

    def note_end(self, client: str, stopped: bool) -> None:
        """Record whether a client's answer was stopped."""
        (self._stopped.add if stopped else self._stopped.discard)(client)

    def was_stopped(self, client: str) -> bool:
        """Whether a client's last answer was stopped."""
        return client in self._stopped

    def _measure(self, job: Job, request: Request, pinned: Request | None) -> None:
        self.session.measure_perplexities(job, request)
        models = self.pair(job, request)
        if request.slicing.sparsity:
            with suppress(UserError, NumericalError):  # `cached_costs` has the reason
                models["crossmodule"] = self.model(job, request, "crossmodule")
            calibrated = self.session.calibrations.calibrate(job, request.calibration)
            for name in [name for name in models if name != "dense"]:
                self.session.readings.losses(job, request.slice_key(name), calibrated, compared=True)
        self._measure_speed(job, request, models)
        if pinned is not None and pinned.slicing.sparsity:
            self.session.measure_perplexities(job, pinned)
            models = self.pair(job, pinned)
            calibrated = self.session.calibrations.calibrate(job, pinned.calibration)
            self.session.readings.losses(job, pinned.slice_key("intraslice"), calibrated, compared=True)
            self._measure_speed(job, pinned, models)
        job.emit(self.session.ready(request))

    def _measure_speed(self, job: Job, request: Request, models: dict[str, PreTrainedModel]) -> None:
        """Measure the speeds of a setting's models, unless they are cached."""
        key = request.calibration, request.slicing
        cached = self._speeds.get(key) or {}
        if request.slicing.sparsity and not models.keys() <= cached.keys():
            progress = job_progress(job, lazy_gettext("Measuring speed, alternating between models: round"))
            self._speeds.put(key, measure_speed(models, SPEED, progress=progress))

    def _speed_protocol(self) -> str:
        return lazy_gettext(
            "Speed at batch size 1{threads}, the models in turn, medians of {repeats} runs: prefill of "
            "{prompt} tokens, then decoding of {new}, one at a time. Other machines give other numbers.",
            threads=self.session.threads(),
            repeats=SPEED.repeats,
            prompt=SPEED.prompt,
            new=SPEED.new,
        )
