"""What is read off a layer while calibration tokens pass: moments forward, mask gradients backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from intraslice.calibration.rotary_pair_scores import channel_products, query_fisher
from intraslice.calibration.stats import LayerStats
from intraslice.layer_weights import UNROTATED
from intraslice.linalg import add_moment_
from intraslice.modeling.families import Block


@contextmanager
def collecting_moments(block: Block, stats: LayerStats) -> Iterator[None]:
    """While open, the layer's moments add up in `stats`, in place, as tokens pass forward."""
    attention, angles = block.attention, []

    def at_output_map(moment: Tensor, total: Tensor):
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].detach()
            add_moment_(moment, rows)
            total.add_(rows.flatten(0, 1).float().sum(0))

        return hook

    def at_residual_stream(_: nn.Module, inputs: tuple[Tensor]) -> None:
        states = inputs[0].detach().float()
        add_moment_(stats.residual_moment, states)
        add_moment_(stats.direction_moment, nn.functional.normalize(states, dim=-1))

    def at_middle(_: nn.Module, inputs: tuple[Tensor]) -> None:
        add_moment_(stats.middle_moment, inputs[0].detach())

    def at_attention(_: nn.Module, inputs: tuple, keywords: dict) -> None:
        angles.append(keywords["position_embeddings"])

    def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        query, key, _ = attention.split_and_rotate(output.detach(), angles.pop())
        stats.channel_products.add_(channel_products(query, key, attention.kv_head))

    handles = [
        block.attention_norm.register_forward_pre_hook(at_residual_stream),
        attention.register_forward_pre_hook(at_attention, with_kwargs=True),
        attention.qkv_proj.register_forward_hook(at_queries),
        attention.o_proj.register_forward_pre_hook(at_output_map(stats.attention_moment, stats.attention_sum)),
        block.mlp.down_proj.register_forward_pre_hook(at_output_map(stats.mlp_moment, stats.mlp_sum)),
    ]
    if not block.parallel:
        handles.append(block.mlp_norm.register_forward_pre_hook(at_middle))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def collecting_gradients(block: Block, stats: LayerStats, sequences: int) -> Iterator[tuple[Tensor, Tensor]]:
    """While open, what enters both output maps is multiplied with masks of ones, which get gradients.

    Yields the masks of attention (sequences, channels) and MLP (sequences, neurons). The token-by-token Fisher
    information of queries and neurons adds up in `stats`, in place, as gradients pass backward.
    """
    attention, handles, masks = block.attention, [], []
    dtype = attention.o_proj.weight.dtype
    rotated = (attention.frequency != UNROTATED)[attention.kv_head]

    def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values = output.detach()[..., : attention.heads * attention.dim]

        def add(gradient: Tensor) -> None:
            attribution = (values * gradient[..., : values.shape[-1]]).float().unflatten(-1, (attention.heads, -1))
            stats.query_fisher.add_(query_fisher(attribution, rotated))

        output.requires_grad_().register_hook(add)  # nothing that enters the first layer needs a gradient

    def at_neurons(rows: Tensor) -> None:
        values = rows.detach()

        def add(gradient: Tensor) -> None:
            stats.mlp_fisher.add_((values * gradient).float().square().flatten(0, 1).sum(0))

        rows.register_hook(add)

    def at_output_map(mask: Tensor, observe: Callable[[Tensor], None]):
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            rows = inputs[0] * mask[:, None]
            observe(rows)
            return (rows,)

        return hook

    for linear, gradients, observe in (
        (attention.o_proj, stats.attention_gradients, lambda rows: None),
        (block.mlp.down_proj, stats.mlp_gradients, at_neurons),
    ):
        mask = torch.ones(sequences, gradients.shape[1], dtype=dtype, device=gradients.device, requires_grad=True)
        masks.append(mask)
        handles.append(linear.register_forward_pre_hook(at_output_map(mask, observe)))
    handles.append(attention.qkv_proj.register_forward_hook(at_queries))
    try:
        yield tuple(masks)
    finally:
        for handle in handles:
            handle.remove()
