"""Linear maps around existing tensors: one matrix, or two low-rank factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from intraslice.core.errors import UserError

Factors = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]  # (rows, rank), (rank, columns)
CANNOT_BE_SAVED = "a model with low-rank factors (svd) can be evaluated but not saved: no supported format can store it"


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


class LowRankMap(nn.Module):
    """Stacked maps of the same input, each with two low-rank factors: `y_i = left_i right_i x`."""

    def __init__(self, factors: Sequence[Factors], bias: Float[Tensor, " rows"] | None) -> None:
        super().__init__()
        self.ranks = [len(right) for _, right in factors]
        self.right = frozen_linear(torch.cat([right for _, right in factors]))
        self.left = nn.ModuleList(frozen_linear(left) for left, _ in factors)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """Raises UserError: saving the map or slicing it again would need the full matrix."""
        raise UserError(f"{CANNOT_BE_SAVED}; choose another method")

    def forward(self, states: Float[Tensor, "*tokens columns"]) -> Float[Tensor, "*tokens rows"]:
        narrow = self.right(states).split(self.ranks, dim=-1)
        rows = torch.cat([left(part) for part, left in zip(narrow, self.left, strict=True)], dim=-1)
        return rows if self.bias is None else rows + self.bias
