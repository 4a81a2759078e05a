"""How a client speaks to the page, in plain HTTP, and what is noted of every call."""

import json
import math
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import httpx

POLITE = ("wait", "try again", "too many")  # words of a refusal


@dataclass
class Notes:
    """Of all clients: calls by kind, what became of them, and how long the slider took (s)."""

    calls: Counter[str] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    foreign: list[str] = field(default_factory=list)
    checked: Counter[str] = field(default_factory=Counter)
    slider: list[float] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, kind: str) -> None:
        """One more of a kind."""
        with self._lock:
            self.calls[kind] += 1

    def failed(self, kind: str, words: str) -> None:
        """A refusal where it says so in words, else an error."""
        with self._lock:
            if any(word in words.lower() for word in POLITE):
                self.refusals[kind] += 1
            else:
                self.errors.append(f"{kind}: {words[:300]}")

    def check(self, kind: str, right: bool, words: str) -> None:
        """A number that came, beside the library's."""
        with self._lock:
            self.checked[kind] += 1
            if not right:
                self.foreign.append(f"{kind}: {words[:300]}")


class Failed(Exception):
    """The page answered with an error, in these words."""


class Page:
    """The page at an address as one visitor has it, at `source`, an address of this machine."""

    def __init__(self, address: str, patience: float = 600.0, source: str = "127.0.0.1") -> None:
        self.address, self.api, self.session = address, f"{address}/gradio_api", uuid4().hex
        # Without certificates, whose reading would keep the page waiting.
        transport = httpx.HTTPTransport(verify=False, local_address=source)
        self.http = httpx.Client(transport=transport, timeout=patience)

    def now(self, name: str, data: list[Any]) -> list[Any]:
        """What a cheap endpoint answers, past the queue as the slider's calls go."""
        answer = self.http.post(f"{self.api}/run/{name}", json={"data": data, "session_hash": self.session})
        if answer.status_code != 200:
            raise Failed(_words(answer))
        return answer.json()["data"]

    def ask(self, name: str, data: list[Any], seconds: float = math.inf) -> Any:
        """The last thing that a call says. Raises Failed, also where it has no answer after so many seconds."""
        end = time.monotonic() + seconds
        joined = self.http.post(f"{self.api}/call/{name}", json={"data": data})
        if joined.status_code != 200:
            raise Failed(_words(joined))
        last, event = None, ""
        with self.http.stream("GET", f"{self.api}/call/{name}/{joined.json()['event_id']}") as stream:
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    event = line.removeprefix("event: ")
                elif line.startswith("data: "):
                    if event == "error":
                        raise Failed(line.removeprefix("data: "))
                    last = json.loads(line.removeprefix("data: ")) if event != "heartbeat" else last
                    if event == "complete":
                        return last
                if time.monotonic() > end:
                    break
        raise Failed("the stream ended, or the time, before the answer came")


def _words(answer: httpx.Response) -> str:
    try:
        content = answer.json()
    except ValueError:
        content = answer.text
    return f"{answer.status_code} {content.get('detail', content) if isinstance(content, dict) else content}"
