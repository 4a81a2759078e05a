"""The cross-module method (SliceGPT, arXiv 2401.15024): principal axes of the residual stream.

`plan_crossmodule` chooses the width D' and counts parameters, `slice_crossmodule` builds the model. The last basis is
the identity, so that the final norm and the head are not changed, and a tied head stays tied.
"""

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import Order, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.linalg import principal_axes
from intraslice.core.progress import Pause, Progress, ProgressOption, progress_callback
from intraslice.methods.registry import METHODS, SlicingMethod
from intraslice.modeling import residual
from intraslice.modeling.counts import decoder_parameters
from intraslice.modeling.families import Block, DenseModule, Family, blocks, family_of
from intraslice.modeling.hidden_states import LayerArguments, Tokens, embed
from intraslice.modeling.residual import BasisEmbedding, BasisNorm, CrossModuleLayer, SlicedModule, centre
from intraslice.modeling.surgery import frozen_linear, replace_modules
from intraslice.planning.baseline_plans import WIDTH_MULTIPLE, CrossModulePlan
from intraslice.planning.sizes import Parameters

Axes = Float[Tensor, "hidden hidden"]


class SlicedStates:
    """Sequential: bases of the hidden states after the sliced layers. The states are in the dense basis."""

    def __init__(self, model: PreTrainedModel, tokens: Tokens, norm: nn.Module) -> None:
        self._states = embed(model, tokens)
        self._states.map_(lambda hidden, _: centre(hidden, norm))

    def next_axes(self, pause: Pause) -> Axes:
        """Axes of the states: at first of the first layer's input."""
        return residual.principal_axes_of(self._states, pause)

    def pass_through_(
        self, basis: Float[Tensor, "hidden width"], readers: list[SlicedModule], norm: nn.Module, pause: Pause
    ) -> None:
        """Project the states on the basis, as in the sliced model, and add the uncut outputs of the modules."""
        axes, basis_norm = basis.to(self._states.hidden[0].dtype), BasisNorm(norm)

        def step(states: Tensor, arguments: LayerArguments) -> Tensor:
            cut = states @ axes
            normed = basis_norm(cut)
            return cut @ axes.T + centre(
                reduce(torch.add, (residual.output_of(module, normed, arguments) for module in readers)), norm
            )

        self._states.map_(step, pause)


class DenseMoments:
    """One-shot: bases of the dense model's hidden states at each norm. Moments are centred as by the norms."""

    def __init__(self, layers: Sequence[Block], stats: CalibrationStats) -> None:
        moments = []
        for block, layer in zip(layers, stats.layers, strict=True):
            moments += [layer.residual_moment] if block.parallel else [layer.residual_moment, layer.middle_moment]
        self._norm, self._moments, self._axes = layers[0].attention_norm, enumerate(moments), stats.residual_axes

    def next_axes(self, pause: Pause) -> Axes:
        """Axes at the next norm."""
        read, moment = next(self._moments)
        if read not in self._axes:
            moment = centre(moment.double(), self._norm)
            pause()
            self._axes[read] = principal_axes(centre(moment.T, self._norm))[1].float()
        return self._axes[read]


Source = SlicedStates | DenseMoments


@torch.no_grad()
def find_axes(model: PreTrainedModel, stats: CalibrationStats, *, progress: ProgressOption = True) -> None:
    """Compute the axes for one-shot slicing, which do not depend on the width, and cache them in `stats`."""
    report, layers = progress_callback(progress), blocks(model)
    source, reads = DenseMoments(layers, stats), sum(1 if block.parallel else 2 for block in layers)
    for read in range(reads):
        source.next_axes(partial(report, Progress("axes", read, reads)))
        report(Progress("axes", read + 1, reads))


def plan_crossmodule(
    model: PreTrainedModel, sparsity: float | None = None, slicing: float | None = None, order: Order = "sequential"
) -> CrossModulePlan:
    """Choose D' for a canonicalised model, by the fraction of decoder parameters to remove, or of axes to cut.

    A sparsity selects the width with the nearest number of parameters; 0 cuts nothing and only adds the shortcuts.
    They are from 0 to below 1. `order` does not affect the width. Raises UserError unless exactly one of them is given.
    """
    if (sparsity is None) == (slicing is None):
        raise UserError(f"expected either sparsity or slicing, got sparsity {sparsity} and slicing {slicing}")
    hidden, layers = model.lm_head.in_features, blocks(model)
    residual.require_no_output_norms(layers, "crossmodule")
    if 0 in (sparsity, slicing):
        return _plan(model, hidden, sparsity, order)
    if slicing is not None:
        width = max(int(hidden * (1 - slicing) + 1e-6) // WIDTH_MULTIPLE * WIDTH_MULTIPLE, min(WIDTH_MULTIPLE, hidden))
        return _plan(model, width, None, order)
    assert sparsity is not None
    widths = [*range(WIDTH_MULTIPLE, hidden, WIDTH_MULTIPLE), hidden]
    budget = (1 - sparsity) * decoder_parameters(model)
    index = bisect_left(widths, budget, key=lambda width: _decoder_parameters(layers, width, hidden))
    plans = [_plan(model, width, sparsity, order) for width in widths[max(index - 1, 0) : index + 1]]
    return min(plans, key=lambda plan: abs(plan.removed_fraction - sparsity))


def _plan(model: PreTrainedModel, width: int, target: float | None, order: Order) -> CrossModulePlan:
    hidden, vocabulary = model.lm_head.in_features, model.model.embed_tokens.num_embeddings
    dense_total, dense_decoder = sum(p.numel() for p in model.parameters()), decoder_parameters(model)
    decoder = _decoder_parameters(blocks(model), width, hidden)
    total_with_dense_embeddings = dense_total - dense_decoder + decoder
    untied_total = total_with_dense_embeddings + vocabulary * (width if _is_tied(model) else width - hidden)
    total = total_with_dense_embeddings + hidden * width if _is_tied(model) else untied_total
    parameters = Parameters(dense_total, total, dense_decoder, decoder)
    return CrossModulePlan(hidden, width, target, parameters, order, untied_total)


def _decoder_parameters(layers: Sequence[Block], width: int, hidden: int) -> int:
    """Parameters of all layers at D' = `width`, with shortcuts; the last shortcut leads back to the dense width."""
    *before, last = layers
    return sum(_layer_parameters(block, width, width) for block in before) + _layer_parameters(last, width, hidden)


def _layer_parameters(block: Block, width: int, width_after: int) -> int:
    norms = block.attention.norms
    total = 0 if norms is None else sum(p.numel() for p in norms.parameters())
    for branch in residual.residual_branches(block):
        after = width_after if branch[-1] is block.mlp else width
        total += width * after  # the shortcut
        for module in branch:
            reader, writer = residual.reader_of(module), residual.writer_of(module)
            has_bias = reader.bias is not None or getattr(residual.norm_of(block, module), "bias", None) is not None
            total += reader.out_features * (width + has_bias) + after * (writer.in_features + (writer.bias is not None))
    return total


def _is_tied(model: PreTrainedModel) -> bool:
    return model.lm_head.weight is model.model.embed_tokens.weight


# The driver


@torch.no_grad()
def slice_crossmodule(
    model: PreTrainedModel,
    plan: CrossModulePlan,
    stats: CalibrationStats | None,
    tokens: Tokens,
    *,
    progress: ProgressOption = True,
) -> PreTrainedModel:
    """Rotate and cut the residual stream of a canonicalised model, block by block.

    Bases come from the hidden states of the already sliced layers (SliceGPT's order), or in the one-shot order from the
    dense model's moments in `stats`, without a pass over `tokens`. The dense model is not changed; the result shares
    its final norm and head. Raises NumericalError where a moment is not finite.
    """
    report, family, layers = progress_callback(progress), family_of(model.config), blocks(model)
    pause = partial(report, Progress("slice", 0, len(layers)))
    pause()
    norm = layers[0].attention_norm
    source: Source
    if plan.order != "one-shot":
        source = SlicedStates(model, tokens, norm)
    elif stats is not None:
        source = DenseMoments(layers, stats)
    else:
        raise ValueError("order 'one-shot' requires stats, got None; pass those of the calibration")
    first_basis = basis = source.next_axes(pause)[:, : plan.width].float()
    parts: dict[nn.Module, nn.Module] = {}
    for done, (layer, block) in enumerate(zip(model.model.layers, layers, strict=True), 1):
        parts[layer], basis = _slice_layer(family, block, source, basis, block is layers[-1], pause)
        pause = partial(report, Progress("slice", done, len(layers)))
        pause()
    # Centring the columns of the basis centres every embedding.
    parts[model.model.embed_tokens] = _embedding(model, centre(first_basis.T, norm).T)
    sliced = replace_modules(model, parts)
    sliced.config.tie_word_embeddings = _is_tied(model)  # so that tie_weights() does not tie different weights
    return sliced


def _slice_layer(
    family: Family, block: Block, source: Source, basis: Float[Tensor, "hidden width"], last: bool, pause: Pause
) -> tuple[CrossModuleLayer, Float[Tensor, "hidden width_after"]]:
    """One layer in its bases, and the basis after it; advances the source to the next layer."""
    hidden, width = basis.shape
    dtype = block.attention.o_proj.weight.dtype
    bases: list[Tensor] = [basis]
    modules: list[Any] = []  # attention and MLP, in the order of the branches
    for branch in residual.residual_branches(block):
        norm = residual.norm_of(block, branch[0])
        readers = [_reading_in(module, norm, basis) for module in branch]
        if last and branch[-1] is block.mlp:
            after = torch.eye(hidden, dtype=basis.dtype, device=basis.device)
        else:
            if isinstance(source, SlicedStates):
                source.pass_through_(basis, readers, norm, pause)
            after = source.next_axes(pause)[:, :width].float()
        modules += [_writing_in(module, norm, after) for module in readers]
        bases.append(after)
        basis = after
    shortcuts = [(before.T @ after).to(dtype) for before, after in itertools.pairwise(bases)]
    norms = [BasisNorm(norm) for norm in (block.attention_norm, block.mlp_norm)]
    attention, mlp = modules
    return CrossModuleLayer(family, attention, mlp, norms, shortcuts, [axes.to(dtype) for axes in bases]), basis


def _reading_in(module: SlicedModule, norm: DenseModule, basis: Float[Tensor, "hidden width"]) -> SlicedModule:
    """A copy whose reading map has the norm's weight folded in. A LayerNorm's shift is folded into the bias."""
    reader, shift = residual.reader_of(module), getattr(norm, "bias", None)
    weight, bias = reader.weight.float(), None if reader.bias is None else reader.bias.float()
    if shift is not None:
        bias = weight @ shift.float() if bias is None else bias + weight @ shift.float()
    return _with_linear(module, reader, weight * norm.weight.float() @ basis, bias)


def _writing_in(module: SlicedModule, norm: nn.Module, basis: Float[Tensor, "hidden width"]) -> SlicedModule:
    """A copy whose writing map is in the basis. Under LayerNorm it is centred, as every reader centres it anyway."""
    writer = residual.writer_of(module)
    bias = None if writer.bias is None else basis.T @ centre(writer.bias.float(), norm)
    return _with_linear(module, writer, basis.T @ centre(writer.weight.float().T, norm).T, bias)


def _with_linear(module: SlicedModule, linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> SlicedModule:
    """A copy of the module with a linear map replaced, in its precision."""
    dtype = linear.weight.dtype
    return replace_modules(module, {linear: frozen_linear(weight.to(dtype), None if bias is None else bias.to(dtype))})


def _embedding(model: PreTrainedModel, basis: Float[Tensor, "hidden width"]) -> nn.Embedding:
    """Embedding in the first basis, which is fused into the table unless the head shares it."""
    table = model.model.embed_tokens
    if _is_tied(model):
        return BasisEmbedding(table.weight, basis.to(table.weight.dtype), table.padding_idx)
    weight = (table.weight.float() @ basis).to(table.weight.dtype)
    return nn.Embedding.from_pretrained(weight, padding_idx=table.padding_idx)


class CrossModule(SlicingMethod[CrossModulePlan]):
    """SliceGPT (arXiv 2401.15024): principal axes of the residual stream; shortcut matrices count as parameters."""

    name = "crossmodule"
    label = "Cross-module"
    explanation = (
        "SliceGPT: PCA of the residual stream between modules, in the order given by --order; shortcuts count "
        "as parameters"
    )
    uses_order = True
    uses_shapes = False  # all heads and neurons are kept
    uses_cap = False
    slices_residual_stream = True

    def plan(self, model: PreTrainedModel, stats: CalibrationStats | None, config: SliceConfig) -> CrossModulePlan:
        return self._with_recovery(plan_crossmodule(model, config.sparsity, order=config.order), config)

    def plan_width(self, model: PreTrainedModel, slicing: float, config: SliceConfig) -> CrossModulePlan:
        return self._with_recovery(plan_crossmodule(model, slicing=slicing, order=config.order), config)

    def _with_recovery(self, plan: CrossModulePlan, config: SliceConfig) -> CrossModulePlan:
        return replace(plan, recovery=config.recovery, epochs=config.epochs)

    slice = staticmethod(slice_crossmodule)

    def needs_statistics(self, config: SliceConfig) -> bool:
        return config.order == "one-shot"  # the sequential order collects its own moments


METHODS.register(CrossModule())
