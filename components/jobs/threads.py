"""A pool of threads that are reused, the last one used first, and that end when there is nothing to do for a while."""

import os
import queue
import sys
import threading
from collections.abc import Callable
from traceback import format_tb

from .. import limits

NICENESS = 5  # jobs give way to handlers, which answer every move of a slider

Task = Callable[[], None]


class ThreadPool:
    """Runs every task at once, in an idle thread where there is one; a new thread first calls `initialise`."""

    def __init__(self, initialise: Callable[[], None] = lambda: None) -> None:
        self._initialise = initialise
        self._idle: list[queue.SimpleQueue[Task]] = []  # the inboxes of threads without a task
        self._lock = threading.Lock()

    def run(self, task: Task) -> None:
        """Run `task`, which must not raise."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            inbox = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="job", daemon=True).start()
        inbox.put(task)

    def _serve(self, inbox: queue.SimpleQueue[Task]) -> None:
        lower_priority()
        self._initialise()
        while True:
            try:
                task = inbox.get(timeout=limits.IDLE_THREAD_SECONDS)
            except queue.Empty:
                with self._lock:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return
                continue  # a task is on its way
            task()
            del task  # and what it holds, such as a model
            with self._lock:
                self._idle.append(inbox)


def lower_priority() -> None:
    """Make this thread, and those that it will start, nicer than the rest of the process, where a thread can be."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        # A process may be nicer already, and only root may make a thread less nice.
        os.setpriority(os.PRIO_PROCESS, thread, max(NICENESS, os.getpriority(os.PRIO_PROCESS, thread)))


def forget_frames(error: BaseException) -> None:
    """Replace an error's traceback by its text: its frames, even cleared ones, hold closures and so models."""
    cause: BaseException | None = error
    seen: list[BaseException] = []
    while cause is not None and cause not in seen:
        seen.append(cause)
        if not hasattr(cause, "__notes__"):
            cause.add_note("In its job:\n" + "".join(format_tb(cause.__traceback__)))
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
