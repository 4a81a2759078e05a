"""Second moments of the normed inputs of attention and MLP: one dense pass, for methods that need them."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.linalg import add_moment_
from intraslice.core.progress import Progress, ProgressCallback
from intraslice.distributed.sharing import all_reduce_, shard_of
from intraslice.modeling.families import blocks
from intraslice.modeling.hidden_states import embed
from intraslice.modeling.residual import norm_of


@torch.no_grad()
def find_input_moments(
    model: PreTrainedModel,
    stats: CalibrationStats,
    tokens: Int[Tensor, "sequences length"],
    progress: ProgressCallback,
) -> None:
    """Fill `stats.input_moments` with a pair of (hidden, hidden) moments per layer, unless it is filled already.

    They are sums over the calibration tokens, and separate since only some methods need them. Parallel modules share
    one moment. With several processes each passes a shard of the tokens.
    """
    if stats.input_moments:
        return
    layers, input_moments = blocks(model), []
    progress(Progress("inputs", 0, len(layers)))
    hidden_states = embed(model, tokens[shard_of(len(tokens))])
    for layer, block in zip(model.model.layers, layers, strict=True):
        moments: dict[torch.nn.Module, Tensor] = {}
        readers = (block.attention,) if block.parallel else (block.attention, block.mlp)
        handles = []
        for module in readers:
            width = block.attention.o_proj.out_features
            total = moments[module] = torch.zeros(width, width, device=model.device)
            handles.append(
                norm_of(block, module).register_forward_hook(lambda *call, total=total: add_moment_(total, call[2]))
            )
        try:
            hidden_states.pass_through_(layer)
        finally:
            for handle in handles:
                handle.remove()
        all_reduce_(*moments.values())
        input_moments.append((moments[block.attention], moments[readers[-1]]))
        progress(Progress("inputs", len(input_moments), len(layers)))
    stats.input_moments[:] = input_moments
