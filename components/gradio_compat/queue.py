"""A queue that survives clients who abandon their calls.

Gradio's own queue

- keeps the messages of 2,000 sessions and drops the oldest, read or not. The next message to a dropped session ends
  the queue for good: each further call is answered "Queue is stopped" (gradio issue 11167);
- runs calls whose answers no client reads, and does not limit the calls of one session;
- forgets a session's messages and calls when a stream ends, such as that of a page which has all answers: a call that
  comes before the server has noticed is lost ("Connection errored out");
- makes a table of the last 10,000 calls after every one, and looks for calls a thousand times a second: 6 % of a core.

Tried with gradio 6.30 and 6.31. Tests: `tests/page/gradio_compat/test_queue.py`, `server/test_server.py`.
"""

import asyncio
import math
import random
import sys
import time
from contextlib import nullcontext
from typing import Any, Literal
from weakref import WeakKeyDictionary

from gradio.queueing import Event, Queue

from .. import limits
from ..i18n.language import gettext
from .callers import address_of, client_of, mcp_caller
from .streams import Mailboxes


class SteadyQueue(Queue):
    """Gradio's queue, in which a call begins only while a client reads its session's messages.

    An unread call that waits costs nothing; the oldest of them makes room for a new one. The others are bounded for
    each session and in total, and a call beyond the bounds is refused with a message.
    """

    def __init__(self, queue: Queue) -> None:
        vars(self).update(vars(queue))
        self.sleep_when_free = limits.QUEUE_POLL_SECONDS
        self.progress_update_sleep_when_free = limits.TIDYING_SECONDS  # no call shows gradio's progress
        self.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize  # calls, after which a table of them is made
        # Gradio's is an LRUCache, of which it uses what dictionaries have.
        self.pending_messages_per_session: Mailboxes = Mailboxes()  # type: ignore[assignment]
        self._left: dict[str, float] = {}  # when the reader of a session left
        self._callers: WeakKeyDictionary[Event, tuple[str | None, str]] = WeakKeyDictionary()  # client, address

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
        if answer[0] and (event := self.event_ids_to_events.get(str(answer[1]))) is not None:
            self._callers[event] = client, address
            self.pending_messages_per_session[event.session_hash].touch()
        return answer

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """The next call, of those whose messages a client reads now, from one of the lines at random."""
        lines = list(self.event_queue_per_concurrency_id.values())
        random.shuffle(lines)
        for line in lines:
            if line.concurrency_limit is None or line.current_concurrency < line.concurrency_limit:
                for event in filter(self._is_read, line.queue):
                    line.queue.remove(event)
                    return [event], False, line.concurrency_id
        return None

    def _is_read(self, event: Event) -> bool:
        box = self.pending_messages_per_session.get(event.session_hash)
        return box is not None and box.readers > 0

    def _unread(self, session: str) -> float:
        """Seconds for which no client has read a session's messages."""
        box = self.pending_messages_per_session.get(session)
        return math.inf if box is None else box.unread()

    def _refusal(self, client: str | None, address: str) -> str:
        """Why a client's call cannot be accepted, or nothing; makes room where some can be made."""
        clients = [self._caller(event)[0] for event in self.event_ids_to_events.values()]
        if refusal := self._too_many(sum(client is not None and other == client for other in clients)):
            return refusal
        if not self._has_room(address):
            # The oldest call that no client reads gives way: one of this address, where it has calls.
            unread, has_some = (call for call in self._waiting() if not self._is_read(call)), self._has_calls(address)
            sessions = (call.session_hash for call in unread if not has_some or self._caller(call)[1] == address)
            self._forget(next(sessions, ""))
        if not self._has_room(address):
            words = "The server already has {count} requests waiting. Try again in a minute."
            return gettext(words, count=self.open_calls)
        if len(self.pending_messages_per_session) >= 2 * limits.CALLS.value:
            calling = self._sessions_with_calls()
            boxes = self.pending_messages_per_session.items()
            self._forget(next((idle for idle, box in boxes if not (box.readers or box.streams or idle in calling)), ""))
        return ""

    @staticmethod
    def _too_many(own_calls: int) -> str:
        words = "This page already has {count} requests waiting. Try again when some have finished."
        return gettext(words, count=own_calls) if own_calls >= limits.CLIENT_CALLS.value else ""

    def _has_room(self, address: str) -> bool:
        return limits.has_room(limits.CALLS, self.open_calls, self._has_calls(address))

    def _has_calls(self, address: str) -> bool:
        """Whether an address has calls that wait or run; never of an unknown address."""
        return bool(address) and any(self._caller(event)[1] == address for event in self.event_ids_to_events.values())

    def _caller(self, event: Event) -> tuple[str | None, str]:
        return self._callers.get(event, (None, ""))

    def _waiting(self) -> list[Event]:
        """The calls that have not begun, the oldest first."""
        waiting = {event for line in self.event_queue_per_concurrency_id.values() for event in line.queue}
        return [event for event in self.event_ids_to_events.values() if event in waiting]

    def _sessions_with_calls(self) -> set[str]:
        return {event.session_hash for event in self.event_ids_to_events.values()}

    def _forget(self, session: str) -> None:
        """Forget a session's messages, and those of its calls that have not begun."""
        for event in [event for event in self._waiting() if event.session_hash == session]:
            self.event_queue_per_concurrency_id[event.concurrency_id].queue.remove(event)
            del self.event_ids_to_events[event._id]
        self.pending_messages_per_session.pop(session, None)
        self.pending_event_ids_session.pop(session, None)

    async def clean_events(self, *, session_hash: str | None = None, event_id: str | None = None) -> None:
        """End one call. A session that has left may come back, and `tidy` ends its calls if it does not."""
        if session_hash is not None:
            self._left[session_hash] = time.monotonic()
        if event_id is not None:
            await super().clean_events(event_id=event_id)

    async def tidy(self) -> None:
        """End the calls of sessions that have left, and forget sessions whose messages no client has read for long."""
        patience, now = limits.UNREAD_SECONDS.value, time.monotonic()
        for session, left in list(self._left.items()):
            if now - left > limits.GRACE_SECONDS:
                self._left.pop(session, None)
                if self._unread(session) >= now - left:
                    await super().clean_events(session_hash=session)
        for session in {event.session_hash for event in self._waiting()}:
            if self._unread(session) > patience:
                self._forget(session)
        for event in [event for job in self.active_jobs if job for event in job]:
            event.alive = event.alive and self._unread(event.session_hash) < patience
        sessions = {*self.pending_messages_per_session, *self.pending_event_ids_session}
        for session in sessions - self._sessions_with_calls():
            if self._unread(session) > limits.SESSION_SECONDS:
                self._forget(session)

    def send_message(self, event: Event, event_message: Any) -> None:
        """Put a message into the mailbox of a call's session; where that is gone, the call has no client any more."""
        if event.session_hash in self.pending_messages_per_session:
            super().send_message(event, event_message)
        else:
            event.alive = False

    def start(self) -> None:
        """Run, in the event loop that is running now."""
        super().start()
        self._asyncio_tasks.add(asyncio.get_running_loop().create_task(self._tidy_regularly()))

    async def _tidy_regularly(self) -> None:
        while not self.stopped:
            await asyncio.sleep(limits.TIDYING_SECONDS)
            await self.tidy()
