"""A queue that survives clients who abandon their calls.

Gradio's own queue

- keeps the messages of 2,000 sessions and drops the oldest, read or not. The next message to a dropped session is a
  KeyError that ends the queue for good: each further call is answered "Queue is stopped" (gradio issue 11167);
- runs calls whose answers nobody reads, and does not limit the calls of one session;
- stops for good when one of its loops raises an exception;
- forgets a session's messages and calls when a stream ends. A page ends its stream when it has all answers, and begins
  another with its next call: a call that comes before the server has noticed is lost ("Connection errored out");
- makes a table of the last 10,000 calls after every one, for a monitoring page that is turned off here;
- looks for calls a thousand times a second, and for progress a hundred times: 6 % of a core of an idle server.

Tried with gradio 6.30 and 6.31. Tests: `tests/page/gradio_compat/test_queue.py`, `server/test_server.py`.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary

import gradio as gr
from gradio.queueing import Event, Queue

from .. import limits
from ..i18n.language import gettext
from .callers import client_of
from .http.addresses import address_of
from .http.mailbox import Mailboxes
from .http.mcp import mcp_caller

log = logging.getLogger(__name__)


class SteadyQueue(Queue):
    """Gradio's queue, in which a call waits until somebody reads its session's messages.

    Calls that nobody reads are set aside and cost nothing; the oldest of them makes room for a new one. The others are
    bounded for each session and in total, and a call beyond the bounds is refused with a message. Loops that fail are
    started again.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.sleep_when_free = limits.QUEUE_POLL_SECONDS
        self.progress_update_sleep_when_free = limits.TIDYING_SECONDS  # no call shows gradio's progress
        # Gradio's is an LRUCache, of which it uses what dictionaries have.
        self.pending_messages_per_session: Mailboxes = Mailboxes(self._begin)  # type: ignore[assignment]
        self._unread_calls: dict[str, list[Event]] = {}  # calls that nobody reads, by session, the oldest first
        self._left: dict[str, float] = {}  # when the reader of a session left
        self._callers: WeakKeyDictionary[Event, tuple[str | None, str]] = WeakKeyDictionary()  # client, address
        self._is_closed = False

    @property
    def is_running(self) -> bool:
        """Whether calls are begun."""
        return not self.stopped

    @property
    def open_calls(self) -> int:
        """The number of calls that wait or run."""
        return len(self.event_ids_to_events)

    async def push(
        self, body: Any, request: Any, username: str | None
    ) -> tuple[bool, Any, Literal["success", "error", "queue_full", "validator_error"]]:
        """Accept a call, or say why not."""
        caller = mcp_caller(request)  # its session is one of gradio's own client
        client = client_of(request) if caller else body.session_hash and f"session {body.session_hash}"
        address = caller.address if caller else address_of(request)
        if len(body.session_hash or "") > limits.MAX_SESSION_NAME:
            words = gettext("The session's name may have at most {limit} characters.", limit=limits.MAX_SESSION_NAME)
            return False, words, "error"
        mailbox = self.pending_messages_per_session.get(body.session_hash)  # None at a session's first call
        if mailbox is not None and (refusal := self._too_many(mailbox.calls_coming)):
            return False, refusal, "queue_full"
        async with mailbox.calling() if mailbox is not None else nullcontext():
            if refusal := self._refusal(client, address):
                return False, refusal, "queue_full"
            self._left.pop(body.session_hash, None)
            answer = await super().push(body, request, username)
        event = self.event_ids_to_events.get(str(answer[1])) if answer[0] else None
        if event is not None:
            self._callers[event] = client, address
            self.pending_messages_per_session[event.session_hash].touch()
        if event is not None and not self.pending_messages_per_session[event.session_hash].readers:
            self.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
            self._unread_calls.setdefault(event.session_hash, []).append(event)
        return answer

    def _refusal(self, client: str | None, address: str) -> str:
        """Why a client's call cannot be accepted, or nothing; makes room where some can be made."""
        clients = (self._callers[event][0] for event in self.event_ids_to_events.values() if event in self._callers)
        if refusal := self._too_many(sum(client is not None and other == client for other in clients)):
            return refusal
        if not limits.has_room(limits.CALLS, self.open_calls, True) and not self._make_room(address):
            return gettext(
                "The server already has {count} requests waiting. Try again in a minute.", count=self.open_calls
            )
        if len(self.pending_messages_per_session) >= 2 * limits.CALLS.value:
            calling = self._sessions_with_calls()
            boxes = self.pending_messages_per_session.items()
            self._forget(next((idle for idle, box in boxes if not (box.is_watched or idle in calling)), ""))
        return ""

    @staticmethod
    def _too_many(own_calls: int) -> str:
        if own_calls < limits.CLIENT_CALLS.value:
            return ""
        return gettext(
            "This page already has {count} requests waiting. Try again when some have finished.", count=own_calls
        )

    def _make_room(self, address: str) -> bool:
        """Whether a call from an address is accepted while the queue is nearly full; an unread call gives way to it.

        An address that has calls displaces the oldest of its own, another address the oldest of all.
        """
        has_some = self._has_calls(address)
        if limits.has_room(limits.CALLS, self.open_calls, has_some):
            return True
        sessions = (
            session
            for session, calls in self._unread_calls.items()
            if not has_some or self._address(calls[0]) == address
        )
        self._forget(next(sessions, ""))
        return limits.has_room(limits.CALLS, self.open_calls, self._has_calls(address))

    def _has_calls(self, address: str) -> bool:
        """Whether an address has calls that wait or run; never of an unknown address."""
        return bool(address) and address in map(self._address, self.event_ids_to_events.values())

    def _address(self, event: Event) -> str:
        return self._callers[event][1] if event in self._callers else ""

    def _begin(self, session: str) -> None:
        """Somebody reads: the session's calls that were set aside take their places in line."""
        self._left.pop(session, None)
        for event in self._unread_calls.pop(session, ()):
            line = self.event_queue_per_concurrency_id[event.concurrency_id].queue
            line.append(event)
            self.broadcast_estimations(event.concurrency_id, len(line) - 1)

    def _sessions_with_calls(self) -> set[str]:
        return {event.session_hash for event in self.event_ids_to_events.values()}

    async def clean_events(self, *, session_hash: str | None = None, event_id: str | None = None) -> None:
        """End one call, or after `GRACE_SECONDS` those of a session that has left."""
        if session_hash is not None:
            self._left[session_hash] = time.monotonic()
        if event_id is not None:
            self._drop(lambda event: event._id == event_id)
            await super().clean_events(event_id=event_id)

    async def _end_calls_of_the_gone(self) -> None:
        """End the calls of the sessions that left and read nothing since, neither the old stream nor a new one."""
        before = time.monotonic() - limits.GRACE_SECONDS
        gone = {one for one, left in self._left.items() if left < before and self._unread(one)}
        self._drop(lambda event: event.session_hash in gone)
        for session in gone:
            del self._left[session]
            await super().clean_events(session_hash=session)

    async def remove_from_queue(self, event_id: str) -> None:
        """End a call that has not begun."""
        self._drop(lambda event: event._id == event_id)
        await super().remove_from_queue(event_id)

    def _drop(self, is_dropped: Callable[[Event], bool]) -> None:
        """Forget some of the calls that were set aside."""
        for session, events in list(self._unread_calls.items()):
            for event in filter(is_dropped, events):
                self.event_ids_to_events.pop(event._id, None)
                self.pending_event_ids_session.get(session, set()).discard(event._id)
            if kept := [event for event in events if not is_dropped(event)]:
                self._unread_calls[session] = kept
            else:
                del self._unread_calls[session]

    def _forget(self, session: str) -> None:
        """Forget all of a session that nobody reads."""
        for event in self._unread_calls.pop(session, ()):
            self.event_ids_to_events.pop(event._id, None)
        self.pending_messages_per_session.pop(session, None)
        self.pending_event_ids_session.pop(session, None)

    def tidy(self) -> None:
        """Give up the calls, then the sessions, that nobody has read for long."""
        unread, patience = self._unread, limits.UNREAD_SECONDS.value
        for session in [session for session in self._unread_calls if unread(session) > patience]:
            self._forget(session)
        for event in [event for job in self.active_jobs if job for event in job]:
            event.alive = event.alive and unread(event.session_hash) < patience
        sessions = {*self.pending_messages_per_session, *self.pending_event_ids_session}
        for session in sessions - self._sessions_with_calls():
            if unread(session) > limits.SESSION_SECONDS:
                self._forget(session)

    def _unread(self, session: str) -> float:
        """Seconds since somebody read a session's messages."""
        box = self.pending_messages_per_session.get(session)
        return math.inf if box is None else box.unread()

    def send_message(self, event: Event, event_message: Any) -> None:
        """Put a message into the mailbox of a call's session; where that is gone nobody listens any more."""
        if event.session_hash in self.pending_messages_per_session:
            super().send_message(event, event_message)
        else:
            event.alive = False

    def start(self) -> None:
        """Run, in the event loop that is running now."""
        self._is_closed = False
        super().start()
        self._asyncio_tasks.add(asyncio.get_running_loop().create_task(self._tidy_regularly()))

    def close(self) -> None:
        """Stop for good."""
        self._is_closed = True
        super().close()

    async def start_processing(self) -> None:
        """Begin calls as there is room for them."""
        await self._keep_up(super().start_processing)

    async def start_progress_updates(self) -> None:
        """Send gradio's own progress messages."""
        await self._keep_up(super().start_progress_updates)

    async def _keep_up(self, loop: Callable[[], Awaitable[None]]) -> None:
        while not self._is_closed:
            try:
                await loop()
            except Exception:
                log.exception("a loop of the queue failed; it is started again")
            self.stopped = self._is_closed
            await asyncio.sleep(limits.TIDYING_SECONDS)

    async def _tidy_regularly(self) -> None:
        async def tidy() -> None:
            await self._end_calls_of_the_gone()
            self.tidy()

        await self._keep_up(tidy)

    def _cancel_asyncio_tasks(self) -> None:
        if self._is_closed:  # a loop that starts again leaves the calls alone that run
            super()._cancel_asyncio_tasks()

    def compute_analytics_summary(self, records: Any) -> dict[str, Any]:
        """Nothing: the monitoring page is turned off."""
        return {"functions": {}}


def steady_queue(queue: Queue, page: gr.Blocks) -> SteadyQueue:
    """A `SteadyQueue` of a page with the options of the queue that gradio made for it."""
    return SteadyQueue(
        live_updates=queue.live_updates,
        concurrency_count=queue.max_thread_count,
        update_intervals=queue.update_intervals,
        max_size=queue.max_size,
        blocks=page,
        default_concurrency_limit=queue.default_concurrency_limit,
    )
