"""Search for better ratios by measurement: swaps of parameters between modules that lower the KL divergence.

An estimator predicts the importance of units from the dense model; the search measures modules *in a sliced model*.
Random swaps are accepted if the KL divergence from the dense model falls on both halves of the text. The size never
changes, and every intermediate model is a one-shot slice.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
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
from intraslice.core.records import read_record, write_record
from intraslice.diagnostics.marginal_costs import parameters_at
from intraslice.diagnostics.sensitivity import sensitivity_path, slice_alone, with_module
from intraslice.evaluation.divergence import head_losses
from intraslice.loading import LoadedModel
from intraslice.modeling.hidden_states import HiddenStates, LayerArguments, call_layer, embed, last_states
from intraslice.planning.budget import bisect_count
from intraslice.planning.measured import ModuleId, Ratios
from intraslice.planning.profile import Profile
from intraslice.planning.ratios import make_plan

SWAPS = 200
AMOUNTS = (0.0005, 0.001, 0.002)  # fractions of the decoder layers' parameters that a swap moves
SIZE_TOLERANCE = 0.0004  # allowed deviation of the size during the search, as such a fraction
GRID = 200  # ratios are multiples of 1 / GRID
MAX_SCALE = 4.0  # maximum multiple of the ratios that the estimator's plan adds
MAX_DRAWS = 50  # samples without a swap that keeps the size, before the search ends
SAVE_EVERY = 10  # swaps


@dataclass(frozen=True)
class SearchResult:
    """Ratios of every module, the KL divergence before and after (nats per token), and the number of accepted swaps."""

    sparsity: float
    ratios: Ratios
    before: float
    after: float
    stayed: int  # accepted swaps


@dataclass(frozen=True)
class Trials:
    """Number of swaps to try, and the seed for sampling them."""

    count: int = SWAPS
    seed: int = 0


@torch.no_grad()
def search_ratios(
    loaded: LoadedModel,
    stats: CalibrationStats,
    tokens: Int[Tensor, "windows window"],
    config: SliceConfig,
    earlier: Sequence[SearchResult] = (),
    trials: Trials | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> SearchResult:
    """Try swaps at `config.sparsity`, starting from the estimator's plan; `progress` counts them.

    The outcomes are cached, so that an interrupted search continues where it stopped. Costs about one forward per swap,
    and memory for one hidden state per token and layer.

    Args:
        tokens: should be calibration tokens, since they decide; evaluate the result on held-out text.
        earlier: results at smaller sparsities. The search then starts from the last one's ratios plus those that the
            estimator's plan adds, and never goes below the last one's, so that the larger sparsity only removes more.

    Raises:
        UserError: fewer than two windows, locked ratios, or runtime shapes.
    """
    report, trials = progress_callback(progress), trials or Trials()
    count, seed = trials.count, trials.seed
    if len(tokens) < 2 or config.locked or config.shapes != "free":
        raise UserError(
            f"the search requires two or more windows, shapes 'free' and no locked ratios, got {len(tokens)} windows, "
            f"shapes {config.shapes!r} and {len(config.locked)} locked ratios"
        )
    sampler = SwapSampler(stats.profile_for(config), config, earlier)
    path = sensitivity_path(loaded, stats, tokens, "exchanges", config, sorted(sampler.ratios.items()), seed)
    record = read_record(path)
    outcomes: list[bool] = record.get("stayed", [])[:count]
    rng = random.Random(seed)
    event = Progress("exchange", len(outcomes), count)
    report(event)
    for accepted in outcomes:  # repeat the cached part of the search
        swap = sampler.sample(rng)
        sampler.ratios |= swap if accepted else {}
    evaluator = _make_evaluator(loaded.model, stats, tokens, sampler.ratios, partial(report, event))
    before = record.get("before", evaluator.divergence)
    for done in range(len(outcomes) + 1, count + 1):
        if not (swap := sampler.sample(rng)):
            break
        accepted = evaluator.accept(swap, partial(report, event))
        sampler.ratios |= swap if accepted else {}
        outcomes.append(accepted)
        if done % SAVE_EVERY == 0 or done == count:
            write_record(path, {"stayed": outcomes, "before": before}, "the accepted swaps")
        event = Progress("exchange", done, count)
        report(event)
    return SearchResult(config.sparsity, dict(sampler.ratios), before, evaluator.divergence, sum(outcomes))


class SwapSampler:
    """The current ratios of every module, and random swaps between modules that keep the size."""

    def __init__(self, profile: Profile, config: SliceConfig, earlier: Sequence[SearchResult] = ()) -> None:
        self._profile, self._cap = profile, config.cap
        self.ratios = _planned_ratios(profile, config)
        self._min_ratios: Ratios = dict.fromkeys(self.ratios, 0.0)
        for last in earlier[-1:]:
            self._min_ratios = last.ratios
            self.ratios = self._extended(last, config)
        steps = [step / GRID for step in range(round(GRID * config.cap) + 1)]
        self._sizes = {module_id: {ratio: self._size(module_id, ratio) for ratio in steps} for module_id in self.ratios}
        self._target_size = self._total(self.ratios)

    def _extended(self, earlier: SearchResult, config: SliceConfig) -> dict[ModuleId, float]:
        """The earlier ratios plus a multiple, that meets the size, of those that the estimator's plan adds."""
        before = _planned_ratios(self._profile, replace(config, sparsity=earlier.sparsity))
        added = {module_id: max(0.0, ratio - before[module_id]) for module_id, ratio in self.ratios.items()}

        def extended(scale: float) -> dict[ModuleId, float]:
            return {
                module_id: min(self._cap, earlier.ratios[module_id] + scale * added[module_id]) for module_id in added
            }

        scale = bisect_count(lambda scale: self._total(extended(scale)), float(self._total(self.ratios)), MAX_SCALE)
        return extended(scale)

    def _size(self, module_id: ModuleId, ratio: float) -> int:
        return parameters_at(self._profile.layers[module_id[0]], module_id[1], ratio)

    def _total(self, ratios: Ratios) -> int:
        return sum(self._size(module_id, ratio) for module_id, ratio in ratios.items())

    def sample(self, rng: random.Random) -> dict[ModuleId, float]:
        """The new ratios of two modules after a swap of parameters; empty if no swap was found."""
        excess, decoder = self._total(self.ratios) - self._target_size, self._profile.dense_decoder
        for _ in range(MAX_DRAWS):
            source, target = rng.sample(list(self.ratios), 2)
            source_size, target_size = (self._size(module_id, self.ratios[module_id]) for module_id in (source, target))
            source_ratio = self._nearest_ratio(source, source_size - round(rng.choice(AMOUNTS) * decoder))
            removed = source_size - self._sizes[source][source_ratio]
            target_ratio = self._nearest_ratio(target, target_size + removed - excess)
            added = self._sizes[target][target_ratio] - target_size
            if min(removed, added) > 0 and abs(excess + added - removed) <= SIZE_TOLERANCE * decoder:
                return {source: source_ratio, target: target_ratio}
        return {}

    def _nearest_ratio(self, module_id: ModuleId, size: int) -> float:
        allowed = [ratio for ratio in self._sizes[module_id] if ratio >= self._min_ratios[module_id]]
        return min(allowed, key=lambda ratio: abs(self._sizes[module_id][ratio] - size), default=0.0)


def _planned_ratios(profile: Profile, config: SliceConfig) -> dict[ModuleId, float]:
    """The ratios of all modules in the estimator's plan."""
    ratios = [(layer.attention_ratio, layer.mlp_ratio) for layer in make_plan(profile, config).layers]
    return {
        (index, module): both[kind] for index, both in enumerate(ratios) for kind, module in enumerate(MODULE_KINDS)
    }


@dataclass
class _TextHalf:
    """One half of the text, with its hidden states in the current sliced model."""

    targets: Int[Tensor, " scored"]
    dense_states: Tensor
    arguments: list[LayerArguments]
    layer_inputs: list[list[Tensor]]  # by layer and batch
    divergence: float = math.inf


@dataclass
class _Evaluator:
    """The current sliced model, and its KL divergence from the dense one."""

    dense: PreTrainedModel
    stats: CalibrationStats
    layers: list[nn.Module]
    halves: list[_TextHalf]

    @property
    def divergence(self) -> float:
        return sum(half.divergence for half in self.halves) / len(self.halves)

    def with_ratios(self, ratios: Ratios) -> list[nn.Module]:
        """The current layers, with these modules sliced at other ratios."""
        layers = list(self.layers)
        for (index, module), ratio in ratios.items():
            source = self.dense.model.layers[index]
            if ratio:
                source = slice_alone(self.dense, self.stats, index, module, ratio)
            layers[index] = with_module(layers[index], module, source)
        return layers

    def accept(self, ratios: Ratios, pause: Pause) -> bool:
        """Whether these ratios lower the divergence on both halves; if so, the layers are replaced."""
        layers, first = self.with_ratios(ratios), min(index for index, _ in ratios)
        pause()
        divergences = []
        for half in self.halves:
            divergences.append(self.measure(half, layers, first, pause))
            if not divergences[-1] < half.divergence:
                return False
        self.layers = layers
        for half, divergence in zip(self.halves, divergences, strict=True):
            half.divergence = divergence
            _update_inputs(half, layers, first, pause)
        return True

    def measure(self, half: _TextHalf, layers: list[nn.Module], first: int, pause: Pause) -> float:
        """KL from the dense model on one half of the text; layers before `first` are the current ones."""
        inputs = HiddenStates(half.layer_inputs[first], half.arguments)
        states = last_states(self.dense, layers[first:], inputs, pause)
        _, distances = head_losses(self.dense, states, half.targets, (self.dense, half.dense_states), pause)
        return distances.mean().item()


def _make_evaluator(
    model: PreTrainedModel,
    stats: CalibrationStats,
    tokens: Int[Tensor, "windows window"],
    ratios: Ratios,
    pause: Pause,
) -> _Evaluator:
    """An evaluator of the slice with these ratios on both halves of the tokens."""
    layers = list(model.model.layers)
    halves = []
    for part in tokens.tensor_split(2):
        embedded = embed(model, part)
        states = last_states(model, layers, embedded, pause)
        halves.append(_TextHalf(part[:, 1:].flatten(), states, embedded.arguments, [embedded.hidden]))
    evaluator = _Evaluator(model, stats, layers, halves)
    for module_id, ratio in ratios.items():
        evaluator.layers = evaluator.with_ratios({module_id: ratio})
        pause()
    for half in halves:
        _update_inputs(half, evaluator.layers, 0, pause)
        half.divergence = evaluator.measure(half, evaluator.layers, len(layers) - 1, pause)
    return evaluator


def _update_inputs(half: _TextHalf, layers: list[nn.Module], first: int, pause: Pause) -> None:
    """Recompute the inputs of the layers after `first`, the first one that changed."""
    del half.layer_inputs[first + 1 :]
    for layer in layers[first:-1]:
        hidden = zip(half.layer_inputs[-1], half.arguments, strict=True)
        half.layer_inputs.append([call_layer(layer, states, arguments) for states, arguments in hidden])
        pause()
