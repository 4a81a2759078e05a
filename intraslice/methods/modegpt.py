"""MoDeGPT (arXiv 2408.09632): classical decompositions of modules, with entropic ratios per layer.

*MLPs*, Nystroem: neurons with the highest ridge leverage scores are kept, the output map compensates for the others.
*Queries and keys*, CR decomposition: channels with the highest products of norms are kept. *Values and outputs*, SVD of
their product, whitened by their inputs. All heads are kept with fewer channels, unless the ratio is 1. All transforms
are fused into the weights.

Choices that the paper leaves open: rotary embeddings rotate channels in pairs, so CR chooses pairs, by the norms of
both channels. With grouped queries, norms are summed over the query heads of a key head, whose output maps share one
SVD. Widths of heads are even; MLPs compensate for the rounding. Biases are kept; that of an output map includes
the mean of the removed neurons.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.calibration.stats import LayerStats
from intraslice.core.linalg import by_kv_head, cholesky, damp, principal_axes
from intraslice.core.weights import UNROTATED, AttentionWeights
from intraslice.methods.layer_ratios import LayerRatioMethod
from intraslice.methods.registry import METHODS
from intraslice.modeling.attention import SlicedAttention
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.attention import cut_queries_and_keys

TEMPERATURE = 0.1  # the paper's epsilon; on SmolLM2 0.1 to 0.3 are within 2 %, and uniform ratios 8 % worse


class MoDeGPT(LayerRatioMethod):
    """MoDeGPT (arXiv 2408.09632); see the docstring of this file."""

    name = "modegpt"
    label = "MoDeGPT"
    explanation = "MoDeGPT: Nystroem, CR and SVD inside the modules, ratios by how much each layer changes its input"

    def layer_ratios(self, influence: Sequence[float], mean: float) -> list[float]:
        return entropic_ratios(influence, mean, TEMPERATURE)

    def highest_mean(self, influence: Sequence[float], cap: float) -> float:
        return cap / max(min(entropic_ratios(influence, 1.0, TEMPERATURE)), 1e-12)

    def narrow_attention(self, dense: SlicedAttention, plan: LayerPlan, stats: LayerStats) -> AttentionWeights:
        weights, dim = dense.weights(), plan.dim
        scores = pair_norms(stats.query_energy, stats.key_energy, weights.kv_head, weights.frequency)
        cut = cut_queries_and_keys(weights, scores, plan.heads, dim)
        value, bias, output = narrow_values(weights, stats.value_moment, dim)
        return replace(cut, value=value, value_bias=bias, output=output)


def entropic_ratios(importance: Sequence[float], mean: float, temperature: float) -> list[float]:
    """The ratios with this mean that maximise `sum s_i (1 - r_i) + temperature * entropy(r)`, uncapped.

    `r = L * mean * softmax(-s / temperature)` (MoDeGPT, arXiv 2408.09632, global sparsity allocation).
    """
    weights = (-torch.tensor(importance, dtype=torch.float64) / temperature).softmax(0)
    return (len(importance) * mean * weights).tolist()


def pair_norms(
    query_energy: Float[Tensor, "heads dim"],
    key_energy: Float[Tensor, "kv_heads dim"],
    kv_head: Int[Tensor, " heads"],
    frequency: Int[Tensor, "kv_heads pairs"],
) -> Float[Tensor, "heads dim"]:
    """CR scores `||Q_j|| ||K_j||` of query and key channels (type II); the channels of a rotated pair share one.

    All query heads of a key have the same scores, so that sums over them do not change the ranking.
    """
    query = by_kv_head(query_energy, kv_head)
    rotated = frequency != UNROTATED

    def shared(energy: Float[Tensor, "kv_heads dim"]) -> Float[Tensor, "kv_heads dim"]:
        first, second = energy.chunk(2, dim=-1)
        return torch.cat([torch.where(rotated, first + second, single) for single in (first, second)], dim=-1)

    return (shared(query) * shared(key_energy)).sqrt()[kv_head]


def narrow_values(
    weights: AttentionWeights, moment: Float[Tensor, "kv_heads d d"], dim: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Values, their bias and output maps of `dim` channels whose product is nearest to the dense one (type III).

    Minimises the error of each head's output for values with this second `moment`: singular vectors of `W_o L`, where
    `L L^T` is the moment. Raises NumericalError where it is singular.
    """
    values, biases, outputs = [], [], torch.zeros_like(weights.output[..., :dim])
    for group, group_moment in enumerate(moment.double()):
        readers = (weights.kv_head == group).nonzero().flatten()
        root = cholesky(damp(group_moment, 1e-6))
        output = weights.output[:, readers].double() @ root  # (written, readers, d)
        _, axes = principal_axes(torch.einsum("whp,whq->pq", output, output))
        back = torch.linalg.solve_triangular(root.T, axes[:, :dim], upper=True).T  # axes^T root^-1
        values.append(back @ weights.value[group].double())
        if weights.value_bias is not None:
            biases.append(back @ weights.value_bias[group].double())
        outputs[:, readers] = (output @ axes[:, :dim]).to(outputs.dtype)
    dtype = weights.value.dtype
    bias = torch.stack(biases).to(dtype) if biases else None
    return torch.stack(values).to(dtype), bias, outputs


METHODS.register(MoDeGPT())
