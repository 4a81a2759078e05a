"""Joins the processes that torchrun starts into a process group, each with its own device."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as torch_distributed

from intraslice.core.errors import UserError
from intraslice.distributed.sharing import all_gather

# Longest wait for another process, such as for the last point of a sweep. A process that ends is noticed at once; this
# is for processes that hang.
TIMEOUT = timedelta(hours=6)


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """Inside the context, this process shares its work with the others that torchrun started, if any.

    Reductions use gloo in CPU memory and NCCL between GPUs; on "cuda" each process gets one GPU of its machine. All
    processes leave together, unless one raises an error. Raises UserError if they cannot connect.
    """
    count = _variable("WORLD_SIZE", 1)
    if count > 1:
        _join(device, count)
    try:
        yield
        if count > 1:
            all_gather([])  # wait for all
    finally:
        if count > 1:
            torch_distributed.destroy_process_group()


def _join(device: str, count: int) -> None:
    _choose_device(device, count)
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    try:
        torch_distributed.init_process_group(backend, timeout=TIMEOUT)
        all_gather([])  # wait for all: a process that fails at once would cut off those that still connect
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"{count} processes cannot connect ({str(error).splitlines()[0][:200]}); start them with torchrun; on "
            "several machines, give each the same --rdzv-endpoint"
        ) from error


def _choose_device(device: str, count: int) -> None:
    if device == "cpu":
        return
    if device != "cuda":
        raise UserError(f"device must be cpu or cuda (one GPU per process) with {count} processes, got {device!r}")
    local, gpus = _variable("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= gpus:
        if gpus == 0:
            raise UserError("this machine has no GPU; use --device cpu")
        count_gpus = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise UserError(f"this machine has {count_gpus}, too few for its processes; start with --nproc-per-node {gpus}")
    torch.cuda.set_device(local)


def _variable(name: str, default: int) -> int:
    """A whole number that torchrun sets in the environment."""
    value = os.environ.get(name) or str(default)
    if not value.isdecimal():
        raise UserError(f"the environment variable {name} must be a whole number, got {value!r}; start with torchrun")
    return int(value)
