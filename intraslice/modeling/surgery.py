"""Copies a module with some submodules or parameters replaced; all other tensors are shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
Part = TypeVar("Part", bound=nn.Module | nn.Parameter)


def replace_modules(module: M, replacements: Mapping[Part, nn.Module | nn.Parameter]) -> M:
    """A copy of the module with submodules or parameters replaced (old: new). Other tensors are shared, not copied."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    memo.update({id(old): new for old, new in replacements.items()})
    return copy.deepcopy(module, memo)
