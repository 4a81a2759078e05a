"""Work in processes that are forked from this one, so that each has its fixtures at hand."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import pytest

from intraslice.core.errors import UserError
from intraslice.distributed import process_group

Work = Callable[[], Any]
FORK = multiprocessing.get_context("fork")


def fork(work: Work) -> BaseProcess:
    """A process that runs work, and ends with this one."""
    process = FORK.Process(target=work, daemon=True)
    process.start()
    return process


def answers_of(works: Sequence[Work]) -> list:
    """What each work returns in a process of its own, all at once. Raises EOFError where one dies."""
    pipes = [FORK.Pipe(duplex=False) for _ in works]
    # As bytes: torch would share a tensor's memory, which is gone with the process.
    processes = [
        fork(lambda work=work, sender=sender: sender.send_bytes(pickle.dumps(work())))
        for work, (_, sender) in zip(works, pipes, strict=True)
    ]
    for _, sender in pipes:
        sender.close()  # so that a process that dies ends its pipe
    try:
        return [pickle.loads(receiver.recv_bytes()) for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join()


def _in_group(work: Work, rank: int, size: int, port: int) -> Any:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with process_group("cpu"):
            return work()
    except UserError as error:
        return error


@pytest.fixture(scope="session")
def together() -> Callable[[int, Work], list]:
    """Runs work in so many processes that share it; what each of them returns, or its UserError, by ranks."""

    def run(size: int, work: Work) -> list:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        return answers_of([lambda rank=rank: _in_group(work, rank, size, port) for rank in range(size)])

    return run
