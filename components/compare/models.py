"""The models of the Compare tab, loaded and sliced on demand, the tokens of their answers, and the costs of each."""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.errors import NumericalError, UserError
from intraslice.evaluation.generation import Sampling, end_tokens, stream_tokens
from intraslice.evaluation.perplexity import Losses, measure_losses
from intraslice.evaluation.speed import Speed, SpeedConfig, measure_speed
from intraslice.loading import LoadedModel
from intraslice.modeling.counts import kv_bytes_per_token
from intraslice.pretrained.tokenizer import encodes_in_child

from ..i18n.language import lazy_gettext
from ..jobs.job import Job, Shared
from ..jobs.jobs import job_progress
from ..state.caches import BoundedCache
from ..state.request import DENSE, CalibrationKey, Request, SliceKey
from ..state.session import Session
from ..state.units import incomparable, nearest_plan
from .views import COLUMNS, OTHER, PINNED, Cost, Costs, Question

CANNOT_ANSWER = (UserError, NumericalError, OSError)  # problems of one column, which the others do not share
# Between two turns: the page shows new tokens no more often, and a turn of another thread takes some time to begin.
TURN_TOKENS, TURN_SECONDS = 4, 0.1
SPEED = SpeedConfig(prompt=256, new=8, repeats=3)
Other = CalibrationKey | None  # another model, or none: in keys, for its identity


@dataclass(eq=False)
class TokenStream:
    """An answer's tokens so far, and how it ended: generated once for all jobs that ask the same of the same model."""

    tokens: list[int] = field(default_factory=list)
    state: str = "growing"  # then "ended" (by an end token) or "cut" (at the maximum number of tokens)

    def generate(
        self, job: Job, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling
    ) -> None:
        """Generate the answer, as work that jobs share. Raises as `stream_tokens` does."""
        begun = 0.0
        for index, token in enumerate(stream_tokens(model, tokenizer, prompt, sampling, pause=job.checkpoint)):
            self.tokens[index : index + 1] = [token]  # which is there already if earlier work was cancelled
            if index % TURN_TOKENS == 0 or time.monotonic() > begun + TURN_SECONDS:
                job.checkpoint()
                begun = time.monotonic()
        self.state = "ended" if self.tokens and self.tokens[-1] in end_tokens(model) else "cut"

    def reach(self, work: Shared[None] | None, count: int) -> bool:
        """Whether there are more than `count` tokens, once `work` has made that certain. Raises as `generate` does."""
        if work is not None and work.wait(until=lambda: len(self.tokens) > count):
            work.result()
        return len(self.tokens) > count


def stream_key(model: SliceKey, tokenizer: PreTrainedTokenizerBase, question: Question) -> str:
    """What an answer depends on, as a digest: neither prompts nor templates are kept in memory."""
    template = None if question.raw else tokenizer.chat_template
    seed = question.sample_seed if question.temperature else 0
    parts = model, model.calibration.identity, template, question._replace(raw=False, sample_seed=seed)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Column(NamedTuple):
    """What answers in a column: the model of a method at a setting, or with the method OTHER the model of that name."""

    request: Request
    method: str
    other: str = ""

    def key(self) -> SliceKey:
        """The key of its model. One of another model names its weights only once they are loaded."""
        if self.method == OTHER:  # no page's whose model it is: nobody has compared the tokenizers there
            identity = self.request.calibration._replace(model=self.other).identity
            return self.request.slice_key(DENSE)._replace(method=f"{OTHER} {self.other} {identity}")
        return self.request.slice_key(self.method if self.request.slicing.sparsity else DENSE)


def columns_of(request: Request, pinned: Request | None, other: str) -> dict[str, Column]:
    """All columns by name; that of the pinned setting and that of another model only where there is one."""
    columns = {name: Column(request, name) for name in COLUMNS}
    if pinned is not None:
        columns[PINNED] = Column(pinned, "intraslice")
    if other:
        columns[OTHER] = Column(request, OTHER, other)
    return columns


class Columns:
    """Models and their costs by setting; measurements are cached."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.streams: BoundedCache[str, TokenStream] = BoundedCache(1000)  # answers of a few kB, also finished ones
        self.has_stopped: BoundedCache[str, bool] = BoundedCache(1000)  # by client: their last answer
        self._speeds: BoundedCache[tuple[SliceKey, Other], dict[str, Speed]] = BoundedCache(1000)
        self._others: BoundedCache[tuple[CalibrationKey, Other], Cost] = BoundedCache(1000)  # without speeds

    def dense(self, job: Job, request: Request) -> LoadedModel:
        """The dense model; needs no calibration."""
        return self.session.calibrations.load(job, request.calibration)

    def model(self, job: Job, request: Request, name: str, full_calibration: bool = True) -> PreTrainedModel:
        """A method's model, from all sequences or those so far. Raises UserError if crossmodule misses the sparsity."""
        loaded = self.dense(job, request)
        if name == DENSE or request.slicing.sparsity == 0:
            return loaded.model
        if name == "crossmodule":
            plan, is_close = nearest_plan(loaded.model, request.slicing.sparsity)
            if not is_close:
                raise UserError(incomparable(plan))
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

    def load(self, job: Job, column: Column) -> PreTrainedModel:
        """A column's model, from the sequences that its calibration has read so far."""
        if column.method == OTHER:
            return self.other(job, column.request, column.other).model
        return self.model(job, column.request, column.method, full_calibration=False)

    # Costs

    def cached_costs(self, request: Request, other: str = "") -> Costs:
        """The costs measured so far, without computing. Raises UserError for an impossible setting."""
        plan, measured, readings = self.session.plan(request), self.session.perplexities(request), self.session.readings
        if plan is None:
            return Costs({}, {})
        dense_value, sliced_value = measured.values
        columns = {
            "dense": Cost(plan.parameters_dense, 0.0, plan.kv[0], dense_value),
            "intraslice": Cost(
                plan.parameters_sliced, plan.removed, plan.kv[1], sliced_value, precomputed=measured.costs
            ),
        }
        problems = {}
        if request.slicing.sparsity == 0:
            columns["crossmodule"] = columns["dense"]
        elif self.session.is_calibrated(request):
            dense = self.session.calibrated(request).loaded.model
            cross, is_close = nearest_plan(dense, request.slicing.sparsity)
            if is_close:
                value, kv_bytes = readings.perplexity(request.slice_key("crossmodule")), kv_bytes_per_token(dense)
                # Cross-module slicing cuts the inputs and outputs of the heads, not their keys and values.
                columns["crossmodule"] = Cost(cross.parameters.sliced_total, cross.removed_fraction, kv_bytes, value)
            else:
                problems["crossmodule"] = incomparable(cross)
        if cost := self._others.get((request.calibration, _other_key(request, other))):
            columns[OTHER] = cost
        keys = [(request.slice_key("intraslice"), _other_key(request, named)) for named in (other, "")]
        speeds = next(filter(None, map(self._speeds.get, keys)), {})
        for name, cost in columns.items():
            if speed := speeds.get(name):
                cost = replace(cost, prefill=speed.prefill, decode=speed.decode)
            is_sliced = name not in (DENSE, OTHER) and request.slicing.sparsity
            if is_sliced and (divergence := readings.divergence(request.slice_key(name))):
                cost = replace(cost, divergence=(divergence.value, divergence.error))
            columns[name] = cost
        return Costs(columns, problems, self.session.speed_protocol(**vars(SPEED)) if speeds else "")

    def measure_costs(self, job: Job, request: Request, pinned: Request | None, other: str) -> None:
        """Measure the missing perplexities and speeds of all columns."""
        self._measure(job, request, ["intraslice", "crossmodule"], other)
        if pinned is not None and pinned.slicing.sparsity:
            self._measure(job, pinned, ["intraslice"])

    def cross_losses(self, job: Job, request: Request) -> Losses | None:
        """The cross-module model's losses, None if it cannot reach the sparsity; the costs then have the reason."""
        calibrated = self.session.calibrations.calibrate(job, request.calibration)
        try:
            self.model(job, request, "crossmodule")
        except (UserError, NumericalError):
            return None
        return self.session.readings.losses(job, request.slice_key("crossmodule"), calibrated)

    def _measure(self, job: Job, request: Request, methods: Sequence[str], other: str = "") -> None:
        self.session.measure_perplexities(job, request)
        calibrated = self.session.calibrations.calibrate(job, request.calibration)
        models = {DENSE: calibrated.loaded.model}
        for method in methods if request.slicing.sparsity else ():
            with suppress(UserError, NumericalError):  # `cached_costs` has the reason
                models[method] = self.model(job, request, method)
        for method in list(models)[1:]:
            self.session.readings.losses(job, request.slice_key(method), calibrated, compared=True)
        if other:
            with suppress(*CANNOT_ANSWER):  # its answer has the reason
                loaded = self.other(job, request, other)  # held until its numbers are stored, under its identity
                self._measure_other(job, request, other, loaded.model)
                models[OTHER] = loaded.model
        self._measure_speed(job, request, models, other)

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

    def _measure_speed(self, job: Job, request: Request, models: dict[str, PreTrainedModel], other: str) -> None:
        """Measure the speeds of a setting's models, unless they are cached; one that is the dense model has none."""
        models = {name: model for name, model in models.items() if name == DENSE or model is not models[DENSE]}
        key, named = request.slice_key("intraslice"), _other_key(request, other if OTHER in models else "")
        cached = self._speeds.get((key, named)) or {}
        if len(models) > 1 and not models.keys() <= cached.keys():
            progress = job_progress(job, lazy_gettext("Measuring speed, alternating between models: round"))
            speeds = measure_speed(models, SPEED, progress=progress)
            self._speeds.put((key, named), speeds)
            self._speeds.put((key, None), {name: speed for name, speed in speeds.items() if name != OTHER})


def encode_off_turn(job: Job, tokenizer: PreTrainedTokenizerBase, encode: Callable[[], object]) -> None:
    """Encode a text while other jobs run, where that takes a child process, which remembers it."""
    if encodes_in_child(tokenizer):
        with job.waiting():
            encode()


def _other_key(request: Request, other: str) -> Other:
    return request.calibration._replace(model=other) if other else None
