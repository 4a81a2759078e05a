"""`python -m tests.load.devices`: thirty visitors who run the models on their devices, and one who moves the slider.

All download both files at once, then run them at home. Ends with 1 where a line does not hold.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from uuid import uuid4

import httpx
import psutil

from components.limits import HOPS_VARIABLE
from tests.load.attacks import WITNESS, client, evaluate, ratios, settings
from tests.load.host import Memory, hosted

SLIDER_SECONDS, CPU_PERCENT = 0.1, 5.0
QUIET_SECONDS = 20.0


def described(http: httpx.Client, url: str) -> dict[str, dict[str, str]]:
    """The files of the setting, as the page tells them to a browser."""
    answer = evaluate(http, url, [*settings(sparsity=30), "q8_0"], 300.0, "device_files")
    return json.loads(json.loads(answer.partition("data: ")[2])[-1])


def visit(url: str, number: int) -> int:
    """Download the files of the setting; returns the bytes that came."""
    with client(f"127.0.0.{10 + number}") as http:
        files = described(http, url)
        total = 0
        for name in ("dense", "sliced"):
            with http.stream("GET", f"{url}/{files[name]['url']}") as stream:
                stream.raise_for_status()
                total += sum(map(len, stream.iter_raw(2**20)))
        return total


def download(url: str, visitors: int, found: Any) -> None:
    """All of them at once, in a process of their own; puts the bytes that came."""
    with ThreadPoolExecutor(visitors) as pool:
        found.put(sum(pool.map(partial(visit, url), range(visitors))))


def cpu_percent(process: psutil.Process) -> float:
    """Of one core, over some seconds."""
    used = sum(process.cpu_times()[:2])
    time.sleep(QUIET_SECONDS)
    return 100 * (sum(process.cpu_times()[:2]) - used) / QUIET_SECONDS


def main() -> None:
    """Start a hosted page, let everybody download, and tell what held."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.devices", description=__doc__)
    parser.add_argument("--visitors", type=int, default=30)
    visitors = parser.parse_args().visitors
    os.environ[HOPS_VARIABLE] = "0"
    with hosted(6144, 0) as (host, _), client(WITNESS) as http:
        (server,) = psutil.Process().children()
        described(http, host.address)  # so that the files are there: they are written once
        before, memory = Memory().now(), Memory()
        idle, session = cpu_percent(server), uuid4().hex
        spawn = multiprocessing.get_context("spawn")
        found, start = spawn.Queue(), time.monotonic()
        downloads = spawn.Process(target=download, args=(host.address, visitors, found))
        downloads.start()
        moves = []
        while downloads.is_alive() and found.empty():
            begun = time.monotonic()
            ratios(http, host.address, session, len(moves) % 60).raise_for_status()
            moves.append(time.monotonic() - begun)
            most = max(memory.now(), memory.most)
            time.sleep(0.1)
        total, seconds = found.get(timeout=60), time.monotonic() - start
        downloads.join()
        afterwards = cpu_percent(server)
        median, p95 = statistics.median(moves), statistics.quantiles(moves, n=20)[-1]
        print(f"{visitors} visitors took {total / 1e6:,.0f} MB in {seconds:.1f} s")
        print(f"slider beside them: median {median:.3f} s, 95th percentile {p95:.3f} s ({len(moves)} moves)")
        print(f"server, of a core: {idle:.1f} % before, {afterwards:.1f} % afterwards")
        print(f"memory: {before} MiB before, {most} MiB at most with the clients")
        sys.exit(p95 >= SLIDER_SECONDS or afterwards >= CPU_PERCENT)


if __name__ == "__main__":
    main()
