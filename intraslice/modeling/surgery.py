"""Copies a module with some submodules or parameters replaced, and makes linear maps around existing tensors."""

import copy
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
Part = TypeVar("Part", bound=nn.Module | nn.Parameter)


def replace_modules(module: M, replacements: Mapping[Part, nn.Module | nn.Parameter]) -> M:
    """A copy of the module with submodules or parameters replaced (old: new). Other tensors are shared, not copied."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    memo.update({id(old): new for old, new in replacements.items()})
    return copy.deepcopy(module, memo)


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
