"""A module with some of its parts exchanged, all other tensors shared."""

from __future__ import annotations

import copy

from torch import nn


def with_parts(module: nn.Module, parts: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy of the module with new parts in place of old ones (old: new); every tensor is shared, not copied."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    memo.update({id(old): new for old, new in parts.items()})
    return copy.deepcopy(module, memo)
