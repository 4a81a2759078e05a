"""Independent work on tensors in several threads at once: small products gain more from it than each from threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


def map_in_threads(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], workers: int
) -> Generator[Result, None, None]:
    """Yield `function(*each)` in order, computed without gradients by `workers` threads, which share PyTorch's threads.

    At most `workers` calls run ahead of what was yielded, so that a caller can pause. Close the iterator where it may
    be left early: it then waits for the calls that have begun. An error of a call is raised in its place. One worker
    is the caller's own thread.
    """
    function = torch.no_grad()(function)
    if workers == 1:
        yield from (function(*items) for items in arguments)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, initializer=partial(set_threads, max(1, threads // workers)))
    begun: deque[Future[Result]] = deque()

    def first() -> Result:
        result = begun.popleft().result()
        torch.set_num_threads(threads)  # others' new threads begin with the number that was set last, in any thread
        return result

    try:
        for items in arguments:
            begun.append(pool.submit(function, *items))
            if len(begun) > workers:
                yield first()
        while begun:
            yield first()
    finally:
        torch.set_num_threads(threads)
        pool.shutdown(cancel_futures=True)


def set_threads(count: int) -> None:
    """Set the number of PyTorch's threads for the calling thread, for good.

    `torch.set_num_threads` alone does not last: a thread's first operation takes the number that any thread set last.
    """
    torch.set_num_threads(count)
    torch.get_num_threads()  # counts as the first operation
