"""Low-rank updates of linear maps (LoRA, Hu et al., arXiv 2106.09685): cheap to train, in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

# Standard deviation of the right factors: the smaller, the faster Adam turns them. A recovery's results depend on it.
INITIAL = 0.05


class LowRankUpdate:
    """Adds `scale * left @ right` to the matrix of a linear map. `left` is 0 at first.

    With the scale, a change of all entries of `left` by 0.001 changes the matrix by 0.001 times its root mean square.
    """

    def __init__(self, module: nn.Linear, rank: int, generator: torch.Generator) -> None:
        weight = module.weight
        right = INITIAL * torch.randn(rank, weight.shape[1], generator=generator)
        self.right = right.to(weight.device).requires_grad_()
        self.left = torch.zeros(weight.shape[0], rank, device=weight.device, requires_grad=True)
        self.scale = weight.float().square().mean().sqrt().item() / (INITIAL * rank**0.5)

    def hook(
        self, module: nn.Linear, inputs: tuple[Any, ...], output: Float[Tensor, "*tokens rows"]
    ) -> Float[Tensor, "*tokens rows"]:
        """Adds the update's product with the inputs to the output, as a forward hook."""
        narrow = linear(inputs[0], (self.scale * self.right).to(output.dtype))
        return output + linear(narrow, self.left.to(output.dtype))

    @torch.no_grad()
    def merge_(self, module: nn.Linear) -> None:
        """Add the update to the matrix, rounding once."""
        module.weight.copy_(torch.addmm(module.weight.float(), self.left, self.right, alpha=self.scale))


@contextmanager
def low_rank_updates(modules: Sequence[nn.Linear], rank: int, seed: int) -> Iterator[list[Tensor]]:
    """Give every linear map an update while the context is open. Yields the factors, float32 tensors to train.

    On exit the updates are added to the matrices; after an exception they are dropped. Each map must have a matrix of
    its own, and be called with one positional argument.
    """
    generator = torch.Generator().manual_seed(seed)
    updates = [LowRankUpdate(module, rank, generator) for module in modules]
    handles = [module.register_forward_hook(update.hook) for module, update in zip(modules, updates, strict=True)]
    try:
        yield [factor for update in updates for factor in (update.left, update.right)]
    finally:
        for handle in handles:
            handle.remove()
    for module, update in zip(modules, updates, strict=True):
        update.merge_(module)
