"""Sweeps over methods x estimators x sparsities x types of the weights, cached per point."""

import datetime
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas
from jaxtyping import Int
from torch import Tensor, get_num_threads
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.checkpoints.to_gguf import GGUF_TYPES, GGUFType, gguf_bytes, rounded_model
from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.config import FREE, NO_RECOVERY, SliceConfig
from intraslice.core.errors import NoRoomError, NumericalError, UserError
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.distributed import all_gather, shard_of, single_process
from intraslice.evaluation.answers import answer_columns, answers_key
from intraslice.evaluation.facts import encode_questions, fact_counts, fact_questions, measure_facts
from intraslice.evaluation.perplexity import DenseStates, Losses, measure_losses
from intraslice.evaluation.speed import SpeedConfig, measure_speed
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS, calibration_for, plan_by, slice_by
from intraslice.modeling.counts import kv_bytes_per_token, parameters_of
from intraslice.recovery.registry import cost_of, settings_of

FORMAT = "13"
DENSE = "dense"  # the method of a point that is not sliced
Quantise = Literal["none"] | GGUFType  # the type of the GGUF file whose weights are evaluated; none: no rounding
QUANTISE: tuple[Quantise, ...] = ("none", *GGUF_TYPES)

# Columns of every text. The ratio is to the dense perplexity, its error paired; KL is in nats per token.
LOSSES = ("perplexity", "perplexity_ratio", "perplexity_ratio_error", "divergence", "divergence_error")


@dataclass(frozen=True)
class Point:
    """One model of the sweep, sliced or DENSE. `estimator` is None if the method uses none."""

    method: str
    estimator: str | None
    sparsity: float
    quantise: Quantise = "none"


def points(
    methods: Iterable[str],
    estimators: Iterable[str],
    sparsities: Sequence[float],
    quantise: Iterable[Quantise] = ("none",),
) -> tuple[Point, ...]:
    """All combinations by increasing sparsity. A method without a ratio estimator appears once per sparsity.

    If `quantise` has more than "none", the dense model comes first, once per type.
    """
    types = tuple(dict.fromkeys(quantise))
    models = [Point(DENSE, None, 0.0)] if types != ("none",) else []
    models += [
        Point(method, estimator, sparsity)
        for sparsity in sorted(set(sparsities))
        for method in dict.fromkeys(methods)
        for estimator in (dict.fromkeys(estimators) if METHODS.require(method).uses_estimator else (None,))
    ]
    return tuple(replace(model, quantise=kind) for model in models for kind in types)


@dataclass(frozen=True)
class Texts:
    """The texts of a sweep: calibration tokens and their statistics, and held-out windows.

    `training` has the calibration tokens and more, for recoveries, which otherwise train on the calibration tokens.
    `others` has held-out windows of further texts, by name: each adds columns, such as `perplexity NAME`. Where there
    are `prompts` (tokens), every model answers them greedily, for the columns of `AnswerStatistics`; where `facts` is a
    language, the columns `facts_says` and `facts_selects` count right answers, of `facts_of` questions.
    """

    stats: CalibrationStats
    calibration: Int[Tensor, "sequences length"]
    evaluation: Int[Tensor, "windows window"]
    training: Int[Tensor, "more length"] | None = None
    others: Mapping[str, Int[Tensor, "_ _"]] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    facts: str = ""

    def tokens_for(self, method: str, config: SliceConfig) -> Int[Tensor, "sequences length"]:
        """The longest text that a method and its recovery use."""
        has_recovery = METHODS.require(method).recovery(config) != NO_RECOVERY
        return self.training if has_recovery and self.training is not None else self.calibration


def sweep(
    loaded: LoadedModel,
    texts: Texts,
    grid: Sequence[Point],
    base: SliceConfig | None = None,
    speed: SpeedConfig | None = None,
    states: DenseStates | None = None,
    *,
    progress: ProgressOption = True,
) -> pandas.DataFrame:
    """Measure every point of `grid`; returns one row per point, in order.

    Bias, cap and order come from `base`; speed is measured if its config is not None, except of rounded weights, which
    compute in float32. Every text has the columns of `LOSSES`. `bytes` is the size of the point's GGUF file, or of its
    weights in memory if it is not rounded. Finished points are cached, so a cancelled sweep continues where it stopped
    and a larger one reuses them. A point that a method cannot reach, whose moments are singular, or that has no GGUF
    file, has a `note` and no perplexity; so has one for which too little memory is free now, and that is not cached.
    With several processes, each measures a shard of the points, and all return every row.
    Callers that sweep point by point pass the same `states` each time, so that the dense model runs only once over
    the evaluation text.
    `progress` receives the events of each step, and counts points in the stage "sweep".
    """
    report, points_of = progress_callback(progress), _Sweep(loaded, texts, base or SliceConfig(), speed)
    for point in grid:  # all are valid before the first is measured
        points_of.config(point)
    windows = {"": texts.evaluation} | {f" {name}": windows for name, windows in texts.others.items()}
    states_of = {name: DenseStates(loaded.model) if name or states is None else states for name in windows}
    path = points_of.path(DENSE)
    record, shard = read_record(path), grid[shard_of(len(grid))]
    report(Progress("sweep", 0, len(shard)))
    if shard and not record:
        for name, tokens in windows.items():
            stage, dense_states = f"perplexity dense{name}", states_of[name]
            with single_process():  # whose points need the states of all windows anyway
                losses = measure_losses(loaded.model, tokens, stage, dense_states, progress=report)
            record[name] = asdict(losses)
        write_record(path, record, "a point of the sweep")
    held_out = {name: (windows[name], states_of[name], Losses.from_record(losses)) for name, losses in record.items()}
    dense = {f"dense_perplexity{name}": losses.perplexity().value for name, (*_, losses) in held_out.items()}
    rows = []
    for done, point in enumerate(shard, 1):
        path = points_of.point_path(point)
        row = read_record(path)
        if not row:
            start = time.perf_counter()
            with single_process():
                row, is_final = points_of.measure(point, held_out, report)
            row |= {"seconds": round(time.perf_counter() - start, 3), "date": datetime.date.today().isoformat()}
            if is_final:
                write_record(path, row, "a point of the sweep")
        recovery = points_of.recovery(point)
        named = {} if recovery == NO_RECOVERY else {"recovery": recovery}
        rows.append(asdict(point) | named | dense | row)
        report(Progress("sweep", done, len(shard)))
    return pandas.DataFrame(all_gather(rows))


def cached_points(
    loaded: LoadedModel, texts: Texts, grid: Sequence[Point], base: SliceConfig, speed: SpeedConfig | None = None
) -> tuple[Point, ...]:
    """The points that `sweep` reads from the cache without measuring anything; a damaged file is no such point."""
    points_of = _Sweep(loaded, texts, base, speed)
    if not read_record(points_of.path(DENSE)):
        return ()
    return tuple(point for point in grid if read_record(points_of.point_path(point)))


# Windows of a held-out text, and the dense model's states and losses on them.
_HeldOut = tuple[Int[Tensor, "windows window"], DenseStates, Losses]


@dataclass
class _Sweep:
    """The points of a sweep. The last model is kept for points that differ in the type of the weights alone."""

    loaded: LoadedModel
    texts: Texts
    base: SliceConfig
    speed: SpeedConfig | None
    _last: tuple[Point, PreTrainedModel, str] | None = None

    def config(self, point: Point) -> SliceConfig:
        return replace(self.base, sparsity=point.sparsity, estimator=point.estimator or self.base.estimator)

    def recovery(self, point: Point) -> str:
        return NO_RECOVERY if point.method == DENSE else METHODS.require(point.method).recovery(self.base)

    def path(self, key: str, *inputs: Any) -> Path:
        loaded, texts = self.loaded, self.texts
        held_out = texts.evaluation, *(part for item in texts.others.items() for part in item)
        inputs += (answers_key(loaded.model, texts.prompts),) if texts.prompts else ()
        inputs += (encode_questions(loaded.tokenizer, fact_questions(texts.facts)),) if texts.facts else ()
        inputs += ("offloaded",) if any(weight.is_meta for weight in loaded.model.parameters()) else ()  # or refused
        return cache_path("sweep", ".json", FORMAT, loaded.fingerprint, loaded.model.dtype, *inputs, *held_out, key)

    def point_path(self, point: Point) -> Path:
        if point.method == DENSE:
            return self.path(f"{point}")
        method, texts = METHODS.require(point.method), self.texts
        config = method.configured(self.config(point))
        # Options that a method ignores do not change the cache key.
        ignored: dict[str, Any] = {"estimator": "uniform", "order": "one-shot", "shapes": FREE}
        config = replace(config, **{name: value for name, value in ignored.items() if name in method.unused})
        if method.recovery(config) == NO_RECOVERY:
            config = replace(config, epochs=0)
        inputs: list[Any] = [texts.calibration, texts.tokens_for(point.method, config)]
        inputs.append(method.targets or texts.stats.targets)
        machine = f"{self.loaded.model.device.type} {get_num_threads()}" if self._speed(point) else ""
        inputs += filter(None, (settings_of(method.recovery(config)), machine))
        return self.path(f"{point.method} {config} {self._speed(point)} {point.quantise}", *inputs)

    def _speed(self, point: Point) -> SpeedConfig | None:
        return self.speed if point.method != DENSE and point.quantise == "none" else None

    def _sliced(self, point: Point, progress: ProgressCallback) -> tuple[PreTrainedModel, str]:
        """The point's model before rounding, and the note of its plan. Raises UserError if it cannot be reached."""
        point, dense, texts = replace(point, quantise="none"), self.loaded.model, self.texts
        if point.method == DENSE:
            return dense, ""
        if self._last is None or self._last[0] != point:
            self._last = None  # frees its memory
            stats = calibration_for(point.method, self.loaded, texts.stats, texts.calibration, progress=progress)
            plan = plan_by(point.method, dense, stats, self.config(point))
            model = slice_by(point.method, dense, plan, stats, texts.calibration, texts.training, progress=progress)
            self._last = point, model, getattr(plan, "note", "")
        return self._last[1:]

    def measure(
        self, point: Point, held_out: Mapping[str, _HeldOut], progress: ProgressCallback
    ) -> tuple[dict[str, Any], bool]:
        """One row, and whether it is final: not where memory was short. `held_out`: texts by the suffix of columns."""
        loaded, texts, speed = self.loaded, self.texts, self._speed(point)
        try:
            model, note = self._sliced(point, progress)
            if point.quantise == "none":
                size, evaluated = sum(parameter.nbytes for parameter in model.parameters()), model
            else:
                size = gguf_bytes(model, loaded.tokenizer, point.quantise)
                evaluated = rounded_model(model, point.quantise, progress=progress)
        except (UserError, NumericalError) as problem:
            columns = [f"{column}{name}" for name in held_out for column in LOSSES]
            failed = dict.fromkeys(("removed_fraction", "bytes", *columns)) | {"note": str(problem)}
            return failed, not isinstance(problem, NoRoomError)
        counts = parameters_of(loaded.model, "dense") | parameters_of(model, "sliced")
        removed = 1 - counts["sliced_decoder"] / counts["dense_decoder"]
        row: dict[str, Any] = {"removed_fraction": removed, **counts, "bytes": size}
        row["kv_bytes_per_token"] = kv_bytes_per_token(model)
        for name, (windows, states, dense) in held_out.items():
            losses = measure_losses(evaluated, windows, f"perplexity {point.method}{name}", states, progress=progress)
            divergence = losses.divergence()
            assert divergence is not None  # measured, since there are states
            values = losses.perplexity().value, *losses.ratio(dense), *divergence
            row |= {f"{column}{name}": value for column, value in zip(LOSSES, values, strict=True)}
        row["note"] = note
        training = texts.calibration if texts.training is None else texts.training
        calibration, epochs = texts.calibration.numel(), self.base.epochs
        if cost := cost_of(loaded.model, model, training, self.recovery(point), epochs, calibration):
            row |= {f"recovery_{name}_passes": value for name, value in cost._asdict().items()}
        if texts.prompts:
            row |= answer_columns(loaded, evaluated, texts.prompts, f"answers {point.method}", progress=progress)
        if texts.facts:
            questions = fact_questions(texts.facts)
            encoded = encode_questions(loaded.tokenizer, questions)
            facts = measure_facts(evaluated, loaded.tokenizer, encoded, f"facts {point.method}", progress=progress)
            row |= {f"facts_{name}": count for name, count in fact_counts(questions, facts)["all"].items()}
        if speed is not None:
            speeds = measure_speed({"dense": loaded.model, "sliced": model}, speed, progress=progress)
            for phase in ("prefill", "decode"):
                per_second = {name: getattr(speed_of_model, phase) for name, speed_of_model in speeds.items()}
                row |= {f"{phase}_{name}": value for name, value in per_second.items()}
                row[f"{phase}_ratio"] = per_second["sliced"] / per_second["dense"]
        return row, True
