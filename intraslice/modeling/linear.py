"""Linear maps around existing tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


def frozen_linear(weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None = None) -> nn.Linear:
    """A linear map around existing tensors, without gradients."""
    with torch.device("meta"):  # skips the initialisation
        linear = nn.Linear(1, 1, bias=bias is not None)  # torch warns about maps without rows or columns
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return linear


def concatenated(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts along the first axis. None if all parts are None; either all or none must be."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None
