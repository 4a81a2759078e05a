"""The two drivers: a plan and a dense model in, progress events, a smaller model out. The dense model is never touched.

*Sequential* (the paper's): layer by layer, attention then MLP, each fitted on activations of the already sliced layers.
*One-shot*: all moments from the dense model's calibration, so that only linear algebra is left.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.driver import CalibrationStats, LayerStats
from intraslice.config import SliceConfig
from intraslice.layer_weights import AttentionWeights
from intraslice.linalg import add_moment_, typical_damping
from intraslice.modeling.attention import SlicedAttention, attend
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import HiddenStates, embed
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import offload_like_, resident
from intraslice.modeling.surgery import with_parts
from intraslice.planning.ratios import LayerPlan, SlicePlan
from intraslice.progress import Progress
from intraslice.slicing.attention import (
    OutputMoments,
    choose_channels,
    cut_queries_and_keys,
    fit_output,
    fuse,
    value_axes,
)
from intraslice.slicing.mlp import fitted_moment, slice_mlp
from intraslice.slicing.refine import refine_mlp


def slice_model(
    model: PreTrainedModel,
    plan: SlicePlan,
    stats: CalibrationStats,
    tokens: Int[Tensor, "sequences length"] | None = None,
) -> Generator[Progress, None, PreTrainedModel]:
    """Build the model that `plan` describes, in the order its config names; yields progress by layer.

    The sequential order needs `tokens`, the one-shot order reads `stats` alone. Embeddings, norms and untouched modules
    are shared with the dense model. Raises NumericalError where a moment is not finite or singular.
    """
    if plan.config.order == "one-shot":
        events = _one_shot(model, plan, stats)
    elif tokens is None:
        raise ValueError("the sequential order slices on tokens and got none; pass the calibration's")
    else:
        events = _sequential(model, plan, stats, tokens)
    parts: dict[nn.Module, nn.Module] = {}
    layers, done = blocks(model), 0
    yield Progress("slice", done, len(plan.layers))
    for event in events:
        if isinstance(event, Progress):  # from inside a layer
            yield event
            continue
        for dense, sliced in zip((layers[done].attention, layers[done].mlp), event, strict=True):
            offload_like_(sliced, dense)
            parts[dense] = sliced
        done += 1
        yield Progress("slice", done, len(plan.layers))
    return with_parts(model, parts)


def _untouched(attention: SlicedAttention, plan: LayerPlan) -> bool:
    return len(plan.heads) == attention.heads and plan.dim == attention.dim


# One-shot


def _one_shot(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats
) -> Iterator[tuple[SlicedAttention, SlicedMLP]]:
    for block, layer, moments in zip(blocks(model), plan.layers, stats.layers, strict=True):
        with resident(block.attention), resident(block.mlp):
            sliced = (
                attention_from_moments(block.attention, layer, moments, stats.tokens),
                mlp_from_stats(block.mlp, layer.neurons, moments, stats.tokens),
            )
        yield sliced


def attention_from_moments(dense: SlicedAttention, plan: LayerPlan, stats: LayerStats, tokens: int) -> SlicedAttention:
    """The attention that `plan` describes, fitted on the dense calibration alone; the dense one where nothing goes."""
    if _untouched(dense, plan):
        return dense
    weights = dense.weights()
    heads = torch.tensor(plan.heads, device=weights.query.device)
    channels, frequency = choose_channels(stats.query_fisher, weights, heads, plan.dim)
    cut = cut_queries_and_keys(weights, heads, channels, frequency)
    kept = (heads[:, None] * dense.value_dim + torch.arange(dense.value_dim, device=heads.device)).flatten()
    mean = stats.attention_sum / tokens
    moments = OutputMoments(
        kept=stats.attention_moment[kept][:, kept],
        cross=stats.attention_moment[kept],
        kept_mean=mean[kept],
        dense_mean=mean,
        tokens=tokens,
    )
    return _fit_attention(weights, cut, moments, plan.dim, dense.layer_idx)


def _fit_attention(
    dense: AttentionWeights, cut: AttentionWeights, moments: OutputMoments, dim: int, layer: int
) -> SlicedAttention:
    axes = value_axes(moments.kept, cut.kv_head, dim)
    output, bias = fit_output(moments, axes[cut.kv_head], dense)
    return SlicedAttention(fuse(cut, axes, output, bias), layer)


def mlp_from_stats(dense: SlicedMLP, width: int, stats: LayerStats, tokens: int) -> SlicedMLP:
    """The MLP of `width` neurons, fitted on the dense calibration alone; the dense one where nothing goes."""
    return _mlp_from_moments(dense, width, stats.mlp_moment, stats.mlp_sum, tokens, stats.mlp_fisher)


def _mlp_from_moments(
    dense: SlicedMLP, width: int, moment: Tensor, total: Tensor, tokens: int, fisher: Tensor
) -> SlicedMLP:
    if width == dense.neurons:
        return dense
    weights, mean = dense.weights(), total / tokens
    damping = typical_damping(fitted_moment(weights, moment, mean, tokens))
    return SlicedMLP(slice_mlp(weights, moment, mean, tokens, width, damping, fisher))


# Sequential


def _sequential(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats, tokens: Int[Tensor, "sequences length"]
) -> Iterator[Progress | tuple[SlicedAttention, SlicedMLP]]:
    with torch.no_grad():
        hidden_states = embed(model, tokens)
    for block, layer, dense in zip(blocks(model), plan.layers, stats.layers, strict=True):
        with resident(block.attention), resident(block.mlp):
            sliced = yield from _slice_block_(block, layer, dense, hidden_states, tokens.numel(), plan.config)
        yield sliced


@torch.no_grad()  # which torch lifts at every yield: the caller's own gradient mode stays as it is
def _slice_block_(
    block: Block, plan: LayerPlan, stats: LayerStats, hidden_states: HiddenStates, tokens: int, config: SliceConfig
) -> Generator[Progress, None, tuple[SlicedAttention, SlicedMLP]]:
    """Slice one layer on the hidden states that enter it and move them through the sliced layer, in place."""
    attention = _attention_from_hidden_states(block, plan, stats.query_fisher, hidden_states, tokens)
    if block.parallel:
        mlp = yield from _mlp_from_hidden_states(block, plan, stats.mlp_fisher, hidden_states, tokens, config)
        norm = block.attention_norm

        def add_outputs(hidden: Tensor, arguments: dict) -> Tensor:
            normed = norm(hidden)
            return hidden + attention(normed, **arguments)[0] + mlp(normed)

        hidden_states.map_(add_outputs)
        return attention, mlp
    hidden_states.map_(lambda hidden, arguments: hidden + attention(block.attention_norm(hidden), **arguments)[0])
    mlp = yield from _mlp_from_hidden_states(block, plan, stats.mlp_fisher, hidden_states, tokens, config)
    hidden_states.map_(lambda hidden, _: hidden + mlp(block.mlp_norm(hidden)))
    return attention, mlp


def _attention_from_hidden_states(
    block: Block, plan: LayerPlan, fisher: Tensor, hidden_states: HiddenStates, tokens: int
) -> SlicedAttention:
    """Recompute the head outputs with the chosen query and key channels, and fit the rest on those."""
    dense = block.attention
    if _untouched(dense, plan):
        return dense
    weights = dense.weights()
    heads = torch.tensor(plan.heads, device=weights.query.device)
    channels, frequency = choose_channels(fisher, weights, heads, plan.dim)
    cut = cut_queries_and_keys(weights, heads, channels, frequency)
    groups = weights.kv_head[heads].unique()

    kept_size, dense_size = len(heads) * dense.value_dim, dense.heads * dense.value_dim
    moments = [torch.zeros(kept_size, size, device=heads.device) for size in (kept_size, dense_size)]
    sums = [torch.zeros(size, device=heads.device) for size in (kept_size, dense_size)]
    for hidden, arguments in hidden_states.normed(block.attention_norm):
        query, key, value = dense.project(hidden, arguments["position_embeddings"])
        mask = arguments["attention_mask"]
        dense_outputs = dense.attend(query, key, value, mask)
        narrow_query = query[:, heads].gather(3, _columns(channels[cut.kv_head], query))
        narrow_key = key[:, groups].gather(3, _columns(channels, key))
        shared_key, shared_value = narrow_key[:, cut.kv_head], value[:, groups][:, cut.kv_head]
        kept_outputs = attend(narrow_query, shared_key, shared_value, dense.scale, mask)
        add_moment_(moments[0], kept_outputs)
        add_moment_(moments[1], kept_outputs, dense_outputs)
        for total, rows in zip(sums, (kept_outputs, dense_outputs), strict=True):
            total += rows.flatten(0, 1).float().sum(0)
    fitted = OutputMoments(moments[0], moments[1], sums[0] / tokens, sums[1] / tokens, tokens)
    return _fit_attention(weights, cut, fitted, plan.dim, dense.layer_idx)


def _columns(channels: Int[Tensor, "heads dim"], states: Float[Tensor, "batch all tokens d"]) -> Tensor:
    """An index (batch, heads, tokens, dim) that gathers each head's channels from `states`."""
    return channels[None, :, None].expand(states.shape[0], -1, states.shape[2], -1)


def _mlp_from_hidden_states(
    block: Block, plan: LayerPlan, fisher: Tensor, hidden_states: HiddenStates, tokens: int, config: SliceConfig
) -> Generator[Progress, None, SlicedMLP]:
    dense = block.mlp
    if plan.neurons == dense.neurons:
        return dense
    device = hidden_states.hidden[0].device
    moment, total = torch.zeros(dense.neurons, dense.neurons, device=device), torch.zeros(dense.neurons, device=device)
    for hidden, _ in hidden_states.normed(block.mlp_norm):
        rows = dense.inner(hidden)
        add_moment_(moment, rows)
        total += rows.flatten(0, 1).float().sum(0)
    sliced = _mlp_from_moments(dense, plan.neurons, moment, total, tokens, fisher)
    if not config.iterative or plan.mlp_ratio <= config.iterative_above:
        return sliced
    inputs = (hidden for hidden, _ in hidden_states.normed(block.mlp_norm))
    return SlicedMLP((yield from refine_mlp(dense.weights(), sliced.weights(), inputs)))
