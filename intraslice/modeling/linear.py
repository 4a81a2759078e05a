"""Linear maps around tensors that are there already."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


def frozen_linear(weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None = None) -> nn.Linear:
    """A linear map around tensors that are there already; they get no gradient."""
    with torch.device("meta"):  # no throw-away initialisation
        linear = nn.Linear(1, 1, bias=bias is not None)  # torch warns of maps without rows or columns
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return linear


def joined(parts: list[Tensor | None]) -> Tensor | None:
    """The rows of all parts below each other; None where there are none."""
    return None if parts[0] is None else torch.cat(parts)
