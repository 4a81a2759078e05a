"""Slicing of one attention layer: rotary pairs, value basis and output map for the heads of the plan (paper §3). Pure.

H query heads, K key/value heads, d channels per head, D hidden size; primes mark kept dimensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.fit_config import FitConfig
from intraslice.core.kept_channels import Chosen
from intraslice.core.kept_channels import choose_channels as choose_channels
from intraslice.core.linalg import damp, output_fit, solve
from intraslice.core.weights import AttentionWeights


def cut_queries_and_keys(
    weights: AttentionWeights, scores: Float[Tensor, "heads d"], heads: Sequence[int], dim: int
) -> AttentionWeights:
    """Keep these heads, their key/value heads and the channels of `choose_channels`; values keep their width."""
    kept = torch.tensor(heads, dtype=torch.long, device=weights.query.device)
    return keep_channels(weights, kept, choose_channels(scores, weights, kept, dim))


def keep_channels(weights: AttentionWeights, kept: Int[Tensor, " kept"], chosen: Chosen) -> AttentionWeights:
    """Keep these heads, their key/value heads and the chosen channels; values keep their width."""
    (channels, frequency), (groups, kv_head) = chosen, weights.kv_head[kept].unique(return_inverse=True)
    query_channels = channels[kv_head]

    def rows(tensor: Tensor, owners: Tensor, columns: Tensor) -> Tensor:
        return tensor[owners[:, None], columns]

    return replace(
        weights,
        query=rows(weights.query, kept, query_channels),
        query_bias=None if weights.query_bias is None else rows(weights.query_bias, kept, query_channels),
        key=rows(weights.key, groups, channels),
        key_bias=None if weights.key_bias is None else rows(weights.key_bias, groups, channels),
        value=weights.value[groups],
        value_bias=None if weights.value_bias is None else weights.value_bias[groups],
        output=weights.output[:, kept],
        kv_head=kv_head,
        frequency=frequency,
    )


@dataclass(frozen=True)
class OutputMoments:
    """Moments for fitting the output map over N tokens: `X'` from kept heads (C' channels), `X` from dense ones."""

    kept: Float[Tensor, "kept kept"]  # X'^T X'
    cross: Float[Tensor, "kept dense"]  # X'^T X
    kept_mean: Float[Tensor, " kept"]
    dense_mean: Float[Tensor, " dense"]
    tokens: int


def fit_output(
    moments: OutputMoments,
    axes: Float[Tensor, "heads d dim"],
    weights: AttentionWeights,
    cut: AttentionWeights,
    config: FitConfig,
) -> tuple[Float[Tensor, "hidden heads dim"], Float[Tensor, " hidden"] | None]:
    """Ridge least squares of the dense layer's output on `Z = X' V`; `axes` holds V for every kept query head.

    Solves for the fused output map at once (D right-hand sides). With `ridge_on_change` the penalty is on the change of
    the map: `W = W_k V + (W_o X^T - W_k V Z^T) Z damp(Z^T Z)^-1`, where `W_k`, of `cut`, has the dense output map's
    columns of the kept heads. Otherwise it is on the map itself (paper §3): `W = W_o X^T Z damp(Z^T Z)^-1`. If the
    layer has an output bias, the fit is centred and the bias compensates for the difference of the means; otherwise it
    is None. If no head is kept, only the bias is left. Raises NumericalError where the damped moment is not finite or
    singular.
    """
    heads, width, dim = axes.shape
    dense_output = weights.output.flatten(1).to(moments.kept.dtype)  # (D, H * d)
    moment, cross = moments.kept, moments.cross @ dense_output.T
    if weights.output_bias is not None:
        moment = moment - moments.tokens * torch.outer(moments.kept_mean, moments.kept_mean)
        cross = cross - moments.tokens * torch.outer(moments.kept_mean, dense_output @ moments.dense_mean)
    fit = output_fit(moment, cross, axes, cut.output)
    damped = damp(fit.moment, config.attention_ridge)
    output = (fit.before + solve(damped, fit.missing) if config.ridge_on_change else solve(damped, fit.cross)).T
    bias = None
    if weights.output_bias is not None:
        projected_mean = torch.einsum("hap,ha->hp", axes, moments.kept_mean.view(heads, width)).flatten()
        bias = weights.output_bias + dense_output @ moments.dense_mean - output @ projected_mean
    return output.unflatten(1, (heads, dim)), bias


def fuse(
    cut: AttentionWeights,
    axes: Float[Tensor, "kv_heads d dim"],
    output: Float[Tensor, "hidden heads dim"],
    output_bias: Float[Tensor, " hidden"] | None,
) -> AttentionWeights:
    """Fuse the value basis and the output map into the weights: `W_v <- V^T W_v`, likewise the bias."""
    dtype = cut.value.dtype
    bias = cut.value_bias
    return replace(
        cut,
        value=torch.einsum("gap,gad->gpd", axes, cut.value.to(axes.dtype)).to(dtype),
        value_bias=None if bias is None else torch.einsum("gap,ga->gp", axes, bias.to(axes.dtype)).to(dtype),
        output=output.to(dtype),
        output_bias=None if output_bias is None else output_bias.to(dtype),
    )
