"""`python -m tests.load.attacks [NAME ...]`: what has hurt a hosted page once, each for some seconds; one table.

Beside every attack another client, at an address of its own, opens the page and moves the slider. When the attack is
over it asks for an evaluation. Ends with 1 where a line does not hold.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

from components.limits import HOPS_VARIABLE
from components.state.settings import Settings
from tests.load.calls import Failed, Page
from tests.load.host import DISK_BOUND, Memory, hosted
from tests.load.inputs import parquet, repeated
from tests.support.page.calling import inputs_of

ATTACKER, WITNESS = "127.0.0.2", "127.0.0.3"
PATIENCE = 120.0  # seconds
PAGE_SECONDS, SLIDER_SECONDS, BEGIN_SECONDS = 3.0, 0.2, 10.0


def settings(*others: str, **changed: Any) -> list[Any]:
    """The values of `/evaluate`, or with `others` of another endpoint, cheap ones but for what is changed."""
    return inputs_of(Settings(**{"sequences": 4, "length": 128, "dtype": "float32"} | changed), *others)


def slide(page: Page, sparsity: float) -> None:
    """A move of the slider."""
    page.now("ratios", inputs_of(Settings(dtype="float32", sparsity=sparsity), 0, ""))


def at_once(url: str, count: int, work: Callable[[Page, int], Any], source: str = ATTACKER) -> None:
    """Let so many threads work, each as a visitor; what fails fails for the attacker alone."""

    def attempt(number: int) -> None:
        page = Page(url, PATIENCE, source.format(10 + number))
        with suppress(httpx.HTTPError, OSError, Failed), page.http:
            work(page, number)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(attempt, range(count)))


def deep_links(url: str, seconds: float) -> None:
    """A slider move and a deep link, which gradio writes to disk, in new sessions."""
    page, end = Page(url, PATIENCE, ATTACKER), time.monotonic() + seconds
    while time.monotonic() < end:
        page.session = uuid4().hex
        with suppress(Failed):
            slide(page, random.uniform(0, 60))
        page.http.get(f"{page.api}/deep_link", params={"session_hash": page.session})


def tiny_uploads(url: str, seconds: float) -> None:
    """A thousand files of three bytes in every request."""
    page, end = Page(url, PATIENCE, ATTACKER), time.monotonic() + seconds
    while time.monotonic() < end:
        files = [("files", (f"{uuid4().hex}.txt", f"{number}".encode())) for number in range(1000)]
        with suppress(httpx.HTTPError):
            page.http.post(f"{page.api}/upload", files=files)


def large_parquet(url: str, _: float) -> None:
    """A small parquet file of 30 rows of 30 million characters, read by twenty sessions."""
    content = parquet(repeated("x" * 30_000_000, 30))

    def read(page: Page, number: int) -> None:
        path = page.http.post(f"{page.api}/upload", files={"files": (f"{number}.parquet", content)}).json()[0]
        upload = {"path": path, "meta": {"_type": "gradio.FileData"}}
        page.ask("evaluate", settings(upload=upload, seed=number), 60.0)

    at_once(url, 20, read)


def many_sessions(url: str, seconds: float) -> None:
    """An evaluation in each of sixty sessions."""
    at_once(url, 60, lambda page, n: page.ask("evaluate", settings(seed=n, sequences=64, length=512), seconds))


def mcp_left(url: str, seconds: float) -> None:
    """Twelve calls by MCP whose clients leave at once."""

    def httpx_client(**options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address=ATTACKER), **options)

    async def call(number: int) -> None:
        with suppress(Exception):  # it leaves in the middle of whatever there is
            async with (
                asyncio.timeout(3.0),
                streamablehttp_client(f"{url}/gradio_api/mcp/", httpx_client_factory=httpx_client) as (read, write, _),
                ClientSession(read, write) as session,
            ):
                await session.initialize()
                names = [tool.name for tool in (await session.list_tools()).tools]
                name = next(name for name in names if name.endswith("evaluate"))
                await session.call_tool(name, {"seed": number, "sequences": 64})

    at_once(url, 12, lambda _, number: asyncio.run(call(number)))
    time.sleep(seconds)


def unread_pages(url: str, seconds: float) -> None:
    """300 requests for the page on sockets that are closed at once, then 1,000 whose answers nobody reads."""
    with open_requests(url, 300):
        pass
    with open_requests(url, 1000):
        time.sleep(seconds)


def exports(url: str, seconds: float) -> None:
    """Twelve sliced models at once."""
    at_once(url, 12, lambda page, n: page.ask("checkpoint", settings(sparsity=10 + n), seconds))


def downloads(url: str, _: float) -> None:
    """Thirty visitors at addresses of their own download the files for their devices at once."""

    def visit(page: Page, _: int) -> None:
        files = json.loads(page.ask("device_files", settings("q8_0", sparsity=30), PATIENCE)[-1])
        for name in ("dense", "sliced"):
            with page.http.stream("GET", f"{url}/{files[name]['url']}") as stream:
                stream.raise_for_status()
                sum(map(len, stream.iter_raw(2**20)))

    at_once(url, 30, visit, "127.0.0.{}")


ATTACKS = {  # each takes the page's address and the seconds that it should last
    attack.__name__: attack
    for attack in (deep_links, tiny_uploads, large_parquet, many_sessions, mcp_left, unread_pages, exports, downloads)
}


@contextmanager
def open_requests(url: str, count: int) -> Iterator[None]:
    """Requests for the page whose answers are not read."""
    where = urlsplit(url)
    sockets = []
    for _ in range(count):
        one = socket.create_connection((where.hostname, where.port), timeout=PATIENCE, source_address=(ATTACKER, 0))
        one.sendall(f"GET / HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        sockets.append(one)
    try:
        yield
    finally:
        for one in sockets:
            one.close()


def evaluation_seconds(url: str, patience: float) -> float:
    """How long the witness waits for an evaluation. Raises Failed."""
    page, start = Page(url, PATIENCE, WITNESS), time.monotonic()
    page.ask("evaluate", settings(sparsity=random.uniform(5, 50)), patience)
    return time.monotonic() - start


def witness(url: str, begun: Any, ended: Any, found: Any) -> None:
    """Another client, in a process of its own: opens the page and moves the slider until the attack has ended.

    Puts the longest times (s) of both and the failures. Then it asks for an answer, and puts the seconds until a model
    begins to write it.
    """
    session, longest, problems, seconds = uuid4().hex, {"page": 0.0, "slider": 0.0}, [], math.inf
    begun.set()
    while not ended.wait(0.5):
        for what in longest:
            page, start = Page(url, PATIENCE, WITNESS), time.monotonic()
            page.session = session
            try:
                with page.http:
                    if what == "slider":
                        slide(page, random.uniform(0, 60))
                    else:
                        page.http.get(url).raise_for_status()
            except (httpx.HTTPError, Failed) as problem:
                problems.append(f"{what}: {type(problem).__name__}")
            longest[what] = max(longest[what], time.monotonic() - start)
    try:
        seconds = evaluation_seconds(url, PATIENCE)
    except (httpx.HTTPError, Failed) as problem:
        problems.append(str(problem)[:300])
    found.put((longest["page"], longest["slider"], seconds, problems))


def main() -> None:
    """Start a hosted page, attack it, and tell what held."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.attacks", description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ATTACKS, []], default=[])
    parser.add_argument("--seconds", type=float, default=15.0, help="of each attack")
    parser.add_argument("--budget", type=int, default=6144, help="MiB of memory")
    arguments = parser.parse_args()
    os.environ[HOPS_VARIABLE] = "0"
    holds = True
    spawn = multiprocessing.get_context("spawn")
    with hosted(arguments.budget, 0) as (host, _):
        alone = min(evaluation_seconds(host.address, 5 * PATIENCE) for _ in range(3))  # now the model is there, too
        print(f"An evaluation takes {alone:.1f} s on the idle page.")
        print("| attack | page (s) | slider (s) | evaluation after it (s) | disk (MiB) | memory (MiB) | holds |")
        print("|---|---|---|---|---|---|---|")
        for name in arguments.names or ATTACKS:
            log_before, found = host.log.stat().st_size, spawn.Queue()
            begun, ended = spawn.Event(), spawn.Event()
            watching = spawn.Process(target=witness, args=(host.address, begun, ended, found))
            watching.start()
            memory = Memory({watching.pid})
            threading.Thread(target=memory.watch, daemon=True).start()
            begun.wait(PATIENCE)
            ATTACKS[name](host.address, arguments.seconds)
            ended.set()
            page, slider, seconds, problems = found.get(timeout=2 * PATIENCE)
            watching.join()
            memory.end()
            right = {
                "page": page < PAGE_SECONDS,
                "slider": slider < SLIDER_SECONDS,
                "evaluation": seconds < alone + BEGIN_SECONDS,
                "disk": (used := host.disk) < DISK_BOUND,
                "memory": memory.most_of_all < arguments.budget,
                "log": b"Traceback (most recent" not in host.log.read_bytes()[log_before:],
                "answers": not problems,
            }
            wrong = ", ".join(what for what, is_right in right.items() if not is_right)
            holds = holds and not wrong
            numbers = f"{page:.2f} | {slider:.3f} | {seconds:.1f} | {used:,.0f} | {memory.most_of_all:,}"
            print(f"| {name} | {numbers} | {f'NO: {wrong}' if wrong else 'yes'} |", flush=True)
            if wrong:
                print(problems[:5], flush=True)
    sys.exit(not holds)


if __name__ == "__main__":
    main()
