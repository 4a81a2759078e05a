"""Slicing of all layers, in one of two orders. The dense model is not changed.

*Sequential* (the paper's): layer by layer, attention then MLP, each fitted on activations of the already sliced layers.
*One-shot*: all moments come from the dense model's calibration, so that only linear algebra is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from weakref import ref

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.core.linalg import OrderedFactor, add_moment_, typical_damping
from intraslice.core.progress import Pause, Progress, ProgressCallback, progress_callback
from intraslice.core.weights import AttentionWeights, MLPWeights
from intraslice.distributed.sharing import all_reduce_, require_enough, shard_of
from intraslice.modeling.attention import SlicedAttention, attend
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import HiddenStates, embed, require_model
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import is_offloaded, offload_like_, resident
from intraslice.modeling.residual import SlicedModule, output_of
from intraslice.modeling.surgery import replace_modules
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


@torch.no_grad()
def slice_model(
    model: PreTrainedModel,
    plan: SlicePlan,
    stats: CalibrationStats,
    tokens: Int[Tensor, "sequences length"] | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Build the model of `plan`, in the order of its config.

    The sequential order requires `tokens`, the one-shot order reads `stats` alone. Embeddings, norms and unchanged
    modules are shared with the dense model. Pass all tokens in every process: each runs its shard of them through the
    model, and all build the sliced one. Raises NumericalError where a moment is not finite or singular.
    """
    require_model(model)
    one_shot, total = plan.config.order == "one-shot", len(plan.layers)
    if not one_shot and tokens is None:
        raise ValueError("order 'sequential' requires tokens, got None; pass those of the calibration")
    report = progress_callback(progress)
    report(Progress("slice", 0, total))
    hidden_states = None if one_shot or tokens is None else _embed_shard(model, tokens)
    token_count = 0 if tokens is None else tokens.numel()
    parts: dict[nn.Module, nn.Module] = {}
    shares = plan.recovery == NO_RECOVERY and not is_offloaded(model)  # a recovery trains the modules
    for index, (block, layer) in enumerate(zip(blocks(model), plan.layers, strict=True)):
        with resident(block.attention), resident(block.mlp):
            if hidden_states is None:
                shared = stats.sliced_modules if shares else None
                attention, mlp = _slice_one_shot(block, layer, stats, index, shared)
            else:
                fit = _SequentialFit(block, layer, stats.layers[index], hidden_states, token_count, plan.config)
                attention, mlp = fit.slice_(partial(report, Progress("slice", index, total)))
        for dense, sliced in ((block.attention, attention), (block.mlp, mlp)):
            offload_like_(sliced, dense)
            parts[dense] = sliced
        report(Progress("slice", index + 1, total))
    return replace_modules(model, parts)


def _is_unchanged(attention: SlicedAttention, plan: LayerPlan) -> bool:
    return len(plan.heads) == attention.heads and plan.dim == attention.dim


# One-shot


SharedModules = dict[tuple[int, ...], ref[nn.Module]]  # see `CalibrationStats.sliced_modules`


def _slice_one_shot(
    block: Block, plan: LayerPlan, stats: CalibrationStats, index: int, shared: SharedModules | None
) -> tuple[SlicedAttention, SlicedMLP]:
    """The modules of one layer; those of `shared` that have the same sizes, else new ones, which are added to it."""
    keys = (index, 0, plan.dim, *plan.heads), (index, 1, plan.neurons)
    attention, mlp = (shared[key]() if shared and key in shared else None for key in keys)
    if not isinstance(attention, SlicedAttention):
        attention = attention_from_moments(block.attention, plan, stats.layers[index], stats.tokens)
    if not isinstance(mlp, SlicedMLP):
        mlp = mlp_from_stats(block.mlp, plan.neurons, stats, index)
    if shared is not None:
        shared.update(zip(keys, (ref(attention), ref(mlp)), strict=True))
    return attention, mlp


def attention_from_moments(dense: SlicedAttention, plan: LayerPlan, stats: LayerStats, tokens: int) -> SlicedAttention:
    """The attention of `plan`, fitted on the dense calibration alone; `dense` itself if nothing is removed."""
    if _is_unchanged(dense, plan):
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
    """The sliced attention, and the axes of its heads' outputs."""
    axes = value_axes(moments.kept, cut.kv_head, dim)
    output, bias = fit_output(moments, axes[cut.kv_head], dense)
    return SlicedAttention(fuse(cut, axes, output, bias), layer), axes[cut.kv_head]


def mlp_from_moments(
    dense: SlicedMLP, width: int, stats: LayerStats, tokens: int, ranked: OrderedFactor | None = None
) -> SlicedMLP:
    """The MLP of `width` neurons, fitted on the dense calibration alone; `dense` itself if nothing is removed.

    `ranked` are its neurons, where an earlier call has ranked them.
    """
    if width == dense.neurons:
        return dense
    weights, mean = dense.weights(), stats.mlp_sum / tokens
    ranked = ranked or _ranked(weights, stats.mlp_moment, mean, tokens, stats.mlp_fisher)
    return SlicedMLP(keep_best(weights, ranked, mean, width))


def mlp_from_stats(dense: SlicedMLP, width: int, stats: CalibrationStats, layer: int) -> SlicedMLP:
    """As `mlp_from_moments`, with the ranking that `stats` keeps, if it keeps any."""
    moments, rankings = stats.layers[layer], stats.ranked_neurons
    if rankings is not None and layer not in rankings and width < dense.neurons:
        mean = moments.mlp_sum / stats.tokens
        rankings[layer] = _ranked(dense.weights(), moments.mlp_moment, mean, stats.tokens, moments.mlp_fisher)
    return mlp_from_moments(dense, width, moments, stats.tokens, (rankings or {}).get(layer))


def _ranked(weights: MLPWeights, moment: Tensor, mean: Tensor, tokens: int, fisher: Tensor) -> OrderedFactor:
    fitted = fitted_moment(weights, moment, mean, tokens)
    return rank_neurons(weights, fitted, typical_damping(fitted), fisher)


# Sequential


Outputs = list[Float[Tensor, "batch tokens hidden"]]  # of a module, to add to the hidden states, by batch


def _embed_shard(model: PreTrainedModel, tokens: Int[Tensor, "sequences length"]) -> HiddenStates:
    require_enough(len(tokens))
    return embed(model, tokens[shard_of(len(tokens))])


@dataclass(frozen=True)
class _SequentialFit:
    """One dense layer, its plan, and the hidden states that enter it. `tokens` are those of all processes."""

    block: Block
    plan: LayerPlan
    stats: LayerStats
    hidden_states: HiddenStates
    tokens: int
    config: SliceConfig

    def slice_(self, pause: Pause) -> tuple[SlicedAttention, SlicedMLP]:
        """Slice the layer, and add its outputs to the hidden states, in place. Pauses after each batch."""
        block = self.block
        attention, attention_outputs = self._slice_attention(pause)
        if not block.parallel:
            self._add_(attention_outputs, block.attention_output_norm)
        mlp, mlp_outputs = self._slice_mlp(pause)
        if block.parallel:
            self._add_(attention_outputs, block.attention_output_norm)
        self._add_(mlp_outputs, block.mlp_output_norm)
        return attention, mlp

    def _add_(self, outputs: Outputs, norm: nn.Module | None) -> None:
        self.hidden_states.add_(outputs if norm is None else map(norm, outputs))

    def _outputs(self, module: SlicedModule, norm: nn.Module, pause: Pause) -> Outputs:
        outputs = []
        for hidden, arguments in self.hidden_states.normed(norm):
            outputs.append(output_of(module, hidden, arguments))
            pause()
        return outputs

    def _slice_attention(self, pause: Pause) -> tuple[SlicedAttention, Outputs]:
        """Recompute the head outputs with the kept query and key channels, and fit values and output map to them."""
        dense, plan, norm = self.block.attention, self.plan, self.block.attention_norm
        if _is_unchanged(dense, plan):
            return dense, self._outputs(dense, norm, pause)
        weights = dense.weights()
        heads = torch.tensor(plan.heads, dtype=torch.long, device=weights.query.device)
        channels, frequency = choose_channels(self.stats.query_fisher, weights, heads, plan.dim)
        cut = cut_queries_and_keys(weights, heads, channels, frequency)
        owners = weights.kv_head[heads]
        kept_channels = weights.query.new_zeros(len(channels), dense.dim).scatter_(1, channels, 1)[cut.kv_head, None]

        kept_size, dense_size = len(heads) * dense.value_dim, dense.heads * dense.value_dim
        moments = [torch.zeros(kept_size, size, device=heads.device) for size in (kept_size, dense_size)]
        sums = [torch.zeros(size, device=heads.device) for size in (kept_size, dense_size)]
        head_outputs = []
        for hidden, layer_arguments in self.hidden_states.normed(norm):
            arguments = layer_arguments[dense.layer_idx]
            query, key, value = dense.project(hidden, arguments["position_embeddings"])
            mask = arguments["attention_mask"]
            dense_outputs = dense.attend(query, key, value, mask)
            if channels.shape[1] == dense.dim:
                kept_outputs = dense_outputs.unflatten(-1, (dense.heads, -1))[..., heads, :].flatten(-2)
            else:  # masking channels of the query suffices for scores without them
                narrow = query[:, heads] * kept_channels
                kept_outputs = attend(narrow, key[:, owners], value[:, owners], dense.scale, mask)
            add_moment_(moments[0], kept_outputs)
            add_moment_(moments[1], kept_outputs, dense_outputs)
            for total, rows in zip(sums, (kept_outputs, dense_outputs), strict=True):
                total += rows.flatten(0, 1).float().sum(0)
            head_outputs.append(kept_outputs)
            pause()
        all_reduce_(*moments, *sums)
        fitted = OutputMoments(moments[0], moments[1], sums[0] / self.tokens, sums[1] / self.tokens, self.tokens)
        attention, axes = _fit_attention(weights, cut, fitted, plan.dim, dense.layer_idx)
        pause()
        axes = axes.to(weights.value.dtype)
        outputs = []
        for heads_of_batch in head_outputs:
            narrow = torch.einsum("bthd,hdp->bthp", heads_of_batch.unflatten(-1, axes.shape[:2]), axes)
            outputs.append(attention.o_proj(narrow.flatten(-2)))
            pause()
        return attention, outputs

    def _slice_mlp(self, pause: Pause) -> tuple[SlicedMLP, Outputs]:
        """Fit the output map to inputs of the dense one; the sliced MLP has the kept neurons among them."""
        dense, plan, norm = self.block.mlp, self.plan, self.block.mlp_norm
        if plan.neurons == dense.neurons:
            return dense, self._outputs(dense, norm, pause)
        weights, device = dense.weights(), self.hidden_states.hidden[0].device
        moment, total = (torch.zeros(*shape, device=device) for shape in (2 * [dense.neurons], [dense.neurons]))
        neurons = []
        for hidden, _ in self.hidden_states.normed(norm):
            neurons.append(dense.inner(hidden))
            add_moment_(moment, neurons[-1])
            total += neurons[-1].flatten(0, 1).float().sum(0)
            pause()
        all_reduce_(moment, total)
        mean = total / self.tokens
        ranked = _ranked(weights, moment, mean, self.tokens, self.stats.mlp_fisher)
        mlp = SlicedMLP(keep_best(weights, ranked, mean, plan.neurons))
        pause()
        if self.config.iterative and plan.neurons and plan.mlp_ratio > self.config.iterative_above:
            inputs = (hidden for hidden, _ in self.hidden_states.normed(norm))
            mlp = SlicedMLP(refine_mlp(weights, mlp.weights(), inputs, progress=lambda _: pause()))
            return mlp, self._outputs(mlp, norm, pause)
        kept = ranked.order[: plan.neurons].sort().values
        outputs = []
        for rows in neurons:
            outputs.append(mlp.down_proj(rows[..., kept]))
            pause()
        return mlp, outputs
