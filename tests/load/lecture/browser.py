"""A browser with the page open, in plain HTTP: calls of a session, and one stream for all their answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx

from tests.load.calls import Failed, Page, _words

Listener = Callable[[list[Any], bool], None]  # of what a call answers, and whether that is the last


class Browser(Page):
    """A session as gradio's client keeps it: a heartbeat, and a stream of messages while calls are open."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address
        self._listeners: dict[str, Listener] = {}
        self._failed: dict[str, Callable[[str], None]] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._streams = httpx.Client(timeout=httpx.Timeout(30.0, read=120.0))
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._read, self._beat)]

    def open(self) -> None:
        """Fetch the page, and keep the connection that says that it is open."""
        self.http.get(self.address).raise_for_status()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Leave, as when a tab is closed."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._streams.close()
        self.http.close()

    def cheap(self, name: str, data: list[Any]) -> str:
        """What an endpoint outside of the queue answers, as text. Raises Failed."""
        answer = self.http.post(f"{self.api}/run/{name}", json={"data": data, "session_hash": self.session})
        if answer.status_code != 200:
            raise Failed(_words(answer))
        return answer.text

    def call(self, name: str, data: list[Any], listener: Listener, failed: Callable[[str], None]) -> None:
        """Start a call; `listener` gets its answers in another thread. Raises Failed."""
        body = {"data": data, "session_hash": self.session}
        with self._changed:  # so that no answer comes before its listener
            answer = self.http.post(f"{self.api}/call/{name}", json=body)
            if answer.status_code != 200:
                raise Failed(_words(answer))
            self._listeners[answer.json()["event_id"]] = listener
            self._failed[answer.json()["event_id"]] = failed
            self._changed.notify_all()

    def _read(self) -> None:
        """Read the session's messages while it has open calls."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._listeners or self._is_closed)
                if self._is_closed:
                    return
            try:
                address = f"{self.api}/queue/data?session_hash={self.session}"
                with self._streams.stream("GET", address) as stream:
                    for line in stream.iter_lines():
                        message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else None
                        if message and message["msg"] == "close_stream":
                            break  # as a page does
                        if message:
                            self._take(message)
            except (httpx.HTTPError, RuntimeError) as problem:
                if not self._is_closed:
                    self._fail_all(f"{type(problem).__name__}: {problem}")

    def _take(self, message: dict[str, Any]) -> None:
        kind, call = message["msg"], message.get("event_id")
        with self._changed:
            listener, failed = self._listeners.get(call), self._failed.get(call)
            if kind == "process_completed":
                self._listeners.pop(call, None)
                self._failed.pop(call, None)
        if kind == "unexpected_error":
            self._fail_all(str(message.get("message")))
        elif kind in ("process_generating", "process_completed") and listener is not None and failed is not None:
            if message["success"]:
                listener(message["output"].get("data", []), kind == "process_completed")
            else:
                failed(str(message["output"]))

    def _fail_all(self, words: str) -> None:
        with self._changed:
            failed, self._failed = list(self._failed.values()), {}
            self._listeners.clear()
        for tell in failed:
            tell(words)

    def _beat(self) -> None:
        with suppress(httpx.HTTPError, RuntimeError):
            while not self._is_closed:
                with self._streams.stream("GET", f"{self.api}/heartbeat/{self.session}") as stream:
                    for _ in stream.iter_raw():
                        if self._is_closed:
                            return
                time.sleep(0.5)
