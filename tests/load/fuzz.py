"""`python -m tests.load.fuzz`: calls, uploads and models of untrusted clients against a hosted page; one table.

Ends with 1 where a line does not hold. `--seed` draws the same again.
"""

import argparse
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx

from components.device.wllama import VERSION
from components.limits import CACHE_SHARE, LINK
from components.state.settings import Settings
from tests.load.calls import Page
from tests.load.host import DISK_BOUND, Host, Memory, hosted
from tests.load.inputs import MARK, drawn, files, mangled, paths
from tests.support.page.calling import inputs_of

FAULT = "An internal error occurred"  # the page's words for what it did not expect
LEAVES = 4.0  # seconds after which a client leaves, mostly
STAYS = 60.0
SOON = 5.0  # seconds within which a new visitor is served


@dataclass
class Found:
    """What became of everything that was sent, and what was wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, kind: str, outcome: str, *wrong: str) -> None:
        """Of one thing that was sent."""
        with self._lock:
            self.outcomes[f"{kind}, {outcome}"] += 1
            self.wrong += [f"{kind}: {words}" for words in wrong]


class UntrustedClient:
    """Sends things to a host, one after the other, and looks at every answer."""

    def __init__(self, host: Host, found: Found, endpoints: dict[str, Any]) -> None:
        self.host, self.found, self.endpoints = host, found, endpoints
        self.samples = files()

    def call(self, dice: random.Random) -> None:
        """Any endpoint with any values, past the queue or through it, or an address that is none."""
        if dice.random() < 0.08:
            return self.look(dice)
        name = dice.choice(sorted(self.endpoints))
        values = drawn(dice, self.endpoints[name]["parameters"], self.host.server)
        if not values and dice.random() < 0.9:
            link = dice.choice(("?model=", "?pinned=", "?locked=", "?lesson=")) + "x" * dice.choice((9, LINK.value + 9))
            name += link + quote(json.dumps(values))
        self.ask("call", name, values, dice)

    def look(self, dice: random.Random) -> None:
        """An address of the server, as it is or in disguise."""
        place = dice.choice(paths(self.host.server))
        ways = ("gradio_api/file={}", "file/{}", "gradio_api/stream/{}", "static/{}", "assets/{}", "theme.css/../{}")
        ways += ("device/models/{}", f"device/wllama-{VERSION}/{{}}", "gradio_api/proxy={}", "svelte/{}")
        ways += ("?model={}&prompt=" + "x" * 30_000, "gradio_api/file={}%00.csv")
        address = dice.choice(ways).format(dice.choice((place, quote(place, safe=""), place.replace("..", "%2e%2e"))))
        with suppress(httpx.InvalidURL):
            answer = httpx.get(f"{self.host.address}/{address}", timeout=STAYS)
            text = answer.text.replace(place, "")  # its own words tell a client nothing
            self.judge("call", address, answer.status_code, text)

    def values(self, endpoint: str, **own: Any) -> list[Any]:
        """Those of a call: its own, and else the defaults."""
        parameters = self.endpoints[endpoint]["parameters"]
        return [own.get(one["parameter_name"], one.get("parameter_default")) for one in parameters]

    def upload(self, dice: random.Random) -> None:
        """A file, and a call that reads it."""
        name, content = mangled(dice, *dice.choice(sorted(self.samples.items())))
        sent = self.send(name, content)
        if sent is not None:
            endpoint = dice.choice(("/locked_ratios", "/evaluate") * 2 + ("/command_lines", "/prepare"))
            field = "ratios_file" if endpoint == "/locked_ratios" else "upload"
            values = self.values(endpoint, sequences=2, length=32, **{field: sent})
            self.ask("upload", endpoint, values, dice, 15.0, f"{name[:40]}: ")

    def send(self, name: str, content: bytes) -> dict | None:
        """An uploaded file as a call names it, or None where it was refused."""
        answer = httpx.post(f"{self.host.address}/gradio_api/upload", files={"files": (name, content)}, timeout=STAYS)
        if answer.status_code != 200:
            return self.judge("upload", name[:40], answer.status_code, answer.text)
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def model(self, name: str, taken: bool, dice: random.Random) -> None:
        """Load one, and let it answer, which a chat template has a part in."""
        text = self.send("words.txt", b"w10 w11 w12 w13 w14 w15 w16 w17\n\n" * 4000)
        own = {"model": name, "sequences": 2, "length": 16, "tokens": 2, "upload": text, "dtype": "float32"}
        answers = {}
        for endpoint in ("/memory", "/evaluate", "/generate", "/prepare"):
            values = self.values(endpoint, **own)
            answers[endpoint] = self.ask("model", endpoint, values, dice, 300.0, f"{name}: ")
        was_taken = "perplexity" in answers["/evaluate"] and "event: error" not in answers["/evaluate"]
        if was_taken != taken:
            self.found.note("model", "judged wrongly", f"{name}: taken is {was_taken}: {answers['/evaluate'][-300:]}")

    def ask(
        self, kind: str, name: str, values: list[Any], dice: random.Random, patience: float = 0.0, about: str = ""
    ) -> str:
        """All that an endpoint says until it is done, or until the client leaves."""
        page, said = Page(self.host.address, STAYS), ""
        patience = patience or (STAYS if dice.random() < 0.05 else LEAVES)
        until, about = time.monotonic() + patience, f"{about}{name} {str(values)[:200]}"
        body, json_type = json.dumps({"data": values}, default=str), {"content-type": "application/json"}
        with page.http:
            if kind == "call" and dice.random() < 0.15:
                body = json.dumps({"data": values, "session_hash": page.session, "extra": [[[]]] * 9})
                answer = page.http.post(f"{page.api}/run{name}", content=body, headers=json_type)
                return self.judge(kind, about, answer.status_code, answer.text) or ""
            asked = page.http.post(f"{page.api}/call{name}", content=body, headers=json_type)
            if asked.status_code != 200:
                return self.judge(kind, about, asked.status_code, asked.text) or ""
            address = f"{page.api}/call{name.partition('?')[0]}/{asked.json()['event_id']}"
            with suppress(httpx.ReadTimeout), page.http.stream("GET", address, timeout=patience) as stream:
                for piece in stream.iter_text():
                    said += piece
                    if time.monotonic() > until:
                        break
        self.judge(kind, about, 200, said)
        for link in set(re.findall(r'"url": ?"(http[^"]+)"', said)):
            self.judge(kind, f"the file that comes of {about}", 200, httpx.get(link, timeout=STAYS).text)
        return said

    def judge(self, kind: str, about: str, status: int, text: str) -> None:
        """Count an answer, and say what is wrong with it."""
        wrong = [f"{secret!r} in the answer to {about}" for secret in self.host.leaks(text)]
        error = text.partition("event: error")[2]
        in_words = '"error":' in text.replace('"error": null', "")  # gradio's /run has words, and 500 for its status
        if FAULT in text or ((status >= 500 or error) and not in_words):
            wrong.append(f"{status} {(error or text)[:300]!r} to {about}")
        refused = status >= 400 or error
        left = status == 200 and "event: " in text and not error and "event: complete" not in text
        self.found.note(kind, "refused in words" if refused else "left" if left else "answered", *wrong)


def run(host: Host, models: dict[str, bool], arguments: argparse.Namespace) -> Found:
    """Send everything, in an order that the seed draws, from several clients at once."""
    info = httpx.get(f"{host.address}/gradio_api/info", timeout=STAYS)
    found = Found()
    untrusted_client = UntrustedClient(host, found, info.json()["named_endpoints"])
    untrusted_client.judge("call", "the page itself", 200, httpx.get(host.address, timeout=STAYS).text + info.text)
    acts = [untrusted_client.call] * arguments.calls + [untrusted_client.upload] * arguments.uploads
    acts += [partial(untrusted_client.model, name, taken) for name, taken in models.items()]
    random.Random(arguments.seed).shuffle(acts)

    def work(number: int, act: Callable[[random.Random], Any]) -> None:
        try:
            act(random.Random(f"{arguments.seed} {number}"))
        except httpx.ReadTimeout:
            found.note("call", "left")
        except Exception as problem:
            found.note("call", "failed", f"number {number}: {type(problem).__name__}: {problem}")

    with ThreadPoolExecutor(arguments.clients) as pool:
        list(pool.map(work, range(len(acts)), acts))
    return found


def main() -> None:
    """Start a page, let untrusted clients at it, and tell what held."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.fuzz", description=__doc__)
    for name, default in {"calls": 2000, "uploads": 300, "models": 30, "clients": 8, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--budget", type=int, default=6144, help="MiB of memory")
    arguments = parser.parse_args()
    with hosted(arguments.budget, arguments.models) as (host, models):
        memory, began, share = Memory(), time.monotonic(), CACHE_SHARE.value
        memory.now()
        rest = memory.most
        threading.Thread(target=memory.watch, daemon=True).start()
        found = run(host, models, arguments)
        minutes = (time.monotonic() - began) / 60
        start = time.monotonic()
        served = Page(host.address, SOON * 6).now("ratios", inputs_of(Settings(dtype="float32"), 0, ""))
        seconds = time.monotonic() - start
        healthy = httpx.get(f"{host.address}/healthz", timeout=STAYS).json()
        memory.end()
        disk = host.disk
        log = host.log.read_text(errors="replace")
        written = [str(file) for file in host.home.rglob(MARK)]
    caches = round((arguments.budget - rest) * share / 100)
    traced = log.count("Traceback (most recent")
    sent = (
        f"{arguments.calls:,} calls, {arguments.uploads:,} uploads, {len(models)} models; {arguments.clients} at once"
    )
    outcomes = ", ".join(f"{n:,} x {name}" for name, n in sorted(found.outcomes.items()))
    room = f"of {arguments.budget:,}: {rest:,} at rest, {caches:,} for caches, the rest for work"
    most = f"{memory.most:,}; {memory.most_of_all:,} with the processes that read files for it"
    wrong = "answers with something of the server in them, or with an error and no words"
    rows = {
        f"{sent}, {minutes:.0f} minutes": (outcomes, True),
        wrong: (len(found.wrong), not found.wrong),
        f"memory, at most (MiB), {room}": (most, memory.most <= 1.1 * arguments.budget),
        "a new visitor is served after (s)": (f"{seconds:.2f}", seconds < SOON and bool(served)),
        "/healthz": ("ok" if healthy["ok"] else healthy, healthy["ok"]),
        f"disk (MiB), of {DISK_BOUND:,.0f}": (f"{disk:,.0f}", disk < DISK_BOUND),
        "tracebacks in the log": (traced, not traced),
        "files that code of a model wrote": (len(written), not written),
    }
    print("| | | holds |\n|---|---|---|")
    for name, (value, holds) in rows.items():
        print(f"| {name} | {value} | {'yes' if holds else 'NO'} |")
    for words in found.wrong[:40]:
        print(words[:1000])
    if traced:
        print(log[log.index("Traceback (most recent") :][:3000])
    sys.exit(not all(holds for _, holds in rows.values()))


if __name__ == "__main__":
    main()
