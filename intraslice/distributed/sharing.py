"""Work shared among the processes that torch.distributed joined. A process by itself has all of it, at no cost.

Whatever is not a tensor travels pickled: these are a job's own processes, and trust one another.
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
_alone = False


def size() -> int:
    """How many processes share the work now."""
    return 1 if _alone or not _joined() else torch_distributed.get_world_size()


def rank() -> int:
    """This process's number among those that share the work now, from 0."""
    return 0 if size() == 1 else torch_distributed.get_rank()


def speaks() -> bool:
    """Whether this process is the one that writes to files and to the terminal, whatever it works on."""
    return not _joined() or torch_distributed.get_rank() == 0


def _joined() -> bool:
    return torch_distributed.is_available() and torch_distributed.is_initialized()


@contextmanager
def alone() -> Iterator[None]:
    """While open, this process works as if it were the only one: what is done inside is done by it, and whole."""
    global _alone
    before, _alone = _alone, _alone or size() > 1
    try:
        yield
    finally:
        _alone = before


def share_of(count: int, unit: int = 1) -> slice:
    """Which of `count` things in order are this process's; shares in the order of ranks are all of them.

    They come in whole units of so many, if there is at least one for each process. A share may be empty.
    """
    unit = unit if count > unit * (size() - 1) else 1
    units = -(-count // unit)
    return slice(*(min(unit * (units * turn // size()), count) for turn in (rank(), rank() + 1)))


def require_enough(sequences: int) -> None:
    """Raises UserError for fewer sequences of calibration text than processes."""
    if sequences < size():
        raise UserError(
            f"{sequences} calibration sequences are too few for {size()} processes, which want one each at least; "
            "start fewer processes or raise sequences"
        )


def all_reduce_(*tensors: Tensor) -> None:
    """Every tensor becomes the sum, in place, of what the processes have there."""
    if size() > 1:
        for tensor in tensors:
            if tensor.numel():
                with _waiting():
                    torch_distributed.all_reduce(tensor)


def gathered(own: Sequence[T]) -> list[T]:
    """What all processes have, in the order of their ranks."""
    if size() == 1:
        return list(own)
    every: list[Sequence[T]] = [()] * size()
    with _waiting():
        torch_distributed.all_gather_object(every, own)
    return list(chain.from_iterable(every))


def from_first(value: T) -> T:
    """The first process's value, so that all decide alike."""
    if size() == 1:
        return value
    values = [value]
    with _waiting():
        torch_distributed.broadcast_object_list(values)
    return values[0]


def require_agreement(what: str, digest: str) -> None:
    """Raises UserError in every process, unless all have the same digest of `what`."""
    if len(set(gathered([digest]))) > 1:
        raise UserError(f"the processes do not have the same {what}; give all machines the same files and options")


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # as every backend says that another process has gone, or is too late
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"process {rank()} of {size()} waits for others in vain ({reason}); see what the first of them to stop "
            "says, and start all of them again"
        ) from error
