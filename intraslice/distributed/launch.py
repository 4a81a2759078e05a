"""How the processes that torchrun starts meet, each with a device of its own, and part again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as torch_distributed

from intraslice.core.errors import UserError
from intraslice.distributed.sharing import gathered

# How long some may work while others wait for them, such as on the last point of a sweep. Who ends is missed at once;
# this is for those that hang.
PATIENCE = timedelta(hours=6)


@contextmanager
def joined(device: str) -> Iterator[None]:
    """While open, this process shares its work with those that torchrun started beside it, if any.

    Sums meet through gloo in CPU memory and NCCL between GPUs; on "cuda" each process gets one GPU of its machine. All
    leave together, except where one leaves by an error. Raises UserError where they cannot meet.
    """
    count = _variable("WORLD_SIZE", 1)
    if count > 1:
        _join(device, count)
    try:
        yield
        if count > 1:
            gathered([])  # all are here
    finally:
        if count > 1:
            torch_distributed.destroy_process_group()


def _join(device: str, count: int) -> None:
    _choose_device(device, count)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        torch_distributed.init_process_group(backend, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{count} processes cannot meet ({str(error).splitlines()[0][:200]}); start them by torchrun, on several "
            "machines with the same --rdzv-endpoint"
        ) from error


def _choose_device(device: str, count: int) -> None:
    if device == "cpu":
        return
    if device != "cuda":
        raise UserError(f"device is {device!r} and there are {count} processes; expected cpu, or cuda for one GPU each")
    local, gpus = _variable("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= gpus:
        raise UserError(f"this machine has {gpus} GPUs, too few for its processes; start --nproc-per-node {gpus}")
    torch.cuda.set_device(local)


def _variable(name: str, default: int) -> int:
    """A whole number that torchrun leaves in the environment."""
    value = os.environ.get(name) or str(default)
    if not value.isdecimal():
        raise UserError(f"{name} is {value!r} in the environment; expected a whole number, or start by torchrun")
    return int(value)
