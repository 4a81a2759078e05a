"""Shares work among the processes that torchrun starts. Outside `process_group`, a process does all work itself.

Four things are shared: the sequences of a calibration and those of sequential slicing (the sums are reduced), the
windows of a perplexity, and the points of a sweep. `require_shareable` in `cli/run.py` refuses all other commands.
Objects that are not tensors are pickled: the processes belong to one job and trust each other.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as torch_distributed

from intraslice.core.checks import from_environment
from intraslice.core.errors import UserError

T = TypeVar("T")

# Longest wait for another process, such as for the last point of a sweep. A process that ends is noticed at once; this
# is for processes that hang.
TIMEOUT = timedelta(hours=6)

_is_alone = True


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Inside the context, this process shares its work with the others that torchrun started, if any.

    Reductions use gloo in CPU memory and NCCL between GPUs; on "cuda" each process gets one GPU of its machine. Only
    the first process writes to stdout and stderr. All processes leave together, unless one raises an error. Raises
    UserError if they cannot connect.
    """
    global _is_alone
    count = from_environment("WORLD_SIZE", 1, "a whole number")
    if count <= 1:
        yield
        return
    _connect(device, count)
    _is_alone = False
    try:
        all_gather([])  # wait for all: a process that fails at once would cut off those that still connect
        with ExitStack() as muted:
            if rank() > 0:
                nowhere = muted.enter_context(Path(os.devnull).open("w"))
                muted.enter_context(redirect_stdout(nowhere))
                muted.enter_context(redirect_stderr(nowhere))
                logging.disable(logging.WARNING)  # whose handlers have the stream from before
                muted.callback(logging.disable, logging.NOTSET)
            yield
        all_gather([])  # wait for all
    finally:
        _is_alone = True
        torch_distributed.destroy_process_group()


@contextmanager
def single_process() -> Iterator[None]:
    """Inside the context, this process works as if it were the only one: it does all the work itself."""
    global _is_alone
    before, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = before


def size() -> int:
    """Number of processes that share the work now."""
    return 1 if _is_alone else torch_distributed.get_world_size()


def rank() -> int:
    """Rank of this process among those that share the work now, from 0. The first one writes files."""
    return 0 if _is_alone else torch_distributed.get_rank()


def shard_of(count: int, unit: int = 1) -> slice:
    """This process's slice of `count` ordered items. The shards of all ranks, in order, cover all items.

    A shard consists of whole units of `unit` items if every process can get one, and may be empty.
    """
    unit = unit if count > unit * (size() - 1) else 1
    units = -(-count // unit)
    return slice(*(min(unit * (units * index // size()), count) for index in (rank(), rank() + 1)))


def all_reduce_(*tensors: Tensor) -> None:
    """Replace every tensor, in place, by its sum over all processes."""
    if size() == 1:
        return
    all_gather([])  # by gloo, which notices a process that has left; NCCL would wait for it
    with _waiting():
        for tensor in tensors:
            if tensor.numel():
                torch_distributed.all_reduce(tensor)


def all_gather(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of their ranks."""
    if size() == 1:
        return list(items)
    items_by_rank: list[Sequence[T]] = [()] * size()
    with _waiting():
        torch_distributed.all_gather_object(items_by_rank, items)
    return list(chain.from_iterable(items_by_rank))


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


def _connect(device: str, count: int) -> None:
    if device not in ("cpu", "cuda"):
        raise UserError(f"device must be cpu or cuda (one GPU per process) with {count} processes, got {device!r}")
    if device == "cuda":
        local, gpus = from_environment("LOCAL_RANK", 0, "a whole number"), torch.cuda.device_count()
        if gpus == 0:
            raise UserError("this machine has no GPU; use --device cpu")
        if local >= gpus:
            has = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
            raise UserError(f"this machine has {has}, too few for its processes; start with --nproc-per-node {gpus}")
        torch.cuda.set_device(local)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        torch_distributed.init_process_group(backend, timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{count} processes cannot connect ({str(error).splitlines()[0][:200]}); start them with torchrun; on "
            "several machines, give each the same --rdzv-endpoint"
        ) from error
