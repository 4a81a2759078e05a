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
from intraslice.core.config import SliceConfig
from intraslice.core.linalg import OrderedFactor, add_moment_, typical_damping
from intraslice.core.progress import Progress
from intraslice.core.weights import AttentionWeights, MLPWeights
from intraslice.distributed.sharing import all_reduce_, require_enough, share_of
from intraslice.modeling.attention import SlicedAttention, attend
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import HiddenStates, embed
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import offload_like_, resident
from intraslice.modeling.residual import SlicedModule, output_of
from intraslice.modeling.surgery import with_parts
from intraslice.planning.ratios import LayerPlan, SlicePlan
from intraslice.slicing.attention import (
    OutputMoments,
    choose_channels,
    cut_queries_and_keys,
    fit_output,
    fuse,
    value_axes,
)
from intraslice.slicing.mlp import fitted_moment, keep_best, rank_neurons
from intraslice.slicing.refine import refine_mlp


def slice_model(
    model: PreTrainedModel,
    plan: SlicePlan,
    stats: CalibrationStats,
    tokens: Int[Tensor, "sequences length"] | None = None,
) -> Generator[Progress, None, PreTrainedModel]:
    """Build the model that `plan` describes, in the order its config names; yields progress by layer and batch.

    The sequential order needs `tokens`, the one-shot order reads `stats` alone. Embeddings, norms and untouched modules
    are shared with the dense model. Among several processes each passes a share of the tokens, and all build the model.
    Raises NumericalError where a moment is not finite or singular.
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
        if isinstance(event, tuple):
            for dense, sliced in zip((layers[done].attention, layers[done].mlp), event, strict=True):
                offload_like_(sliced, dense)
                parts[dense] = sliced
            done += 1
        yield event if isinstance(event, Progress) else Progress("slice", done, len(plan.layers))
    return with_parts(model, parts)


def _untouched(attention: SlicedAttention, plan: LayerPlan) -> bool:
    return len(plan.heads) == attention.heads and plan.dim == attention.dim


# One-shot


def _one_shot(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats
) -> Iterator[tuple[SlicedAttention, SlicedMLP]]:
    for index, (block, layer) in enumerate(zip(blocks(model), plan.layers, strict=True)):
        with resident(block.attention), resident(block.mlp):
            sliced = (
                attention_from_moments(block.attention, layer, stats.layers[index], stats.tokens),
                mlp_from_stats(block.mlp, layer.neurons, stats, index),
            )
        yield sliced


def attention_from_moments(dense: SlicedAttention, plan: LayerPlan, stats: LayerStats, tokens: int) -> SlicedAttention:
    """The attention that `plan` describes, fitted on the dense calibration alone; the dense one where nothing goes."""
    if _untouched(dense, plan):
        return dense
    weights = dense.weights()
    heads = torch.tensor(plan.heads, dtype=torch.long, device=weights.query.device)
    channels, frequency = choose_channels(stats.query_fisher, weights, heads, plan.dim)
    cut = cut_queries_and_keys(weights, heads, channels, frequency)
    kept = (heads[:, None] * dense.value_dim + torch.arange(dense.value_dim, device=heads.device)).flatten()
    mean = stats.attention_sum / tokens
    rows = stats.attention_moment.index_select(0, kept)
    moments = OutputMoments(
        kept=rows.index_select(1, kept),
        cross=rows,
        kept_mean=mean[kept],
        dense_mean=mean,
        tokens=tokens,
    )
    return _fit_attention(weights, cut, moments, plan.dim, dense.layer_idx)[0]


def _fit_attention(
    dense: AttentionWeights, cut: AttentionWeights, moments: OutputMoments, dim: int, layer: int
) -> tuple[SlicedAttention, Float[Tensor, "heads d dim"]]:
    """The sliced attention, and the axes that its heads' outputs are on."""
    axes = value_axes(moments.kept, cut.kv_head, dim)
    output, bias = fit_output(moments, axes[cut.kv_head], dense)
    return SlicedAttention(fuse(cut, axes, output, bias), layer), axes[cut.kv_head]


def mlp_from_stats(dense: SlicedMLP, width: int, stats: CalibrationStats, layer: int) -> SlicedMLP:
    """The MLP of `width` neurons, fitted on the dense calibration alone; the dense one where nothing goes."""
    if width == dense.neurons:
        return dense
    moments, mean = stats.layers[layer], stats.layers[layer].mlp_sum / stats.tokens
    weights, known = dense.weights(), {} if stats.ranked_neurons is None else stats.ranked_neurons
    ranked = known.get(layer) or _ranked(weights, moments.mlp_moment, mean, stats.tokens, moments.mlp_fisher)
    known[layer] = ranked
    return SlicedMLP(keep_best(weights, ranked, mean, width))


def _ranked(weights: MLPWeights, moment: Tensor, mean: Tensor, tokens: int, fisher: Tensor) -> OrderedFactor:
    fitted = fitted_moment(weights, moment, mean, tokens)
    return rank_neurons(weights, fitted, typical_damping(fitted), fisher)


# Sequential


Written = list[Float[Tensor, "batch tokens hidden"]]  # what a module adds to the hidden states, batch by batch


def _sequential(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats, tokens: Int[Tensor, "sequences length"]
) -> Iterator[Progress | tuple[SlicedAttention, SlicedMLP] | None]:
    require_enough(len(tokens))
    with torch.no_grad():
        hidden_states = embed(model, tokens[share_of(len(tokens))])
    for block, layer, dense in zip(blocks(model), plan.layers, stats.layers, strict=True):
        with resident(block.attention), resident(block.mlp):
            sliced = yield from _slice_block_(block, layer, dense, hidden_states, tokens.numel(), plan.config)
        yield sliced


@torch.no_grad()  # which torch lifts at every yield: the caller's own gradient mode stays as it is
def _slice_block_(
    block: Block, plan: LayerPlan, stats: LayerStats, hidden_states: HiddenStates, tokens: int, config: SliceConfig
) -> Generator[Progress | None, None, tuple[SlicedAttention, SlicedMLP]]:
    """Slice one layer on the hidden states that enter it, and add what it writes to them, in place.

    Yields after each batch.
    """
    attention, attended = yield from _slice_attention(block, plan, stats.query_fisher, hidden_states, tokens)
    if not block.parallel:
        hidden_states.add_(attended)
    mlp, answered = yield from _slice_mlp(block, plan, stats.mlp_fisher, hidden_states, tokens, config)
    if block.parallel:
        hidden_states.add_(attended)
    hidden_states.add_(answered)
    return attention, mlp


def _written(module: SlicedModule, norm: nn.Module, hidden_states: HiddenStates) -> Generator[None, None, Written]:
    written = []
    for hidden, arguments in hidden_states.normed(norm):
        written.append(output_of(module, hidden, arguments))
        yield
    return written


def _slice_attention(
    block: Block, plan: LayerPlan, fisher: Tensor, hidden_states: HiddenStates, tokens: int
) -> Generator[None, None, tuple[SlicedAttention, Written]]:
    """Recompute the head outputs with the chosen query and key channels, and fit the rest on those."""
    dense = block.attention
    if _untouched(dense, plan):
        return dense, (yield from _written(dense, block.attention_norm, hidden_states))
    weights = dense.weights()
    heads = torch.tensor(plan.heads, dtype=torch.long, device=weights.query.device)
    channels, frequency = choose_channels(fisher, weights, heads, plan.dim)
    cut = cut_queries_and_keys(weights, heads, channels, frequency)
    owners = weights.kv_head[heads]
    kept_channels = weights.query.new_zeros(len(channels), dense.dim).scatter_(1, channels, 1)[cut.kv_head, None]

    kept_size, dense_size = len(heads) * dense.value_dim, dense.heads * dense.value_dim
    moments = [torch.zeros(kept_size, size, device=heads.device) for size in (kept_size, dense_size)]
    sums = [torch.zeros(size, device=heads.device) for size in (kept_size, dense_size)]
    head_outputs = []
    for hidden, arguments in hidden_states.normed(block.attention_norm):
        query, key, value = dense.project(hidden, arguments["position_embeddings"])
        mask = arguments["attention_mask"]
        dense_outputs = dense.attend(query, key, value, mask)
        if plan.dim == dense.dim:
            kept_outputs = dense_outputs.unflatten(-1, (dense.heads, -1))[..., heads, :].flatten(-2)
        else:  # a query without some channels attends as if its key had none of them either
            kept_outputs = attend(query[:, heads] * kept_channels, key[:, owners], value[:, owners], dense.scale, mask)
        add_moment_(moments[0], kept_outputs)
        add_moment_(moments[1], kept_outputs, dense_outputs)
        for total, rows in zip(sums, (kept_outputs, dense_outputs), strict=True):
            total += rows.flatten(0, 1).float().sum(0)
        head_outputs.append(kept_outputs)
        yield
    all_reduce_(*moments, *sums)
    fitted = OutputMoments(moments[0], moments[1], sums[0] / tokens, sums[1] / tokens, tokens)
    attention, axes = _fit_attention(weights, cut, fitted, plan.dim, dense.layer_idx)
    yield
    axes = axes.to(weights.value.dtype)
    written = []
    for outputs in head_outputs:
        narrow = torch.einsum("bthd,hdp->bthp", outputs.unflatten(-1, axes.shape[:2]), axes)
        written.append(attention.o_proj(narrow.flatten(-2)))
        yield
    return attention, written


def _slice_mlp(
    block: Block, plan: LayerPlan, fisher: Tensor, hidden_states: HiddenStates, tokens: int, config: SliceConfig
) -> Generator[Progress | None, None, tuple[SlicedMLP, Written]]:
    """Fit on what enters the dense output map, of which the sliced MLP has the neurons that it keeps."""
    dense = block.mlp
    if plan.neurons == dense.neurons:
        return dense, (yield from _written(dense, block.mlp_norm, hidden_states))
    weights, device = dense.weights(), hidden_states.hidden[0].device
    moment, total = torch.zeros(dense.neurons, dense.neurons, device=device), torch.zeros(dense.neurons, device=device)
    neurons = []
    for hidden, _ in hidden_states.normed(block.mlp_norm):
        neurons.append(dense.inner(hidden))
        add_moment_(moment, neurons[-1])
        total += neurons[-1].flatten(0, 1).float().sum(0)
        yield
    all_reduce_(moment, total)
    mean = total / tokens
    ranked = _ranked(weights, moment, mean, tokens, fisher)
    mlp, kept = SlicedMLP(keep_best(weights, ranked, mean, plan.neurons)), ranked.order[: plan.neurons].sort().values
    yield
    if config.iterative and plan.neurons and plan.mlp_ratio > config.iterative_above:
        inputs = (hidden for hidden, _ in hidden_states.normed(block.mlp_norm))
        mlp = SlicedMLP((yield from refine_mlp(weights, mlp.weights(), inputs)))
        return mlp, (yield from _written(mlp, block.mlp_norm, hidden_states))
    written = []
    for rows in neurons:
        written.append(mlp.down_proj(rows[..., kept]))
        yield
    return mlp, written
