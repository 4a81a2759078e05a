"""Floating-point operations per token, dense and sliced. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from intraslice.planning.profile import Profile
from intraslice.planning.ratios import SlicePlan

CONTEXT = 512  # tokens that each token attends to, itself included


def flops_per_token(profile: Profile, plan: SlicePlan, head_weights: int, context: int = CONTEXT) -> tuple[int, int]:
    """Floating-point operations per generated token (dense, sliced): one multiplication and one addition per weight.

    Counts the weights of all matrix multiplications, including `head_weights` of lm_head, and the attention scores and
    weighted values over `context` tokens. Norms, biases, rotations and activations, well below 1 %, are not counted.
    """
    dense = [(size.heads, size.kv_heads, size.dim, size.neurons) for size in (layer.sizes for layer in profile.layers)]
    sliced = [(len(layer.heads), layer.kv_heads, layer.dim, layer.neurons) for layer in plan.layers]
    return _flops(profile, dense, head_weights, context), _flops(profile, sliced, head_weights, context)


def _flops(profile: Profile, shapes: Sequence[tuple[int, int, int, int]], head_weights: int, context: int) -> int:
    weights, attention_products = head_weights, 0
    for layer, (heads, kv_heads, dim, neurons) in zip(profile.layers, shapes, strict=True):
        sizes, widths = layer.sizes, layer.sizes.query_dim(dim) + dim
        weights += sizes.hidden * (widths * (heads + kv_heads) + neurons * (2 + sizes.gated))
        attention_products += heads * widths * context
    return 2 * (weights + attention_products)
