"""Hooks that collect moments of a layer in the forward pass, and mask gradients in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from intraslice.calibration.stats import LayerStats, channel_products, query_fisher
from intraslice.core.linalg import add_lower_moment_
from intraslice.core.weights import UNROTATED
from intraslice.modeling.families import Block

InputHook = Callable[[nn.Module, tuple[Tensor]], None]  # a forward pre-hook


@contextmanager
def collecting_moments(block: Block, stats: LayerStats) -> Iterator[None]:
    """While open, add the layer's moments to `stats`, in place, in the forward pass.

    Only lower triangles are added; `stats.mirror_` completes them at the end.
    """
    attention, angles = block.attention, []
    stream: dict[str, Tensor] = {}  # the layer's input, and its sum with the module outputs so far

    def at_output_map(moment: Tensor, total: Tensor) -> InputHook:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].detach()
            add_lower_moment_(moment, rows)
            total.add_(rows.flatten(0, 1).float().sum(0))

        return hook

    def at_residual_stream(_: nn.Module, inputs: tuple[Tensor]) -> None:
        states = inputs[0].detach().float()
        add_lower_moment_(stats.residual_moment, states)
        add_lower_moment_(stats.direction_moment, nn.functional.normalize(states, dim=-1))
        stream["before"] = stream["after"] = states

    def at_middle(_: nn.Module, inputs: tuple[Tensor]) -> None:
        add_lower_moment_(stats.middle_moment, inputs[0].detach())

    def at_attention(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        angles.append(keywords["position_embeddings"])

    def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        query, key, value = attention.split_and_rotate(output.detach(), angles.pop())
        stats.channel_products.add_(channel_products(query, key, attention.kv_head))
        for energy, states in ((stats.query_energy, query), (stats.key_energy, key)):
            energy.add_(states.float().square().sum((0, 2)))
        stats.value_moment.add_(torch.einsum("bktp,bktq->kpq", value.float(), value.float()))

    def at_output(module: nn.Module, _: tuple[Any, ...], output: Tensor | tuple[Tensor, None]) -> None:
        stream["after"] = stream["after"] + (output[0] if isinstance(output, tuple) else output).detach()
        if module is outputs[-1]:  # the last module of the layer
            cosines = nn.functional.cosine_similarity(stream.pop("before"), stream.pop("after"), dim=-1)
            stats.influence.add_((1 - cosines).sum())

    outputs = (block.attention_output_norm or attention, block.mlp_output_norm or block.mlp)
    handles = [
        block.attention_norm.register_forward_pre_hook(at_residual_stream),
        attention.register_forward_pre_hook(at_attention, with_kwargs=True),
        attention.qkv_proj.register_forward_hook(at_queries),
        attention.o_proj.register_forward_pre_hook(at_output_map(stats.attention_moment, stats.attention_sum)),
        block.mlp.down_proj.register_forward_pre_hook(at_output_map(stats.mlp_moment, stats.mlp_sum)),
        *(module.register_forward_hook(at_output) for module in outputs),
    ]
    if not block.parallel:
        handles.append(block.mlp_norm.register_forward_pre_hook(at_middle))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def collecting_gradients(block: Block, stats: LayerStats, sequences: slice) -> Iterator[None]:
    """While open, collect mask gradients in `stats`, in place, in the backward pass.

    The gradient of a mask of ones on the input of an output map is the sum over tokens of activation times gradient.
    Those of attention and MLP are written to the rows `sequences`. The token-wise Fisher information of queries and
    neurons is added.
    """
    attention = block.attention
    rotated = (attention.frequency != UNROTATED)[attention.kv_head]

    def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values = output.detach()[..., : attention.heads * attention.dim]

        def add(gradient: Tensor) -> None:
            attribution = (values * gradient[..., : values.shape[-1]]).float().unflatten(-1, (attention.heads, -1))
            stats.query_fisher.add_(query_fisher(attribution, rotated))

        output.register_hook(add)

    def at_output_map(gradients: Tensor, fisher: Tensor | None = None) -> InputHook:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            values = inputs[0].detach()

            def add(gradient: Tensor) -> None:
                attribution = (values * gradient).float()
                gradients[sequences] = attribution.sum(1)
                if fisher is not None:
                    fisher.add_(attribution.flatten(0, 1).square_().sum(0))

            inputs[0].register_hook(add)

        return hook

    handles = [
        attention.o_proj.register_forward_pre_hook(at_output_map(stats.attention_gradients)),
        block.mlp.down_proj.register_forward_pre_hook(at_output_map(stats.mlp_gradients, stats.mlp_fisher)),
        attention.qkv_proj.register_forward_hook(at_queries),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
