"""Shards work over the processes of torch.distributed. Without a process group, one process does all of it, at no cost.

Objects that are not tensors are pickled: the processes belong to one job and trust each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

from torch import Tensor
from torch import distributed as torch_distributed

from intraslice.core.errors import UserError

T = TypeVar("T")
_single = False


def size() -> int:
    """Number of processes that share the work now."""
    return 1 if _single or not _is_initialized() else torch_distributed.get_world_size()


def rank() -> int:
    """Rank of this process among those that share the work now, from 0."""
    return 0 if size() == 1 else torch_distributed.get_rank()


def is_main_process() -> bool:
    """Whether this process is the one that writes to files and to the terminal, also inside `single_process`."""
    return not _is_initialized() or torch_distributed.get_rank() == 0


def _is_initialized() -> bool:
    return torch_distributed.is_available() and torch_distributed.is_initialized()


@contextmanager
def single_process() -> Iterator[None]:
    """Inside the context, this process works as if it were the only one: it does all the work itself."""
    global _single
    previous, _single = _single, _single or size() > 1
    try:
        yield
    finally:
        _single = previous


def shard_of(count: int, unit: int = 1) -> slice:
    """This process's slice of `count` ordered items. The shards of all ranks, in order, cover all items.

    A shard consists of whole units of `unit` items if every process can get one, and may be empty.
    """
    unit = unit if count > unit * (size() - 1) else 1
    units = -(-count // unit)
    return slice(*(min(unit * (units * index // size()), count) for index in (rank(), rank() + 1)))


def require_enough(sequences: int) -> None:
    """Raise UserError for fewer sequences of calibration text than processes."""
    if sequences < size():
        raise UserError(
            f"sequences must be at least {size()}, one for each process, got {sequences}; "
            "start fewer processes or raise sequences"
        )


def all_reduce_(*tensors: Tensor) -> None:
    """Replace every tensor, in place, by its sum over all processes."""
    if size() > 1:
        for tensor in tensors:
            if tensor.numel():
                with _waiting():
                    torch_distributed.all_reduce(tensor)


def all_gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of their ranks."""
    if size() == 1:
        return list(items)
    items_by_rank: list[Sequence[T]] = [()] * size()
    with _waiting():
        torch_distributed.all_gather_object(items_by_rank, items)
    return list(chain.from_iterable(items_by_rank))


def broadcast(value: T) -> T:
    """The value of the first process, so that all processes use the same."""
    if size() == 1:
        return value
    values = [value]
    with _waiting():
        torch_distributed.broadcast_object_list(values)
    return values[0]


def require_agreement(what: str, digest: str) -> None:
    """Raise UserError in every process, unless all have the same digest of `what`."""
    if len(set(all_gather([digest]))) > 1:
        raise UserError(f"the processes do not have the same {what}; give all machines the same files and options")


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # every backend raises it if another process has ended or timed out
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"process {rank()} of {size()} lost its connection to the other processes ({reason}); see the message of "
            "the first process that stopped, and start all of them again"
        ) from error
