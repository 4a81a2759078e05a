"""Slicing one MLP: which neurons stay, and how the output map makes up for the rest (paper §3). Pure."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.linalg import DAMPING, OrderedFactor, damp, factor_in_order
from intraslice.core.weights import MLPWeights


def neuron_scores(
    moment: Float[Tensor, "neurons neurons"], down: Float[Tensor, "hidden neurons"]
) -> Float[Tensor, " neurons"]:
    """`S_jj ||W_down[:, j]||^2`: how much of the MLP's output each neuron carries."""
    return moment.diagonal() * down.to(moment.dtype).square().sum(0)


def fitted_moment(
    weights: MLPWeights, moment: Float[Tensor, "neurons neurons"], mean: Float[Tensor, " neurons"], tokens: int
) -> Float[Tensor, "neurons neurons"]:
    """What neurons are chosen and repaired by: the moment, less the means where the bias of `down` takes those over."""
    return moment if weights.down_bias is None else moment - tokens * torch.outer(mean, mean)


def slice_mlp(
    weights: MLPWeights,
    moment: Float[Tensor, "neurons neurons"],
    mean: Float[Tensor, " neurons"],
    tokens: int,
    width: int,
    damping: float = DAMPING,
    fisher: Float[Tensor, " neurons"] | None = None,
) -> MLPWeights:
    """Keep the `width` best neurons and express the others in them.

    `moment` is `A^T A` over `tokens` tokens of what enters `down`, `mean` its mean. With `S = damp(A^T A)`,
    `W_down <- W_down[:, kept] + W_down[:, cut] S_ck S_kk^-1`. Where `down` has a bias, scores and fit are centred and
    the bias takes the constant part of the neurons that go.
    """
    fitted = fitted_moment(weights, moment, mean, tokens)
    return keep_best(weights, rank_neurons(weights, fitted, damping, fisher), mean, width)


def rank_neurons(
    weights: MLPWeights,
    fitted: Float[Tensor, "neurons neurons"],
    damping: float = DAMPING,
    fisher: Float[Tensor, " neurons"] | None = None,
) -> OrderedFactor:
    """Neurons by their score, by the `fitted_moment` (the paper's).

    Given `fisher`, `sum_t (a_tj dL/da_tj)^2`, by the product of both: what a neuron carries, and what the loss would
    feel of it. Raises NumericalError where the damped moment is not finite or singular.
    """
    damped = damp(fitted, damping)
    scores = neuron_scores(damped, weights.down)
    if fisher is not None:
        scores = scores * (fisher / fisher.mean().clamp_min(torch.finfo(fisher.dtype).tiny)).to(scores.dtype)
    return factor_in_order(damped, scores.argsort(descending=True, stable=True))


def keep_best(weights: MLPWeights, ranked: OrderedFactor, mean: Float[Tensor, " neurons"], width: int) -> MLPWeights:
    """Keep the `width` best neurons and express the others in them, as `slice_mlp` does.

    The factor's first rows are that of the kept neurons' own moment, whatever the width: `S_ck S_kk^-1` is
    `L_ck L_kk^-1`.
    """
    kept, cut = ranked.order[:width], ranked.order[width:]
    down = weights.down.to(ranked.factor.dtype)
    of_cut = down.index_select(1, cut) @ ranked.factor[width:, :width]
    repair = torch.linalg.solve_triangular(ranked.factor[:width, :width], of_cut, upper=False, left=False)
    bias = weights.down_bias
    if bias is not None:
        bias = (bias + down[:, cut] @ mean[cut] - repair @ mean[kept]).to(weights.down.dtype)
    kept, place = kept.sort()
    repaired = down.index_select(1, kept) + repair.index_select(1, place)
    return select_neurons(weights, kept, repaired.to(weights.down.dtype), bias)


def keep_neurons(
    weights: MLPWeights,
    moment: Float[Tensor, "neurons neurons"],
    mean: Float[Tensor, " neurons"],
    tokens: int,
    kept: Int[Tensor, " kept"],
    damping: float = DAMPING,
) -> MLPWeights:
    """Keep the given neurons, whoever chose them, and express the others in them, as `slice_mlp` does.

    Raises NumericalError where the damped moment is not finite or singular.
    """
    cut = torch.ones_like(mean, dtype=torch.bool).scatter_(0, kept, False).nonzero().flatten()
    damped = damp(fitted_moment(weights, moment, mean, tokens), damping)
    return keep_best(weights, factor_in_order(damped, torch.cat([kept, cut])), mean, len(kept))


def select_neurons(
    weights: MLPWeights, kept: Int[Tensor, " kept"], down: Float[Tensor, "hidden kept"], down_bias: Tensor | None
) -> MLPWeights:
    """The kept rows of `gate` and `up` with their biases, over a new output map."""

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.index_select(0, kept)

    return replace(
        weights,
        gate=rows(weights.gate),
        up=weights.up.index_select(0, kept),
        gate_bias=rows(weights.gate_bias),
        up_bias=rows(weights.up_bias),
        down=down,
        down_bias=down_bias,
    )
