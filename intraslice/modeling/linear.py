"""Linear maps around tensors that are there already: one matrix, or two whose product stands for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from intraslice.core.errors import UserError

Factors = tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]]  # (rows, rank), (rank, columns)
NO_FORMAT = "a model of two-factor maps (svd) can be measured and asked, but no format here holds it"


def frozen_linear(weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None = None) -> nn.Linear:
    """A linear map around tensors that are there already; they get no gradient."""
    with torch.device("meta"):  # no throw-away initialisation
        linear = nn.Linear(1, 1, bias=bias is not None)  # torch warns of maps without rows or columns
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return linear


def joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts, one below the other; None where they are None, of which either all or none are."""
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


class LowRankMap(nn.Module):
    """Maps of the same input, one below the other, each of which is two factors: `y_i = left_i right_i x`."""

    def __init__(self, factors: Sequence[Factors], bias: Float[Tensor, " rows"] | None) -> None:
        super().__init__()
        self.ranks = [len(right) for _, right in factors]
        self.right = frozen_linear(torch.cat([right for _, right in factors]))
        self.left = nn.ParameterList(nn.Parameter(left.contiguous(), requires_grad=False) for left, _ in factors)
        self.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """Raises UserError: whoever wants to write it down or to slice it again would need the one matrix."""
        raise UserError(f"{NO_FORMAT}; take another method")

    def forward(self, states: Float[Tensor, "*tokens columns"]) -> Float[Tensor, "*tokens rows"]:
        narrow = self.right(states).split(self.ranks, dim=-1)
        rows = torch.cat([part @ left.T for part, left in zip(narrow, self.left, strict=True)], dim=-1)
        return rows if self.bias is None else rows + self.bias
