"""The global ratio estimator (paper §4): from importances and a sparsity to a plan for every layer. Pure.

`make_plan` reads a `Profile` only, and takes milliseconds.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import FREE, KEEP, MODULE_KINDS, RUNTIME, ModuleKind, SliceConfig, too_little_removed
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators.estimator import Importances
from intraslice.planning.kept_heads import RULES
from intraslice.planning.profile import LayerProfile, Profile, masked_parameters
from intraslice.planning.runtime_sizes import locked_ratios, runtime_layers
from intraslice.planning.sizes import (
    BLOCK,
    MULTIPLE,
    LayerPlan,
    LayerSizes,
    Parameters,
    Reasons,
    aligned,
    all_aligned,
    neurons_kept,
)

ModuleId = tuple[int, ModuleKind]
Ratios = Mapping[ModuleId, float]  # of every module
SEARCH_STEPS = 24
CONTEXT = 512  # tokens that each token attends to, itself included


def importances_along(
    profile: Profile, path: Sequence[tuple[float, Ratios]], estimator: str
) -> list[dict[ModuleKind, list[float]]]:
    """Importances of every layer, such that a plan of each measured sparsity has about the measured ratios.

    `path` has pairs of a sparsity and its ratios, both non-decreasing. Ratios in between, from 0 and to 1, are
    interpolated linearly. The order of the units is the estimator's.
    """
    layers = []
    for index, layer in enumerate(profile.layers):
        predicted: Importances = layer.importances[estimator]
        importances = {}
        for module in MODULE_KINDS:
            values: Tensor = getattr(predicted, module)
            ratios = [0.0, *(ratios[index, module] for _, ratios in path), 1.0]
            sparsities = [0.0, *(sparsity for sparsity, _ in path), 1.0]
            removed_at = torch.empty(len(values), dtype=torch.float64)
            removed_at[values.cpu().argsort(stable=True)] = removal_sparsities(ratios, sparsities, len(values))
            importances[module] = (removed_at * masked_parameters(layer.sizes, module, len(values))).tolist()
        layers.append(importances)
    return layers


def removal_sparsities(ratios: Sequence[float], sparsities: Sequence[float], units: int) -> Float[Tensor, " units"]:
    """The sparsity at which each unit is removed, the least important first. Both sequences rise from 0 to 1."""
    removed, at = (torch.tensor(values, dtype=torch.float64) for values in (ratios, sparsities))
    positions = (torch.arange(units, dtype=torch.float64) + 0.5) / units
    after = torch.searchsorted(removed, positions, right=True)
    before = after - 1
    return at[before].lerp(at[after], (positions - removed[before]) / (removed[after] - removed[before]))


@dataclass(frozen=True)
class SlicePlan:
    """Ratios and sizes of all layers, the resulting parameter counts and KV cache (dense, sliced), and the reasons."""

    config: SliceConfig
    layers: tuple[LayerPlan, ...]
    parameters: Parameters
    kv_bytes_per_token: tuple[int, int]  # dense, sliced
    reasons: Reasons

    @property
    def removed_fraction(self) -> float:
        """The fraction of the decoder layers' parameters that the plan removes."""
        return self.parameters.removed_fraction

    @property
    def recovery(self) -> str:
        """The recovery after slicing, or "none"."""
        return self.config.recovery

    @property
    def epochs(self) -> int:
        """Epochs of the recovery."""
        return self.config.epochs


def flops_per_token(profile: Profile, plan: SlicePlan, head_weights: int, context: int = CONTEXT) -> tuple[int, int]:
    """Floating-point operations per generated token (dense, sliced): one multiplication and one addition per weight.

    Counts the weights of all matrix multiplications, including `head_weights` of lm_head, and the attention scores and
    weighted values over `context` tokens. Norms, biases, rotations and activations, well below 1 %, are not counted.
    """
    dense_products = sliced_products = head_weights
    for size, layer in zip((layer.sizes for layer in profile.layers), plan.layers, strict=True):
        dense_products += size.products(size.heads, size.kv_heads, size.dim, size.neurons, context)
        sliced_products += size.products(len(layer.heads), layer.kv_heads, layer.dim, layer.neurons, context)
    return 2 * dense_products, 2 * sliced_products


def cap_ratios(ratios: Sequence[float], weights: Sequence[int], cap: float) -> list[float]:
    """Limit every ratio to `cap`, and distribute the excess over the other layers in proportion to their ratios.

    `weights` are the layers' sizes: the weighted total does not change unless every layer is at the cap.
    """
    capped = list(ratios)
    for _ in range(len(capped) if max(capped) > cap else 0):
        excess = sum(w * max(r - cap, 0.0) for r, w in zip(capped, weights, strict=True))
        capped = [min(r, cap) for r in capped]
        uncapped = [w if r < cap else 0.0 for r, w in zip(capped, weights, strict=True)]
        if excess <= 1e-12 or not any(uncapped):
            break
        removed = sum(w * r for w, r in zip(uncapped, capped, strict=True))
        if removed > 0:
            capped = [r * (1 + excess / removed) if w else r for r, w in zip(capped, uncapped, strict=True)]
        else:  # all other ratios are 0: distribute the excess evenly
            capped = [r + excess / sum(uncapped) if w else r for r, w in zip(capped, uncapped, strict=True)]
    return [min(r, cap) for r in capped]


class _Candidate(NamedTuple):
    """Ratios and sizes for one nominal sparsity, and the parameters by which they exceed the target."""

    attention: list[float]
    mlp: list[float]
    shapes: list[tuple[int, int, int]]  # heads, key/value heads, dim
    neurons: list[int]
    reasons: Reasons
    excess: float


def _candidate(profile: Profile, config: SliceConfig, nominal: float) -> _Candidate:
    """The candidate for the budget of the sparsity `nominal`. Plans try several at every move of a slider."""
    sizes = [layer.sizes for layer in profile.layers]
    if config.bias is None and _uses_importances(config):
        neurons_removed = profile.neuron_fraction(config.estimator, nominal * profile.dense_decoder)
    else:
        neurons_removed = nominal * (config.bias or 1.0)
    neurons = [s.neurons for s in sizes]
    mlp, mlp_threshold, capped_mlp = _ratios(profile, config, "mlp", neurons_removed, neurons)
    removed_by_mlp = sum(r * s.neurons * s.neuron_cost for r, s in zip(mlp, sizes, strict=True))
    attention_budget = nominal * profile.dense_decoder - removed_by_mlp
    fraction = attention_budget / sum(s.channels * s.channel_cost for s in sizes)
    channels = [s.channels for s in sizes]
    attention, attention_threshold, capped_attention = _ratios(profile, config, "attention", fraction, channels)

    shapes = [
        layer.shapes[_channels(layer, ratio)] if ratio < 1 or layer.kept else (0, 0, layer.sizes.dim)
        for layer, ratio in zip(profile.layers, attention, strict=True)
    ]
    widths = [neurons_kept(s.neurons, ratio) for s, ratio in zip(sizes, mlp, strict=True)]
    if config.shapes != FREE:
        multiples, pairs = config.alignment, zip(sizes, shapes, strict=True)
        shapes = [(count, kv_heads, aligned(dim, s.dim, multiples.dim)) for s, (count, kv_heads, dim) in pairs]
        widths = all_aligned(widths, neurons, multiples.mlp)
    for index, *_, width in config.neuron_locks:
        widths[index] = width
    bias = neurons_removed / nominal if nominal else config.bias or 1.0
    reasons = Reasons(nominal, bias, attention_threshold, mlp_threshold, capped_attention, capped_mlp)
    parameters = sum(s.parameters(*shape, width) for s, shape, width in zip(sizes, shapes, widths, strict=True))
    return _Candidate(
        attention, mlp, shapes, widths, reasons, parameters - (1 - config.sparsity) * profile.dense_decoder
    )


def _channels(layer: LayerProfile, ratio: float) -> int:
    """The budget of channels that a ratio leaves."""
    return round(layer.sizes.channels * (1 - ratio))


def _uses_importances(config: SliceConfig) -> bool:
    return ESTIMATORS[config.estimator].importance is not None


def _ratios(
    profile: Profile, config: SliceConfig, module: ModuleKind, fraction: float, weights: Sequence[int]
) -> tuple[list[float], float | None, tuple[int, ...]]:
    """Ratios of one kind of module that remove `fraction` of its units before cap and locks.

    Also the importance threshold, and the layers whose ratio the cap limits.
    """
    fraction = min(max(fraction, 0.0), 1.0)
    threshold: float | None = None
    uncapped = [fraction] * len(profile.layers)
    if _uses_importances(config):
        uncapped, threshold = profile.ranking(config.estimator, module).ratios(fraction)
    locked = locked_ratios(config, module, [layer.sizes for layer in profile.layers])
    ratios = [locked.get(index, r) for index, r in enumerate(cap_ratios(uncapped, weights, config.cap))]
    return ratios, threshold, tuple(index for index, r in enumerate(uncapped) if r > config.cap)


def require_locked_layers(config: SliceConfig, layers: int) -> None:
    """Raise UserError if a locked layer does not exist."""
    if absent := [lock[0] for lock in config.locked if lock[0] >= layers]:
        message = "layer {layer} does not exist, so it cannot be locked; layers are 0 to {last}"
        raise UserError(message, layer=absent[0], last=layers - 1)


def require_locked_units(config: SliceConfig, sizes: Sequence[LayerSizes]) -> None:
    """Raise UserError if locked heads or neurons do not exist, or if locks contradict each other or the shapes."""
    for layer, _, _, head, state in config.head_locks:
        last = sizes[layer].heads - 1
        if head > last:
            raise UserError(
                "layer {layer} has no head {head}; its heads are 0 to {last}", layer=layer, head=head, last=last
            )
        if state == KEEP and (layer, "attention", 1.0) in config.locked:
            message = "head {head} of layer {layer} cannot be kept, as 100% of its attention is locked"
            raise UserError(message, head=head, layer=layer)
    for layer, count in Counter(layer for layer, *_, state in config.head_locks if state != KEEP).items():
        if count == sizes[layer].heads:
            raise UserError("all heads of layer {layer} are locked as removed; lock 100% of its attention", layer=layer)
    for layer, *_, count in config.neuron_locks:
        dense, multiple = sizes[layer].neurons, BLOCK if config.shapes == RUNTIME else config.alignment.mlp
        if count != aligned(count, dense, multiple):
            raise UserError(
                "layer {layer} cannot keep {neurons:,} neurons; in these shapes it keeps multiples of {multiple}, at "
                "most {dense:,}",
                layer=layer,
                neurons=count,
                multiple=multiple,
                dense=dense,
            )


def make_plan(profile: Profile, config: SliceConfig) -> SlicePlan:
    """Ratios and sizes that remove `config.sparsity` of the decoder layers' parameters (paper §4).

    With a bias, `L * I * (1 - s * bias)` neurons are kept (L layers of I neurons, sparsity s); attention makes up the
    rest of the budget. Without one, the least important parameters of both are removed (the uniform estimator has 1).
    Since key/value heads are removed by groups and sizes are rounded, a search over nominal sparsities makes the actual
    sparsity meet the target; uniform ratios, which change in all layers together, miss it by up to 0.5 %. Locked ratios
    are kept, up to rounding to multiples that the shapes ask for, locked units exactly, and all else compensates for
    them. Raises UserError where the target is out of reach with the cap, the bias and the locks, with locked units by
    more than a head, or a locked layer or unit does not exist.
    """
    settings = (profile.head_fraction, profile.gradient_group, profile.sensitive_scores)
    if settings != (config.head_fraction, config.gradient_group, config.fit.sensitive_scores):
        raise ValueError(
            f"head_fraction, gradient_group and sensitive_scores of the profile, {settings}, differ from the config's; "
            "use stats.profile_for(config)"
        )
    require_locked_layers(config, len(profile.layers))
    sizes = [layer.sizes for layer in profile.layers]
    require_locked_units(config, sizes)
    profile = profile.with_locks(config.head_locks)
    layers, reasons = (runtime_layers if config.shapes == RUNTIME else _free_layers)(profile, config)
    plan = plan_of_sizes(config, layers, reasons, sizes, profile.other_parameters, profile.bytes_per_value)
    excess, allowed = plan.removed_fraction - config.sparsity, 0.01
    if len(config.ratio_locks) < len(config.locked):  # with locked units: a head
        allowed = min(allowed, max(size.dim * size.channel_cost for size in sizes) / profile.dense_decoder)
    values = {"removed": plan.removed_fraction, "sparsity": 100 * config.sparsity}
    if config.shapes not in (FREE, RUNTIME) and abs(excess) > 0.01:
        raise UserError(
            "sizes in multiples of {shapes} cannot meet sparsity {sparsity:g}%: they remove {removed:.1%} of the "
            "decoder layers' parameters; choose smaller multiples or another sparsity",
            shapes=config.shapes,
            **values,
        )
    if reasons.nominal_sparsity == 1 and excess < -allowed:
        raise too_little_removed(config, plan.removed_fraction)
    if config.locked and reasons.nominal_sparsity in (0, 1) and excess > allowed:
        raise UserError(
            "the locked ratios remove {removed:.1%} of the decoder layers' parameters, more than the sparsity of "
            "{sparsity:g}%; unlock ratios or raise the sparsity",
            **values,
        )
    return plan


def head_rules(profile: Profile, plan: SlicePlan, index: int) -> tuple[str, ...]:
    """The rule that keeps or removes each query head of a layer, one of `RULES`.

    Empty where none does: in runtime shapes, where the whole module is removed, and for a profile without rules.
    """
    layer, kept = profile.with_locks(plan.config.head_locks).layers[index], plan.layers[index]
    if layer.rules is None or plan.config.shapes == RUNTIME or not kept.heads:
        return ()
    alive = np.isin(np.arange(layer.sizes.heads), kept.heads)
    budgets = np.flatnonzero((layer.alive == alive).all(1))
    budget = budgets[np.abs(budgets - _channels(layer, kept.attention_ratio)).argmin()]
    return tuple(RULES[rule] for rule in layer.rules[budget])


def plan_of_sizes(
    config: SliceConfig,
    layers: Sequence[LayerPlan],
    reasons: Reasons,
    sizes: Sequence[LayerSizes],
    other_parameters: int,
    bytes_per_value: int,
) -> SlicePlan:
    """The plan of these layers, with the counts that follow from it; `sizes` are the dense ones."""
    dense = sum(size.dense_parameters for size in sizes)
    sliced = sum(layer.parameters(size) for size, layer in zip(sizes, layers, strict=True))
    dense_cache = sum(size.cached_values(size.kv_heads, size.dim) for size in sizes)
    sliced_cache = sum(size.cached_values(kept.kv_heads, kept.dim) for size, kept in zip(sizes, layers, strict=True))
    cache = dense_cache * bytes_per_value, sliced_cache * bytes_per_value
    parameters = Parameters(dense + other_parameters, sliced + other_parameters, dense, sliced)
    return SlicePlan(config, tuple(layers), parameters, cache, reasons)


def _free_layers(profile: Profile, config: SliceConfig) -> tuple[list[LayerPlan], Reasons]:
    """The layers whose parameters are nearest to the target: regula falsi (Pegasus) on the nominal sparsity.

    Widths change in steps; the search ends within half a step of one layer.
    """
    tolerance = MULTIPLE / 2 * min(layer.sizes.neuron_cost for layer in profile.layers)
    low, high = (_candidate(profile, config, nominal) for nominal in (0.0, 1.0))
    best = min(high, low, key=lambda candidate: abs(candidate.excess))
    above, below = low.excess, high.excess
    for _ in range(SEARCH_STEPS):
        if above <= 0 or below >= 0 or abs(best.excess) <= tolerance:
            break
        start, end = low.reasons.nominal_sparsity, high.reasons.nominal_sparsity
        candidate = _candidate(profile, config, start + above / (above - below) * (end - start))
        best = min(best, candidate, key=lambda candidate: abs(candidate.excess))
        current = candidate.excess
        if current > 0:
            low, above, below = candidate, current, below * above / (above + current)
        else:
            high, above, below = candidate, above * below / (below + current), current
    layers, places = [], zip(profile.layers, best.attention, best.mlp, best.shapes, best.neurons, strict=True)
    for layer, attention, mlp, (count, kv_heads, dim), neurons in places:
        heads = layer.heads(_channels(layer, attention)) if count else ()
        # The widths of heads are rounded: a budget of 28 % may remove 25 %.
        attention = 1 - count * dim / layer.sizes.channels
        if config.shapes != FREE or layer.kept or layer.removed:
            mlp = 1 - neurons / layer.sizes.neurons
        layers.append(LayerPlan(attention, mlp, heads, kv_heads, dim, neurons))
    return layers, best.reasons
