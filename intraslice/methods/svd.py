"""SVD-LLM (arXiv 2403.07378), its truncation-aware whitening: every linear map as two of a lower rank, at one ratio.

With `S S^T` the second moment of what a map reads, `W S = U Sigma V^T` is cut to its largest singular values, which is
the least error in what the map gives. Both factors are counted, so at a ratio of 0.2 a square map keeps 40 % of its
ranks. Left out is the paper's later update of the weights, which trains.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.inputs import find_input_moments
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.linalg import damp, principal_axes
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.methods.registry import METHODS, SlicingMethod, Tokens
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.linear import Factors, LowRankMap
from intraslice.modeling.surgery import with_parts
from intraslice.planning.budget import LowRankPlan, map_shapes, nearest, rank_for, saved
from intraslice.planning.ratios import LayerPlan, Reasons
from intraslice.planning.sizes import Parameters

DAMPING = 1e-6  # of the mean of the diagonal, so that a moment of few tokens has a Cholesky factor


class SVD(SlicingMethod[LowRankPlan]):
    """SVD-LLM (arXiv 2403.07378): every linear map becomes two of low rank, at one ratio for all maps."""

    name = "svd"
    label = "SVD"
    explanation = "SVD-LLM: every linear map as two of low rank, whitened by what it reads, both counted"
    uses_shapes = False
    can_be_saved = False

    def plan(self, model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> LowRankPlan:
        """Ranks that keep the same fraction of every map. `config` gives the sparsity alone.

        Raises UserError for a sparsity out of reach, or for ratios given by hand.
        """
        if config.locked:
            raise UserError("svd has one ratio for all maps and takes none by hand; leave them out, or take intraslice")
        shapes = [map_shapes(size) for size in stats.sizes]
        dense = sum(size.dense_parameters for size in stats.sizes)

        def count(removed: float) -> int:
            return dense - sum(saved(shape, rank_for(shape, 1 - removed)) for maps in shapes for shape in maps.values())

        ratio = nearest(count, (1 - config.sparsity) * dense, 1.0) if config.sparsity else 0.0
        sliced, others = count(ratio) if config.sparsity else dense, stats.other_parameters
        parameters = Parameters(dense + others, sliced + others, dense, sliced)
        layers = tuple(
            LayerPlan(ratio, ratio, tuple(range(size.heads)), size.kv_heads, size.dim, size.neurons)
            for size in stats.sizes
        )
        cache = stats.bytes_per_value * sum(2 * size.kv_heads * size.dim for size in stats.sizes)
        kept = 1 - ratio
        ranks = tuple(
            {name: rank_for(shape, kept) for name, shape in maps.items()} for maps in shapes if config.sparsity
        )
        reasons = Reasons(config.sparsity, 1.0, None, None, (), ())
        return LowRankPlan(config, layers, parameters, (cache, cache), reasons, ranks)

    @torch.no_grad()
    def slice(
        self,
        model: PreTrainedModel,
        plan: LowRankPlan,
        stats: CalibrationStats,
        tokens: Tokens,
        *,
        progress: ProgressCallback | bool = True,
    ) -> PreTrainedModel:
        """Build the model, after a pass over `tokens` for the moments of the maps' inputs where these are not known."""
        report, parts = progress_callback(progress), dict[nn.Module, nn.Module]()
        if plan.ranks:
            find_input_moments(model, stats, tokens, report)
        report(Progress("slice", 0, len(plan.ranks)))
        # Without ranks there is nothing to do, and no layer is looked at.
        for done, (block, moments, read, ranks) in enumerate(
            zip(blocks(model), stats.layers, stats.input_moments, plan.ranks, strict=bool(plan.ranks)), 1
        ):
            entered = (*read, moments.attention_moment, moments.mlp_moment)
            for (linear, weights), moment in zip(_maps(block), entered, strict=True):
                factors = [low_rank(weight, moment, ranks[name]) for name, weight in weights.items()]
                parts[linear] = LowRankMap(factors, linear.bias)
                report(Progress("slice", done - 1, len(plan.ranks)))
            report(Progress("slice", done, len(plan.ranks)))
        return with_parts(model, parts)


def _maps(block: Block) -> list[tuple[nn.Linear, dict[str, Tensor]]]:
    """The modules that hold a block's linear maps, and those maps by name: readers of attention and MLP, writers."""
    attention, mlp = block.attention, block.mlp
    read, fed = attention.weights(), mlp.weights()
    heads = {"q": read.query.flatten(0, 1), "k": read.key.flatten(0, 1), "v": read.value.flatten(0, 1)}
    gate = {} if fed.gate is None else {"gate": fed.gate}
    return [
        (attention.qkv_proj, heads),
        (mlp.gate_up_proj if mlp.gated else mlp.up_proj, gate | {"up": fed.up}),
        (attention.o_proj, {"o": attention.o_proj.weight}),
        (mlp.down_proj, {"down": fed.down}),
    ]


def low_rank(weight: Float[Tensor, "rows columns"], moment: Float[Tensor, "columns columns"], rank: int) -> Factors:
    """Two factors of the weight, the best for inputs of this second moment, in the weight's precision.

    Singular vectors on the smaller side of `W S`: on the left `U_k U_k^T W`, where `S` cancels, on the right
    `W S V_k V_k^T S^-1`.
    """
    exact, moment = weight.double(), damp(moment.double(), DAMPING)
    if len(weight) <= weight.shape[1]:
        left = principal_axes(exact @ moment @ exact.T)[1][:, :rank]
        right = left.T @ exact
    else:
        root = torch.linalg.cholesky(moment)
        white = exact @ root
        axes = principal_axes(white.T @ white)[1][:, :rank]
        left, right = white @ axes, torch.linalg.solve_triangular(root.T, axes, upper=True).T
    return left.to(weight.dtype), right.to(weight.dtype)


METHODS.register(SVD())
