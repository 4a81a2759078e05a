"""Slicing of one MLP: kept neurons, and an output map that compensates for the others (paper §3). Pure."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.fit_config import FitConfig
from intraslice.core.linalg import OrderedFactor, damp, damp_by_channel, factor_in_order
from intraslice.core.weights import MLPWeights

Neurons = Float[Tensor, " neurons"]


def fitted_moment(
    weights: MLPWeights, moment: Float[Tensor, "neurons neurons"], mean: Neurons, tokens: int
) -> Float[Tensor, "neurons neurons"]:
    """The moment for scores and fit; centred if `down` has a bias, which compensates for the means.

    `moment` is `A^T A` over `tokens` tokens of the input of `down`, `mean` its mean.
    """
    return moment if weights.down_bias is None else moment - tokens * torch.outer(mean, mean)


def rank_neurons(
    weights: MLPWeights, fitted: Float[Tensor, "neurons neurons"], fisher: Neurons, config: FitConfig
) -> OrderedFactor:
    """Rank neurons by their `neuron_scores` from the `fitted_moment`.

    Without `sensitive_scores`, neurons are ranked by their `output_energies` alone (paper §3). Raises NumericalError
    where the damped moment is not finite or singular.
    """
    damped = (damp_by_channel if config.ridge_by_channel else damp)(fitted, config.mlp_ridge)
    energies = output_energies(weights.down, damped.diagonal())
    scores = neuron_scores(energies, fisher) if config.sensitive_scores else energies
    return factor_in_order(damped, best_first(scores))


def output_energies(down: Float[Tensor, "hidden neurons"], damped: Neurons) -> Neurons:
    """Return the energy of each neuron's contribution to the output, `S_jj ||W_down[:, j]||^2`, the paper's score.

    `damped` is the diagonal of the damped moment S.
    """
    return damped * down.to(damped.dtype).square().sum(0)


def neuron_scores(energies: Neurons, fisher: Neurons) -> Neurons:
    """Return the score of each neuron: its output energy times the sensitivity of the loss.

    The sensitivity is `fisher`, `sum_t (a_tj dL/da_tj)^2`, relative to its mean.
    """
    return energies * (fisher / fisher.mean().clamp_min(torch.finfo(fisher.dtype).tiny)).to(energies.dtype)


def best_first(scores: Neurons) -> Int[Tensor, " neurons"]:
    """The order of neurons in which the first ones are kept, for any width."""
    return scores.argsort(descending=True, stable=True)


def keep_best(weights: MLPWeights, ranked: OrderedFactor, mean: Neurons, width: int) -> MLPWeights:
    """Keep the `width` best neurons, and compensate for the others by least squares.

    With `S` the moment that is factored, `W_down <- W_down[:, kept] + W_down[:, cut] S_ck S_kk^-1`. If `down` has a
    bias, it includes the constant part of the removed neurons; `mean` is that of the input of `down`. The factor's
    first rows factor the moment of the kept neurons, for any width: `S_ck S_kk^-1 = L_ck L_kk^-1`.
    """
    kept, cut = ranked.order[:width], ranked.order[width:]
    down = weights.down.to(ranked.factor.dtype)
    cut_output = down.index_select(1, cut) @ ranked.factor[width:, :width]
    repair = torch.linalg.solve_triangular(ranked.factor[:width, :width], cut_output, upper=False, left=False)
    bias = weights.down_bias
    if bias is not None:
        bias = (bias + down[:, cut] @ mean[cut] - repair @ mean[kept]).to(weights.down.dtype)
    kept, order = kept.sort()
    repaired = down.index_select(1, kept) + repair.index_select(1, order)
    return select_neurons(weights, kept, repaired.to(weights.down.dtype), bias)


def select_neurons(
    weights: MLPWeights, kept: Int[Tensor, " kept"], down: Float[Tensor, "hidden kept"], down_bias: Tensor | None
) -> MLPWeights:
    """The kept rows of `gate` and `up` with their biases, and a new output map."""

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
