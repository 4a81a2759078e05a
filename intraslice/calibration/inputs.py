"""Second moments of what attention and MLP read of the normed stream: one dense pass, for methods that want them."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.linalg import add_moment_
from intraslice.core.progress import Progress, ProgressCallback
from intraslice.distributed.sharing import all_reduce_, share_of
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
    """Fill `stats.input_moments` with a pair for each layer, (hidden, hidden) each, unless they are there.

    They are sums over the tokens that the calibration saw, kept out of it as only some methods want them. Parallel
    modules read the same, and share one. Among several processes each passes a share of the tokens.
    """
    if stats.input_moments:
        return
    layers, found = blocks(model), []
    progress(Progress("inputs", 0, len(layers)))
    hidden_states = embed(model, tokens[share_of(len(tokens))])
    for layer, block in zip(model.model.layers, layers, strict=True):
        entered: dict[torch.nn.Module, Tensor] = {}
        readers = (block.attention,) if block.parallel else (block.attention, block.mlp)
        handles = []
        for module in readers:
            width = block.attention.o_proj.out_features
            total = entered[module] = torch.zeros(width, width, device=model.device)
            handles.append(
                norm_of(block, module).register_forward_hook(lambda *call, total=total: add_moment_(total, call[2]))
            )
        try:
            hidden_states.pass_through_(layer)
        finally:
            for handle in handles:
                handle.remove()
        all_reduce_(*entered.values())
        found.append((entered[block.attention], entered[readers[-1]]))
        progress(Progress("inputs", len(found), len(layers)))
    stats.input_moments[:] = found
