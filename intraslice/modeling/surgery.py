"""A module with some of its parts exchanged, all other tensors shared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def with_parts(module: M, parts: Mapping[nn.Module, nn.Module]) -> M:
    """A copy of the module with new parts in place of old ones (old: new); every tensor is shared, not copied."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    memo.update({id(old): new for old, new in parts.items()})
    return copy.deepcopy(module, memo)
