"""Gradio's queue, made fit for strangers: a call waits until somebody listens, and nobody's messages are lost.

Gradio 6.31 keeps the messages of 2,000 sessions and forgets the oldest, read or not. What is sent to a forgotten one
is a KeyError that ends the queue for good: each further call is answered "Queue is stopped" (gradio issue 11167).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from gradio.queueing import Event, Queue

from components.i18n.language import say
from components.jobs import limits

log = logging.getLogger(__name__)

REMEMBERED = 300.0  # seconds without a reader after which a session's messages are forgotten
EVERY = 1.0  # second between two looks


class Mailbox(asyncio.Queue):
    """A session's messages, and whether somebody reads them."""

    def __init__(self, opened: Callable[[], None]) -> None:
        super().__init__()
        self.readers, self._opened, self._last = 0, opened, time.monotonic()

    async def get(self) -> Any:
        """The next message, once there is one."""
        self.readers += 1
        self._opened()
        try:
            return await super().get()
        finally:
            self.readers -= 1
            self._last = time.monotonic()

    def unread(self) -> float:
        """Seconds since the last reader went."""
        return 0.0 if self.readers else time.monotonic() - self._last


class Mailboxes(dict[str, Mailbox]):
    """By session. Whatever gradio would set, it is a `Mailbox`."""

    def __init__(self, opened: Callable[[str], None]) -> None:
        super().__init__()
        self._opened = opened

    def __setitem__(self, session: str, _: object) -> None:
        super().__setitem__(session, Mailbox(lambda: self._opened(session)))


class SteadyQueue(Queue):
    """Calls whose sessions nobody reads are set aside, at no cost but their own; the oldest of them makes room.

    What remains is bounded by visitor and in all, and refused in words beyond that. Its loops are started again should
    they fail.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.pending_messages_per_session: Mailboxes = Mailboxes(self._begin)
        self._aside: dict[str, list[Event]] = {}  # by session, the oldest first
        self._ended = False

    # Joining

    async def push(self, body: Any, request: Any, username: str | None) -> tuple[bool, Any, str]:
        """Take a call on, or say why not."""
        if refusal := self._refusal(body.session_hash):
            return False, refusal, "queue_full"
        answer = await super().push(body, request, username)
        event = self.event_ids_to_events.get(answer[1]) if answer[0] else None
        if event is not None and not self.pending_messages_per_session[event.session_hash].readers:
            self.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
            self._aside.setdefault(event.session_hash, []).append(event)
        return answer

    def _refusal(self, session: str | None) -> str:
        """Why a session's call cannot be taken on, or nothing; makes room where there is some to be made."""
        own = sum(event.session_hash == session for event in self.event_ids_to_events.values())
        if own >= limits.VISITOR_CALLS.value:
            return say("{count} calls of this page wait already; go on when some of them are answered.", count=own)
        most = limits.CALLS.value
        if len(self.event_ids_to_events) >= most and self._aside:
            self._forget(next(iter(self._aside)))
        if (waiting := len(self.event_ids_to_events)) >= most:
            return say(
                "{count} calls wait already, and yours would come after them; try again in a minute.", count=waiting
            )
        if len(self.pending_messages_per_session) >= 2 * most:
            called = self._called()
            idle = (one for one, box in self.pending_messages_per_session.items() if not (box.readers or one in called))
            self._forget(next(idle, ""))
        return ""

    def _begin(self, session: str) -> None:
        """Somebody reads: what was set aside takes its place in line."""
        for event in self._aside.pop(session, ()):
            line = self.event_queue_per_concurrency_id[event.concurrency_id].queue
            line.append(event)
            self.broadcast_estimations(event.concurrency_id, len(line) - 1)

    def _called(self) -> set[str]:
        """Sessions that have a call."""
        return {event.session_hash for event in self.event_ids_to_events.values()}

    # Leaving

    async def clean_events(self, *, session_hash: str | None = None, event_id: str | None = None) -> None:
        """End the calls of a session, or one call."""
        self._drop(lambda event: event.session_hash == session_hash or event._id == event_id)
        await super().clean_events(session_hash=session_hash, event_id=event_id)

    async def remove_from_queue(self, event_id: str) -> None:
        """End a call that has not begun."""
        self._drop(lambda event: event._id == event_id)
        await super().remove_from_queue(event_id)

    def _drop(self, left: Callable[[Event], bool]) -> None:
        """Forget calls that were set aside."""
        for session, events in list(self._aside.items()):
            for event in filter(left, events):
                self.event_ids_to_events.pop(event._id, None)
                self.pending_event_ids_session.get(session, set()).discard(event._id)
            if kept := [event for event in events if not left(event)]:
                self._aside[session] = kept
            else:
                del self._aside[session]

    def _forget(self, session: str) -> None:
        """All that is known of a session that nobody reads."""
        for event in self._aside.pop(session, ()):
            self.event_ids_to_events.pop(event._id, None)
        self.pending_messages_per_session.pop(session, None)
        self.pending_event_ids_session.pop(session, None)

    def tidy(self) -> None:
        """Give up calls, then sessions, that nobody has read for long."""
        unread, patience = self._unread, limits.UNREAD_SECONDS.value
        for session in [one for one in self._aside if unread(one) > patience]:
            self._forget(session)
        for event in [event for job in self.active_jobs if job for event in job]:
            event.alive = event.alive and unread(event.session_hash) < patience
        for session in {*self.pending_messages_per_session, *self.pending_event_ids_session} - self._called():
            if unread(session) > REMEMBERED:
                self._forget(session)

    def _unread(self, session: str) -> float:
        """Seconds since anybody read a session's messages."""
        box = self.pending_messages_per_session.get(session)
        return math.inf if box is None else box.unread()

    # Staying alive

    def send_message(self, event: Event, event_message: Any) -> None:
        """Put a message into the box of whoever made a call; where that is gone nobody listens."""
        if event.session_hash in self.pending_messages_per_session:
            super().send_message(event, event_message)
        else:
            event.alive = False

    def start(self) -> None:
        """Run, in the event loop that is running now."""
        self._ended = False
        super().start()
        self._asyncio_tasks.add(asyncio.get_running_loop().create_task(self._look_after()))

    def close(self) -> None:
        """End for good."""
        self._ended = True
        super().close()

    async def start_processing(self) -> None:
        """Begin calls as there is room for them."""
        await self._kept_up(super().start_processing)

    async def start_progress_updates(self) -> None:
        """Tell of progress."""
        await self._kept_up(super().start_progress_updates)

    async def _kept_up(self, loop: Callable[[], Awaitable[None]]) -> None:
        while not self._ended:
            try:
                await loop()
            except Exception:
                log.exception("a loop of the queue failed; it is started again")
            self.stopped = self._ended
            await asyncio.sleep(EVERY)

    async def _look_after(self) -> None:
        while not self._ended:
            await asyncio.sleep(EVERY)
            self.tidy()

    def _cancel_asyncio_tasks(self) -> None:
        if self._ended:  # a loop that starts again leaves the calls alone that run
            super()._cancel_asyncio_tasks()

    def compute_analytics_summary(self, records: Any) -> dict:
        """None: nobody looks, and gradio makes a table of the last 10,000 calls after every one."""
        return {"functions": {}}
