"""SVD-LLM (arXiv 2403.07378) with truncation-aware whitening: low-rank factors of every linear map, at one ratio.

With `S S^T` the second moment of a map's input, truncating `W S = U Sigma V^T` to its largest singular values minimises
the error of the map's output. The parameters of both factors count, so at a ratio of 0.2 a square map keeps 40 % of its
ranks. The paper's subsequent update of the weights by training is not implemented.
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
from intraslice.core.linalg import cholesky, damp, principal_axes
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.methods.registry import METHODS, SlicingMethod, Tokens
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.linear import Factors, LowRankMap
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.budget import LowRankPlan, bisect_count, map_shapes, rank_for, saved_parameters
from intraslice.planning.ratios import LayerPlan, Reasons
from intraslice.planning.sizes import Parameters

DAMPING = 1e-6  # of the mean of the diagonal


class SVD(SlicingMethod[LowRankPlan]):
    """SVD-LLM (arXiv 2403.07378): replaces every linear map by two low-rank factors, at one ratio for all of them."""

    name = "svd"
    label = "SVD-LLM"
    explanation = "SVD-LLM: low-rank factors of every linear map, whitened by its input"
    uses_shapes = False
    uses_cap = False
    can_be_saved = False

    def plan(self, model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> LowRankPlan:
        """Ranks with the same fraction of parameters for every map. Uses only the sparsity of `config`.

        Raises UserError for a sparsity that is out of reach, or for locked ratios.
        """
        if config.locked:
            raise UserError(
                "svd uses one ratio for all weight matrices and does not support locked ratios; unlock them, or use "
                "intraslice"
            )
        shapes = [map_shapes(size) for size in stats.sizes]
        dense = sum(size.dense_parameters for size in stats.sizes)

        def count(removed: float) -> int:
            return dense - sum(
                saved_parameters(shape, rank_for(shape, 1 - removed)) for maps in shapes for shape in maps.values()
            )

        ratio = bisect_count(count, (1 - config.sparsity) * dense, 1.0) if config.sparsity else 0.0
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
        """Build the model, after a pass over `tokens` for the moments of the maps' inputs unless `stats` has them."""
        report, parts = progress_callback(progress), dict[nn.Module, nn.Module]()
        if plan.ranks:
            find_input_moments(model, stats, tokens, report)
        report(Progress("slice", 0, len(plan.ranks)))
        # At sparsity 0 there are no ranks, and the loop is empty.
        for done, (block, moments, inputs, ranks) in enumerate(
            zip(blocks(model), stats.layers, stats.input_moments, plan.ranks, strict=bool(plan.ranks)), 1
        ):
            map_moments = (*inputs, moments.attention_moment, moments.mlp_moment)
            for (linear, weights), moment in zip(_maps(block), map_moments, strict=True):
                factors = [low_rank(weight, moment, ranks[name]) for name, weight in weights.items()]
                parts[linear] = LowRankMap(factors, linear.bias)
                report(Progress("slice", done - 1, len(plan.ranks)))
            report(Progress("slice", done, len(plan.ranks)))
        return replace_modules(model, parts)


def _maps(block: Block) -> list[tuple[nn.Linear, dict[str, Tensor]]]:
    """A block's linear modules and their maps by name: input maps of attention and MLP, then output maps."""
    attention, mlp = block.attention, block.mlp
    attention_weights, mlp_weights = attention.weights(), mlp.weights()
    heads = {
        "q": attention_weights.query.flatten(0, 1),
        "k": attention_weights.key.flatten(0, 1),
        "v": attention_weights.value.flatten(0, 1),
    }
    gate = {} if mlp_weights.gate is None else {"gate": mlp_weights.gate}
    return [
        (attention.qkv_proj, heads),
        (mlp.gate_up_proj if mlp.gated else mlp.up_proj, gate | {"up": mlp_weights.up}),
        (attention.o_proj, {"o": attention.o_proj.weight}),
        (mlp.down_proj, {"down": mlp_weights.down}),
    ]


def low_rank(weight: Float[Tensor, "rows columns"], moment: Float[Tensor, "columns columns"], rank: int) -> Factors:
    """The best two factors of the weight for inputs with this second moment, in the weight's precision.

    Uses singular vectors on the smaller side of `W S`: `U_k U_k^T W` on the left, where `S` cancels, or
    `W S V_k V_k^T S^-1` on the right. Raises NumericalError where the moment is singular.
    """
    exact, moment = weight.double(), damp(moment.double(), DAMPING)
    if len(weight) <= weight.shape[1]:
        left = principal_axes(exact @ moment @ exact.T)[1][:, :rank]
        right = left.T @ exact
    else:
        root = cholesky(moment)
        white = exact @ root
        axes = principal_axes(white.T @ white)[1][:, :rank]
        left, right = white @ axes, torch.linalg.solve_triangular(root.T, axes, upper=True).T
    return left.to(weight.dtype), right.to(weight.dtype)


METHODS.register(SVD())
