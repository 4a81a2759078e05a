"""Low-rank updates of matrices (LoRA, Hu et al., arXiv 2106.09685): training them takes little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations

INITIAL = 0.05  # standard deviation of the right factors: the smaller, the faster Adam turns them

OwnedParameter = tuple[nn.Module, str]  # the module, and the parameter's name in it


class LowRankUpdate(nn.Module):
    """Adds `scale * left @ right` to a matrix. `left` is 0 at first.

    With the scale, a change of all entries of `left` by 0.001 changes the matrix by 0.001 times its root mean square.
    """

    def __init__(self, matrix: Float[Tensor, "rows columns"], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = matrix.shape
        right = INITIAL * torch.randn(rank, columns, generator=generator)
        self.left = nn.Parameter(torch.zeros(rows, rank, device=matrix.device))
        self.right = nn.Parameter(right.to(matrix.device))
        self.scale = matrix.float().square().mean().sqrt().item() / (INITIAL * rank**0.5)

    def forward(self, matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        left = self.scale * self.left
        return torch.addmm(matrix, left.to(matrix.dtype), self.right.to(matrix.dtype))


@contextmanager
def low_rank_updates(matrices: Sequence[OwnedParameter], rank: int, seed: int) -> Iterator[list[nn.Parameter]]:
    """Give every matrix an update while the context is open. Yields the factors, float32 parameters to train.

    On exit the updates become part of the matrices; after an exception they are dropped.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = [LowRankUpdate(getattr(module, name), rank, generator) for module, name in matrices]
    for (module, name), update in zip(matrices, updates, strict=True):
        register_parametrization(module, name, update)
    keep = False
    try:
        yield [factor for update in updates for factor in (update.left, update.right)]
        keep = True
    finally:
        for module, name in matrices:
            remove_parametrizations(module, name, leave_parametrized=keep)
