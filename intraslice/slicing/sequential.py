"""Sequential slicing of a layer: fitted on activations of the layers before it, which are sliced already."""

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats, LayerStats
from intraslice.core.linalg import add_moment_
from intraslice.core.progress import Pause, Progress, ProgressCallback
from intraslice.distributed import all_reduce_, shard_of
from intraslice.modeling.attention import SlicedAttention, attend
from intraslice.modeling.families import Block
from intraslice.modeling.hidden_states import HiddenStates, Tokens, embed
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.residual import SlicedModule, output_of
from intraslice.planning.ratios import SlicePlan
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.attention import OutputMoments, choose_channels, keep_channels
from intraslice.slicing.iterative_mlp import SKIPPED, refine
from intraslice.slicing.mlp import fitted_moment, keep_best, rank_neurons
from intraslice.slicing.one_shot import Modules, SliceModules, fit_attention, is_unchanged

Outputs = list[Float[Tensor, "batch tokens hidden"]]  # of a module, to add to the hidden states, by batch


def sequential(
    model: PreTrainedModel, plan: SlicePlan, stats: CalibrationStats, tokens: Tokens, report: ProgressCallback
) -> SliceModules:
    """Slices a layer, after those before it."""
    hidden_states = embed(model, tokens[shard_of(len(tokens))])

    def slice_modules(block: Block, layer: LayerPlan, index: int) -> Modules:
        fit = _SequentialFit(block, plan, index, stats.layers[index], hidden_states, tokens.numel())
        return fit.slice_(partial(report, Progress("slice", index, len(plan.layers))))

    return slice_modules


@dataclass(frozen=True)
class _SequentialFit:
    """One dense layer, the plan of the whole model, and the hidden states that enter the layer.

    `tokens` are those of all processes.
    """

    block: Block
    whole: SlicePlan
    index: int
    stats: LayerStats
    hidden_states: HiddenStates
    tokens: int

    @property
    def plan(self) -> LayerPlan:
        """The sizes of this layer."""
        return self.whole.layers[self.index]

    @property
    def iterates(self) -> bool:
        """Whether the iterative variant of the MLP is tried: not in the first and last layers."""
        threshold, layers = self.whole.config.fit.iterative_from, len(self.whole.layers)
        is_inner = SKIPPED <= self.index < layers - SKIPPED
        return threshold is not None and is_inner and self.block.mlp.gated and self.plan.mlp_ratio > threshold

    def slice_(self, pause: Pause) -> Modules:
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
        states, added = self.hidden_states, outputs if norm is None else map(norm, outputs)
        states.hidden = [hidden + output for hidden, output in zip(states.hidden, added, strict=True)]

    def _outputs(self, module: SlicedModule, norm: nn.Module, pause: Pause) -> Outputs:
        outputs = []
        for hidden, arguments in self.hidden_states.batches:
            outputs.append(output_of(module, norm(hidden), arguments))
            pause()
        return outputs

    def _slice_attention(self, pause: Pause) -> tuple[SlicedAttention, Outputs]:
        """Recompute the head outputs with the kept query and key channels, and fit values and output map to them."""
        dense, plan, norm = self.block.attention, self.plan, self.block.attention_norm
        if is_unchanged(dense, plan):
            return dense, self._outputs(dense, norm, pause)
        weights = dense.weights()
        heads = torch.tensor(plan.heads, dtype=torch.long, device=weights.query.device)
        channels, _ = chosen = choose_channels(
            self.stats.channel_scores(self.whole.config.fit), weights, heads, plan.dim
        )
        cut, owners = keep_channels(weights, heads, chosen), weights.kv_head[heads]
        is_kept = torch.zeros(len(heads), dense.dim, dtype=torch.bool, device=heads.device)
        is_kept.scatter_(1, channels[cut.kv_head], True)

        kept_size, dense_size = len(heads) * dense.value_dim, dense.heads * dense.value_dim
        moments = [torch.zeros(kept_size, size, device=heads.device) for size in (kept_size, dense_size)]
        sums = [torch.zeros(size, device=heads.device) for size in (kept_size, dense_size)]
        head_outputs = []
        for hidden, layer_arguments in self.hidden_states.batches:
            arguments = layer_arguments[dense.layer_idx]
            query, key, value = dense.project(norm(hidden), arguments["position_embeddings"])
            mask = arguments["attention_mask"]
            dense_outputs = dense.attend(query, key, value, mask)
            if channels.shape[1] == dense.dim:
                kept_outputs = dense_outputs.unflatten(-1, (dense.heads, -1))[..., heads, :].flatten(-2)
            else:  # masking channels of the query suffices for scores without them
                narrow = query[:, heads] * is_kept[:, None]
                attended = attend(narrow, key[:, owners], value[:, owners], dense.scale, mask)
                kept_outputs = attended.transpose(1, 2).flatten(2)
            add_moment_(moments[0], kept_outputs)
            add_moment_(moments[1], kept_outputs, dense_outputs)
            for total, rows in zip(sums, (kept_outputs, dense_outputs), strict=True):
                total += rows.flatten(0, 1).float().sum(0)
            head_outputs.append(kept_outputs)
            pause()
        all_reduce_(*moments, *sums)
        fitted = OutputMoments(moments[0], moments[1], sums[0] / self.tokens, sums[1] / self.tokens, self.tokens)
        attention, axes = fit_attention(weights, cut, fitted, plan.dim, dense.layer_idx, self.whole.config.fit)
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
        for hidden in self.hidden_states.hidden:
            neurons.append(dense.inner(norm(hidden)))
            add_moment_(moment, neurons[-1])
            total += neurons[-1].flatten(0, 1).float().sum(0)
            pause()
        all_reduce_(moment, total)
        mean = total / self.tokens
        fitted = fitted_moment(weights, moment, mean, self.tokens)
        ranked = rank_neurons(weights, fitted, self.stats.mlp_fisher, self.whole.config.fit)
        if self.iterates and plan.neurons:
            inputs = torch.cat([norm(hidden) for hidden in self.hidden_states.hidden])
            if refined := refine(dense, ranked.order, plan.neurons, inputs, self.index, pause):
                return refined, self._outputs(refined, norm, pause)
        mlp = SlicedMLP(keep_best(weights, ranked, mean, plan.neurons))
        pause()
        kept = ranked.order[: plan.neurons].sort().values
        outputs = []
        for rows in neurons:
            outputs.append(mlp.down_proj(rows[..., kept]))
            pause()
        return mlp, outputs
