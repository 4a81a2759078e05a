"""The models of the Compare tab, loaded and sliced on demand, and the costs of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.evaluation.perplexity import Losses, measure_losses
from intraslice.evaluation.speed import Speed, SpeedConfig, measure_speed
from intraslice.loading import LoadedModel
from intraslice.modeling.counts import kv_bytes_per_token
from intraslice.planning.baseline_plans import CrossModulePlan
from intraslice.pretrained.tokenizer import encodes_in_child

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
from .views import OTHER, Cost, Costs

CANNOT_ANSWER = (UserError, NumericalError, OSError)  # problems of one column, which the others do not share
SPEED = SpeedConfig(prompt=256, new=8, repeats=3)
Other = CalibrationKey | None  # another model, or none: in keys, for its identity


class Columns:
    """Models and their costs by setting; measurements are cached."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.streams = TokenStreams()
        self._stopped: BoundedCache[str, bool] = BoundedCache(1000)  # by client
        self._plans: BoundedCache[tuple[CalibrationKey, float], tuple[CrossModulePlan, bool]] = BoundedCache(1000)
        self._speeds: BoundedCache[tuple[CalibrationKey, SliceConfig, Other], dict[str, Speed]] = BoundedCache(1000)
        self._others: BoundedCache[tuple[CalibrationKey, Other], Cost] = BoundedCache(1000)  # without speeds

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

    def other(self, job: Job, request: Request, other: str) -> LoadedModel:
        """Another model, dense or sliced. Raises UserError if it cannot be loaded or has other tokens."""
        dense = self.dense(job, request)
        loaded = self.session.calibrations.load_any(job, request.calibration._replace(model=other))
        if loaded.tokenizer.get_vocab() != dense.tokenizer.get_vocab():
            raise UserError(
                "{other} has another tokenizer than {model}, so their answers and perplexities cannot be compared. "
                "Choose a model of the same family.",
                other=other,
                model=dense.name,
            )
        return loaded

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

    def cached_costs(self, request: Request, other: str = "") -> Costs:
        """The costs measured so far, without computing. Raises UserError for an impossible setting."""
        plan = self.session.plan(request)
        if plan is None:
            return Costs({}, {})
        measured, key = self.session.perplexities(request), request.calibration
        dense_value, sliced_value = measured.values
        columns = {
            "dense": Cost(plan.parameters_dense, 0.0, plan.kv_dense, dense_value),
            "intraslice": Cost(plan.parameters_sliced, plan.removed, plan.kv_sliced, sliced_value),
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
        if cost := self._others.get((key, _other_key(request, other))):
            columns[OTHER] = cost
        cached = (self._speeds.get((key, request.slicing, _other_key(request, named))) for named in (other, ""))
        speeds = next(filter(None, cached), {})
        for name in speeds.keys() & columns.keys():  # a cache may have dropped a column's costs
            columns[name] = replace(columns[name], prefill=speeds[name].prefill, decode=speeds[name].decode)
        for name in columns.keys() - {"dense", OTHER} if request.slicing.sparsity else ():
            if divergence := self.session.readings.divergence(request.slice_key(name)):
                columns[name] = replace(columns[name], divergence=(divergence.value, divergence.error))
        return Costs(columns, problems, measured.protocol, self._speed_protocol() if speeds else "")

    def measure(
        self, request: Request, client: str, pinned: Request | None = None, other: str = ""
    ) -> Iterator[Status]:
        """Measure the missing perplexities and speeds, with background priority."""
        work = partial(self._measure, request=request, pinned=pinned, other=other)
        follows: dict[str, Any] = {"request": request, "pinned": pinned, "other": other}
        ready = partial(self.session.ready, request)
        yield from self.session.jobs.run(client, "costs", work, Urgency.BACKGROUND, ready, **follows)

    def is_measuring(self, request: Request, client: str, pinned: Request | None, other: str = "") -> bool:
        """Whether `measure` runs for a client with these settings."""
        return self.session.jobs.is_running(client, "costs", request=request, pinned=pinned, other=other)

    def note_end(self, client: str, stopped: bool) -> None:
        """Record whether a client's answer was stopped."""
        self._stopped.put(client, stopped)

    def was_stopped(self, client: str) -> bool:
        """Whether a client's last answer was stopped."""
        return bool(self._stopped.get(client))

    def _measure(self, job: Job, request: Request, pinned: Request | None, other: str) -> None:
        self.session.measure_perplexities(job, request)
        models = self.pair(job, request)
        if request.slicing.sparsity:
            with suppress(UserError, NumericalError):  # `cached_costs` has the reason
                models["crossmodule"] = self.model(job, request, "crossmodule")
            calibrated = self.session.calibrations.calibrate(job, request.calibration)
            for name in [name for name in models if name != "dense"]:
                self.session.readings.losses(job, request.slice_key(name), calibrated, compared=True)
        if other:
            with suppress(*CANNOT_ANSWER):  # its answer has the reason
                loaded = self.other(job, request, other)  # held until its numbers are stored, under its identity
                self._measure_other(job, request, other, loaded.model)
                models[OTHER] = loaded.model
        self._measure_speed(job, request, models, other)
        if pinned is not None and pinned.slicing.sparsity:
            self.session.measure_perplexities(job, pinned)
            models = self.pair(job, pinned)
            calibrated = self.session.calibrations.calibrate(job, pinned.calibration)
            self.session.readings.losses(job, pinned.slice_key("intraslice"), calibrated, compared=True)
            self._measure_speed(job, pinned, models)

    def _measure_other(self, job: Job, request: Request, other: str, model: PreTrainedModel) -> None:
        """Measure another model's perplexity and KL divergence, unless they are cached."""
        key = request.calibration, _other_key(request, other)
        if self._others.get(key):
            return
        calibrated = self.session.calibrations.calibrate(job, request.calibration)
        dense = calibrated.loaded.model
        # Heads of another size, padded for example, have no divergence.
        is_like_dense = model.config.vocab_size == dense.config.vocab_size
        states = self.session.readings.dense_states(request.calibration, dense) if is_like_dense else None

        def measure(job: Job) -> Losses:
            report = job_progress(job, lazy_gettext("Perplexity of the {method} model, window", method=other))
            return measure_losses(model, calibrated.windows, dense=states, progress=report)

        losses = job.share(("losses of another", key), measure)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        cost = Cost(parameters, 0.0, kv_bytes_per_token(model), losses.perplexity().value)
        self._others.put(key, replace(cost, divergence=losses.divergence()))

    def _measure_speed(self, job: Job, request: Request, models: dict[str, PreTrainedModel], other: str = "") -> None:
        """Measure the speeds of a setting's models, unless they are cached; one that is the dense model has none."""
        models = {name: model for name, model in models.items() if name == DENSE or model is not models[DENSE]}
        key, named = (request.calibration, request.slicing), _other_key(request, other if OTHER in models else "")
        cached = self._speeds.get((*key, named)) or {}
        if len(models) > 1 and not models.keys() <= cached.keys():
            progress = job_progress(job, lazy_gettext("Measuring speed, alternating between models: round"))
            speeds = measure_speed(models, SPEED, progress=progress)
            self._speeds.put((*key, named), speeds)
            self._speeds.put((*key, None), {name: speed for name, speed in speeds.items() if name != OTHER})

    def _speed_protocol(self) -> str:
        return lazy_gettext(
            "Speed at batch size 1{threads}, the models in turn, medians of {repeats} runs: prefill of "
            "{prompt} tokens, then decoding of {new}, one at a time. Other machines give other numbers.",
            threads=self.session.threads(),
            repeats=SPEED.repeats,
            prompt=SPEED.prompt,
            new=SPEED.new,
        )


def encode_off_turn(job: Job, tokenizer: PreTrainedTokenizerBase, encode: Callable[[], object]) -> None:
    """Encode a text while other jobs run, where that takes a child process, which remembers it."""
    if encodes_in_child(tokenizer):
        with job.waiting():
            encode()


def _other_key(request: Request, other: str) -> Other:
    return request.calibration._replace(model=other) if other else None
