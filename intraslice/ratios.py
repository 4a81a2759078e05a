"""The global ratio estimator (paper §4): importances and a sparsity in, a plan for every layer out. Pure and fast.

A `Profile` is everything the estimator reads of a calibration; `make_plan` answers a slider from it in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.attention import HeadTable
from intraslice.config import Estimator, SliceConfig, UserError
from intraslice.linalg import diagonal_blocks, principal_axes
from intraslice.mlp import neurons_kept

GRADIENT_GROUP = 8  # sequences whose gradients are summed before squaring, for stability (as published)
SEARCH_STEPS = 24


def group_gradients(gradients: Float[Tensor, "sequences channels"]) -> Float[Tensor, "groups channels"]:
    """Sum the mask gradients of every `GRADIENT_GROUP` sequences."""
    return torch.stack([group.sum(0) for group in gradients.split(GRADIENT_GROUP)])


def pca_importance(
    gradients: Float[Tensor, "groups channels"], moment: Float[Tensor, "channels channels"], heads: int
) -> Float[Tensor, " channels"]:
    """Importance of each principal channel of each head: `sum_B ((g Q)_k)^2` (the paper's I_i).

    Squared channel by channel, so the arbitrary signs of eigenvectors do not matter, never summed over a whole head,
    where the rotation would cancel.
    """
    _, axes = principal_axes(diagonal_blocks(moment, heads))
    rotated = torch.einsum("bhd,hdk->bhk", gradients.unflatten(-1, (heads, -1)), axes)
    return rotated.square().sum(0).flatten()


def fisher_head_importance(gradients: Float[Tensor, "groups channels"], heads: int) -> Float[Tensor, " heads"]:
    """Importance of a whole head: the squared gradient of the head's own mask, summed over the calibration."""
    return gradients.unflatten(-1, (heads, -1)).sum(-1).square().sum(0)


def neuron_importance(gradients: Float[Tensor, "groups neurons"]) -> Float[Tensor, " neurons"]:
    """Importance of each MLP neuron: its squared mask gradient, summed over the calibration."""
    return gradients.square().sum(0)


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of one dense layer, and from them what any smaller one costs."""

    hidden: int
    heads: int
    kv_heads: int
    dim: int
    neurons: int
    gated: bool
    attention_bias: bool  # on queries, keys and values
    mlp_bias: bool
    fixed: int  # parameters that slicing leaves alone: norms and output biases

    @property
    def channels(self) -> int:
        return self.heads * self.dim

    @property
    def channel_cost(self) -> float:
        """Parameters of one query-head channel when whole groups go."""
        share = self.kv_heads / self.heads
        return 2 * self.hidden * (1 + share) + self.attention_bias * (1 + 2 * share)

    @property
    def neuron_cost(self) -> int:
        return self.hidden * (2 + self.gated) + self.mlp_bias * (1 + self.gated)

    def parameters(self, heads: int, kv_heads: int, dim: int, neurons: int) -> int:
        """Parameters of this layer at the given sizes."""
        rows = dim * (heads + 2 * kv_heads)
        attention = self.hidden * (rows + heads * dim) + self.attention_bias * rows
        return self.fixed + attention + neurons * self.neuron_cost

    @property
    def dense_parameters(self) -> int:
        return self.parameters(self.heads, self.kv_heads, self.dim, self.neurons)


@dataclass(frozen=True)
class LayerProfile:
    """What the estimator knows of one layer."""

    sizes: LayerSizes
    table: HeadTable
    kv_head: tuple[int, ...]
    fisher_heads: Float[Tensor, " heads"]
    pca_channels: Float[Tensor, " channels"]
    neurons: Float[Tensor, " neurons"]

    @cached_property
    def shapes(self) -> list[tuple[int, int, int]]:
        """(heads, key/value heads, dim) for every channel budget, ready for a search."""
        alive = self.table.alive.cpu()
        groups = torch.zeros(len(alive), self.sizes.kv_heads, dtype=torch.long)
        groups.index_add_(1, torch.tensor(self.kv_head), alive.long())
        counts = zip(alive.sum(1).tolist(), (groups > 0).sum(1).tolist(), self.table.dim.tolist(), strict=True)
        return list(counts)


@dataclass(frozen=True)
class Ranking:
    """All units of one kind over all layers, the least important first, each with the layer it belongs to."""

    importance: Float[Tensor, " units"]
    layer: Tensor
    weights: tuple[int, ...]  # units of each layer

    def ratios(self, fraction: float) -> tuple[list[float], float]:
        """The share of each layer's units among the `fraction` least important, and the threshold that cuts them."""
        total = len(self.importance)
        cut = min(max(fraction, 0.0), 1.0) * total
        whole = int(cut)
        fallen = torch.bincount(self.layer[:whole], minlength=len(self.weights)).tolist()
        if whole < total:  # the unit that straddles the budget falls in part, so that ratios move smoothly
            fallen[int(self.layer[whole])] += cut - whole
        threshold = float(self.importance[min(whole, total - 1)])
        return [count / units for count, units in zip(fallen, self.weights, strict=True)], threshold


def _rank(importances: Sequence[Tensor]) -> Ranking:
    sizes = tuple(len(units) for units in importances)
    order = torch.cat(list(importances)).sort(stable=True)
    layer = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))[order.indices.cpu()]
    return Ranking(order.values.cpu(), layer, sizes)


@dataclass(frozen=True)
class Profile:
    """Everything a plan is made of. `other_parameters` are the model's outside the decoder layers."""

    layers: tuple[LayerProfile, ...]
    other_parameters: int
    bytes_per_value: int = field(default=4)  # of a cached key or value

    @cached_property
    def rankings(self) -> dict[str, Ranking]:
        return {
            "fisher": _rank([layer.fisher_heads for layer in self.layers]),
            "pca": _rank([layer.pca_channels for layer in self.layers]),
            "neurons": _rank([layer.neurons for layer in self.layers]),
        }

    @cached_property
    def dense_decoder(self) -> int:
        return sum(layer.sizes.dense_parameters for layer in self.layers)


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gives: the estimated ratios, and the sizes that follow from them."""

    attention_ratio: float
    mlp_ratio: float
    heads: tuple[int, ...]
    kv_heads: int
    dim: int
    neurons: int


@dataclass(frozen=True)
class Parameters:
    """Parameter counts; `decoder` are the decoder layers alone, which is what sparsity refers to."""

    dense_total: int
    sliced_total: int
    dense_decoder: int
    sliced_decoder: int

    @property
    def removed_fraction(self) -> float:
        return 1 - self.sliced_decoder / self.dense_decoder


@dataclass(frozen=True)
class Reasons:
    """Why the ratios are what they are: thresholds on the importances, and layers held back by the cap."""

    nominal_sparsity: float  # what the budget was computed with, so that the removed parameters come out as asked
    attention_threshold: float | None
    mlp_threshold: float | None
    capped_attention: tuple[int, ...]
    capped_mlp: tuple[int, ...]


@dataclass(frozen=True)
class SlicePlan:
    """A ratio for every layer and module, the sizes they lead to, what that removes, and why."""

    config: SliceConfig
    layers: tuple[LayerPlan, ...]
    parameters: Parameters
    kv_bytes_per_token: tuple[int, int]  # dense, sliced
    reasons: Reasons

    @property
    def removed_fraction(self) -> float:
        return self.parameters.removed_fraction


def cap_ratios(ratios: Sequence[float], weights: Sequence[int], cap: float) -> list[float]:
    """Bound every ratio by `cap`; what is over goes to the other layers in proportion to their ratio.

    `weights` are the layers' sizes: the weighted total is unchanged unless every layer is at the cap.
    """
    capped = list(ratios)
    for _ in range(len(capped)):
        excess = sum(w * max(r - cap, 0.0) for r, w in zip(capped, weights, strict=True))
        capped = [min(r, cap) for r in capped]
        room = [w if r < cap else 0.0 for r, w in zip(capped, weights, strict=True)]
        if excess <= 1e-12 or not any(room):
            break
        shared = sum(w * r for w, r in zip(room, capped, strict=True))
        if shared > 0:
            capped = [r * (1 + excess / shared) if w else r for r, w in zip(capped, room, strict=True)]
        else:  # no proportions to follow: the rest shares alike
            capped = [r + excess / sum(room) if w else r for r, w in zip(capped, room, strict=True)]
    return [min(r, cap) for r in capped]


@dataclass(frozen=True)
class _Draft:
    attention: list[float]
    mlp: list[float]
    shapes: list[tuple[int, int, int]]
    neurons: list[int]
    parameters: int
    reasons: Reasons


def _draft(profile: Profile, config: SliceConfig, nominal: float) -> _Draft:
    """Ratios and sizes when the budget is computed with the sparsity `nominal`."""
    sizes = [layer.sizes for layer in profile.layers]
    channels, neurons = [s.channels for s in sizes], [s.neurons for s in sizes]
    mlp, mlp_threshold = _spread(profile, "neurons", config, nominal * config.bias)
    mlp_capped = cap_ratios(mlp, neurons, config.cap)
    removed_by_mlp = sum(r * s.neurons * s.neuron_cost for r, s in zip(mlp_capped, sizes, strict=True))
    left_to_attention = nominal * profile.dense_decoder - removed_by_mlp
    fraction = left_to_attention / sum(s.channels * s.channel_cost for s in sizes)
    attention, attention_threshold = _spread(profile, config.estimator, config, fraction)
    attention_capped = cap_ratios(attention, channels, config.cap)

    shapes = [
        layer.shapes[round(layer.sizes.channels * (1 - ratio))]
        for layer, ratio in zip(profile.layers, attention_capped, strict=True)
    ]
    widths = [neurons_kept(s.neurons, ratio) for s, ratio in zip(sizes, mlp_capped, strict=True)]
    return _Draft(
        attention_capped,
        mlp_capped,
        shapes,
        widths,
        sum(s.parameters(*shape, width) for s, shape, width in zip(sizes, shapes, widths, strict=True)),
        Reasons(
            nominal,
            attention_threshold,
            mlp_threshold,
            tuple(i for i, r in enumerate(attention) if r > config.cap),
            tuple(i for i, r in enumerate(mlp) if r > config.cap),
        ),
    )


def _spread(
    profile: Profile, ranking: Estimator | str, config: SliceConfig, fraction: float
) -> tuple[list[float], float | None]:
    """Ratios of one kind of unit, uncapped, whose total is `fraction` of the units."""
    fraction = min(max(fraction, 0.0), 1.0)
    if config.estimator == "uniform":
        return [fraction] * len(profile.layers), None
    return profile.rankings[ranking].ratios(fraction)


def make_plan(profile: Profile, config: SliceConfig) -> SlicePlan:
    """Ratios and sizes that remove `config.sparsity` of the decoder layers' parameters (paper §4).

    Neurons kept are `L * I * (1 - sparsity * bias)`; heads take the parameters that remain. Key/value heads go with
    their whole group and sizes are rounded, so the budget is searched for until what goes is what was asked.
    Raises UserError when the cap and the bias leave too little to remove.
    """
    wanted = (1 - config.sparsity) * profile.dense_decoder
    low, high = 0.0, 1.0
    best = _draft(profile, config, config.sparsity)
    for _ in range(SEARCH_STEPS if config.sparsity > 0 else 0):
        middle = best.reasons.nominal_sparsity if (low, high) == (0.0, 1.0) else (low + high) / 2
        draft = _draft(profile, config, middle)
        if abs(draft.parameters - wanted) < abs(best.parameters - wanted):
            best = draft
        low, high = (middle, high) if draft.parameters > wanted else (low, middle)
    parameters = Parameters(
        profile.dense_decoder + profile.other_parameters,
        best.parameters + profile.other_parameters,
        profile.dense_decoder,
        best.parameters,
    )
    if high == 1.0 and config.sparsity - parameters.removed_fraction > 0.01:  # not even everything is enough
        raise UserError(
            f"sparsity {config.sparsity:g} cannot be reached with cap {config.cap:g} and bias {config.bias:g}: at most "
            f"{parameters.removed_fraction:.3f} of the decoder layers' parameters goes; raise the cap or ask for less"
        )
    layers = []
    for layer, attention, mlp, (_, kv_heads, dim), neurons in zip(
        profile.layers, best.attention, best.mlp, best.shapes, best.neurons, strict=True
    ):
        keep = round(layer.sizes.channels * (1 - attention))
        heads = tuple(layer.table.alive[keep].nonzero().flatten().tolist())
        layers.append(LayerPlan(attention, mlp, heads, kv_heads, dim, neurons))
    dense_cache = sum(2 * layer.sizes.kv_heads * layer.sizes.dim for layer in profile.layers)
    sliced_cache = sum(2 * layer.kv_heads * layer.dim for layer in layers)
    width = profile.bytes_per_value
    return SlicePlan(config, tuple(layers), parameters, (dense_cache * width, sliced_cache * width), best.reasons)
