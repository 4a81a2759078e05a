"""Independent work on tensors in several threads at once: small products gain more from it than each from threads."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def map_in_threads(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], workers: int, report: Callable[[int], object]
) -> list[Result]:
    """`function(*each)` in order, computed without gradients by `workers` threads, which share PyTorch's threads.

    `report` is called after each result with their number, and at most `workers` calls run ahead of it, so that it can
    pause; if it raises, the calls that have begun are waited for. An error of a call is raised in its place. One worker
    is the caller's own thread.
    """
    function, results = torch.no_grad()(function), list[Result]()
    if workers == 1:
        for items in arguments:
            results.append(function(*items))
            report(len(results))
        return results
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=partial(set_threads, max(1, threads // workers)))
    begun: deque[Future[Result]] = deque()

    def take_first() -> None:
        results.append(begun.popleft().result())
        torch.set_num_threads(threads)  # others' new threads begin with the number that was set last, in any thread
        report(len(results))

    try:
        for items in arguments:
            begun.append(pool.submit(function, *items))
            if len(begun) > workers:
                take_first()
        while begun:
            take_first()
        return results
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # last: a worker that begins late sets its own


def set_threads(count: int) -> None:
    """Set the number of PyTorch's threads for the calling thread, for good.

    `torch.set_num_threads` alone does not last: a thread's first operation takes the number that any thread set last.
    """
    torch.get_num_threads()  # counts as the first operation; after the next line, another thread's number could win
    torch.set_num_threads(count)
