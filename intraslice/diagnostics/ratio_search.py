"""Better ratios by measurement: parameters go from one module to another wherever that brings the slice nearer.

An estimator foretells from the dense model what each unit is worth. What a module is worth *in a sliced model* is
measured: exchanges are drawn by lot, and stay where the KL divergence from the dense model falls on both halves of the
text. The size never changes, and every model on the way is a one-shot slice.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import MODULE_KINDS, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Pause, Progress, ProgressCallback, progress_callback
from intraslice.core.records import keep_record, kept_record
from intraslice.diagnostics.prices import parameters_at
from intraslice.diagnostics.sensitivity import sensitivity_path, slice_alone, with_module
from intraslice.evaluation.divergence import read_head
from intraslice.loading import LoadedModel
from intraslice.modeling.hidden_states import Arguments, HiddenStates, embed, last_states
from intraslice.planning.budget import nearest
from intraslice.planning.measured import Place, Ratios
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import make_plan

EXCHANGES = 200
AMOUNTS = (0.0005, 0.001, 0.002)  # of the decoder layers' parameters, in one exchange
NEAR = 0.0004  # of them: what the size may be off on the way
GRID = 200  # ratios are so many parts of a module
MAX_TIMES = 4.0  # that a step of the estimator's plan is taken
DRAWS = 50  # of an exchange that keeps the size, before there is taken to be none
KEPT_EVERY = 10  # exchanges


@dataclass(frozen=True)
class Exchanged:
    """Ratios of every module, the KL from the dense model (nats a token) before and after, exchanges that stayed."""

    sparsity: float
    ratios: Ratios
    before: float
    after: float
    stayed: int


@dataclass(frozen=True)
class Trials:
    """How many exchanges are tried, and the seed that they are drawn by."""

    count: int = EXCHANGES
    seed: int = 0


@torch.no_grad()
def exchange_parameters(
    loaded: LoadedModel,
    stats: CalibrationStats,
    tokens: Int[Tensor, "windows window"],
    config: SliceConfig,
    earlier: Sequence[Exchanged] = (),
    trials: Trials | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> Exchanged:
    """Try exchanges at `config.sparsity`, from the estimator's plan on; `progress` counts them.

    Where there are `earlier`, smaller sparsities, from the last one's ratios by what the estimator's plan adds, and
    never below them: the larger slice is then a part of the smaller. `tokens` are best some of the calibration's, since
    they choose, and held-out text is to judge. Which exchanges stayed is kept, so that a run that was stopped goes on
    where it was. Costs about a forward an exchange, and memory for a hidden state a token and layer.

    Raises:
        UserError: fewer than two windows, ratios given by hand, or shapes that are a runtime's.
    """
    report, trials = progress_callback(progress), trials or Trials()
    exchanges, seed = trials.count, trials.seed
    if len(tokens) < 2 or config.locked or config.shapes != "free":
        raise UserError("exchanges want two windows or more, free shapes, and no ratios given by hand")
    budget = Budget(stats.profile_for(config), config, earlier)
    path = sensitivity_path(loaded, stats, tokens, "exchanges", config, sorted(budget.ratios.items()), seed)
    record = kept_record(path)
    outcomes: list[bool] = record.get("stayed", [])[:exchanges]
    lot = random.Random(seed)
    so_far = Progress("exchange", len(outcomes), exchanges)
    report(so_far)
    for stayed in outcomes:  # drawn anew, and judged before
        drawn = budget.draw(lot)
        budget.ratios |= drawn if stayed else {}
    judge = _judge(loaded.model, stats, tokens, budget.ratios, partial(report, so_far))
    before = record.get("before", judge.divergence)
    for done in range(len(outcomes) + 1, exchanges + 1):
        if not (drawn := budget.draw(lot)):
            break
        stays = judge.stays(drawn, partial(report, so_far))
        budget.ratios |= drawn if stays else {}
        outcomes.append(stays)
        if done % KEPT_EVERY == 0 or done == exchanges:
            keep_record(path, {"stayed": outcomes, "before": before}, "which exchanges stayed")
        so_far = Progress("exchange", done, exchanges)
        report(so_far)
    return Exchanged(config.sparsity, dict(budget.ratios), before, judge.divergence, sum(outcomes))


class Budget:
    """Ratios of every module, and exchanges between them that keep the size."""

    def __init__(self, profile: Profile, config: SliceConfig, earlier: Sequence[Exchanged] = ()) -> None:
        self._profile, self._cap = profile, config.cap
        self.ratios = _planned(profile, config)
        self._floors: Ratios = dict.fromkeys(self.ratios, 0.0)
        for last in earlier[-1:]:
            self._floors = last.ratios
            self.ratios = self._grown(last, config)
        steps = [step / GRID for step in range(round(GRID * config.cap) + 1)]
        self._sizes = {place: {ratio: self._size(place, ratio) for ratio in steps} for place in self.ratios}
        self._wanted = self._total(self.ratios)

    def _grown(self, earlier: Exchanged, config: SliceConfig) -> dict[Place, float]:
        """The earlier ratios, each further by as many times as it takes of what the estimator's plan adds."""
        before = _planned(self._profile, replace(config, sparsity=earlier.sparsity))
        added = {place: max(0.0, ratio - before[place]) for place, ratio in self.ratios.items()}

        def grown(times: float) -> dict[Place, float]:
            return {place: min(self._cap, earlier.ratios[place] + times * added[place]) for place in added}

        times = nearest(lambda times: self._total(grown(times)), float(self._total(self.ratios)), MAX_TIMES)
        return grown(times)

    def _size(self, place: Place, ratio: float) -> int:
        return parameters_at(self._profile.layers[place[0]], place[1], ratio)

    def _total(self, ratios: Ratios) -> int:
        return sum(self._size(place, ratio) for place, ratio in ratios.items())

    def draw(self, lot: random.Random) -> dict[Place, float]:
        """What two modules come to when some parameters of one go to another; empty where there is no such exchange."""
        over, decoder = self._total(self.ratios) - self._wanted, self._profile.dense_decoder
        for _ in range(DRAWS):
            giver, taker = lot.sample(list(self.ratios), 2)
            size, other = (self._size(place, self.ratios[place]) for place in (giver, taker))
            less = self._nearest(giver, size - round(lot.choice(AMOUNTS) * decoder))
            given = size - self._sizes[giver][less]
            more = self._nearest(taker, other + given - over)
            taken = self._sizes[taker][more] - other
            if min(given, taken) > 0 and abs(over + taken - given) <= NEAR * decoder:
                return {giver: less, taker: more}
        return {}

    def _nearest(self, place: Place, size: int) -> float:
        allowed = [ratio for ratio in self._sizes[place] if ratio >= self._floors[place]]
        return min(allowed, key=lambda ratio: abs(self._sizes[place][ratio] - size), default=0.0)


def _planned(profile: Profile, config: SliceConfig) -> dict[Place, float]:
    """Every module's ratio in the estimator's plan."""
    ratios = [(layer.attention_ratio, layer.mlp_ratio) for layer in make_plan(profile, config).layers]
    return {
        (index, module): both[kind] for index, both in enumerate(ratios) for kind, module in enumerate(MODULE_KINDS)
    }


@dataclass
class _Half:
    """Some of the text, on its way through the sliced model as it is."""

    targets: Int[Tensor, " scored"]
    dense_states: Tensor
    arguments: list[Arguments]
    entering: list[list[Tensor]]  # by layer, and by batch
    divergence: float = math.inf


@dataclass
class _Judge:
    """The sliced model as it is, and how far from the dense one."""

    dense: PreTrainedModel
    stats: CalibrationStats
    layers: list[nn.Module]
    halves: list[_Half]

    @property
    def divergence(self) -> float:
        return sum(half.divergence for half in self.halves) / len(self.halves)

    def with_ratios(self, ratios: Ratios) -> list[nn.Module]:
        """The layers, with these modules at other ratios."""
        layers = list(self.layers)
        for (index, module), ratio in ratios.items():
            other = self.dense.model.layers[index]
            if ratio:
                other = slice_alone(self.dense, self.stats, index, module, ratio)
            layers[index] = with_module(layers[index], module, other)
        return layers

    def stays(self, ratios: Ratios, pause: Pause) -> bool:
        """Whether these modules are better at these ratios; if so, they are left so."""
        layers, first = self.with_ratios(ratios), min(index for index, _ in ratios)
        pause()
        found = []
        for half in self.halves:
            found.append(self.measure(half, layers, first, pause))
            if not found[-1] < half.divergence:
                return False
        self.layers = layers
        for half, divergence in zip(self.halves, found, strict=True):
            half.divergence = divergence
            _follow(half, layers, first, pause)
        return True

    def measure(self, half: _Half, layers: list[nn.Module], first: int, pause: Pause) -> float:
        """KL from the dense model on one half of the text, where only layers from the `first` on are others."""
        entering = HiddenStates(half.entering[first], half.arguments)
        states = _last(self.dense, layers[first:], entering, pause)
        _, distances = read_head(self.dense, states, half.targets, (self.dense, half.dense_states), pause)
        return distances.mean().item()


def _last(model: PreTrainedModel, layers: Iterable[nn.Module], entering: HiddenStates, pause: Pause) -> Tensor:
    return last_states(model, layers, entering, pause)


def _judge(
    model: PreTrainedModel,
    stats: CalibrationStats,
    tokens: Int[Tensor, "windows window"],
    ratios: Ratios,
    pause: Pause,
) -> _Judge:
    """The judge of a slice with these ratios, who has read both halves of the tokens."""
    layers = list(model.model.layers)
    halves = []
    for part in tokens.tensor_split(2):
        start = embed(model, part)
        states = _last(model, layers, start, pause)
        halves.append(_Half(part[:, 1:].flatten(), states, start.arguments, [start.hidden]))
    judge = _Judge(model, stats, layers, halves)
    for place, ratio in ratios.items():
        judge.layers = judge.with_ratios({place: ratio})
        pause()
    for half in halves:
        _follow(half, judge.layers, 0, pause)
        half.divergence = judge.measure(half, judge.layers, len(layers) - 1, pause)
    return judge


def _follow(half: _Half, layers: list[nn.Module], first: int, pause: Pause) -> None:
    """Find anew what enters the layers after the first that is another."""
    del half.entering[first + 1 :]
    for layer in layers[first:-1]:
        hidden = zip(half.entering[-1], half.arguments, strict=True)
        half.entering.append([layer(states, **arguments) for states, arguments in hidden])
        pause()
