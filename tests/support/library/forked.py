"""Processes that share their work, forked from this one, so that each has its fixtures at hand."""

import multiprocessing
import os
import pickle
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import pytest

from intraslice.core.errors import UserError
from intraslice.distributed import process_group

Work = Callable[[], Any]


def _work(work: Work, rank: int, size: int, port: int, answer: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with process_group("cpu"):
            found = work()
    except UserError as error:
        found = error
    # As bytes: torch would share a tensor's memory, which is gone with this process.
    answer.send_bytes(pickle.dumps(found))


@pytest.fixture(scope="session")
def together() -> Callable[[int, Work], list]:
    """Runs work in so many processes at once; what each of them returns, or its UserError, in the order of ranks."""

    def run(size: int, work: Work) -> list:
        context = multiprocessing.get_context("fork")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        processes = [
            context.Process(target=_work, args=(work, rank, size, port, sender), daemon=True)
            for rank, (_, sender) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for _, sender in pipes:
            sender.close()  # so that a process that dies ends its pipe
        answers = [pickle.loads(receiver.recv_bytes()) for receiver, _ in pipes]
        for process in processes:
            process.join()
        return answers

    return run
