"""`python -m tests.load --clients 30 --seconds 300`, or `--lecture 60` for a class: prints one table."""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import threading
import time
from itertools import chain, repeat
from pathlib import Path

from components.limits import UNUSED_SECONDS
from intraslice.core.cache import cache_folder
from tests.load.calls import Notes, Page
from tests.load.clients import KINDS, Life, asked, live, truths
from tests.load.host import Memory
from tests.load.lecture.report import hold
from tests.support.page.browsing import running_app


def load(address: str, clients: int, seconds: float, truth: list) -> Notes:
    """Let so many clients do as they do, for so long."""
    notes, stop, threads = Notes(), threading.Event(), []
    kinds = list(chain.from_iterable(repeat(kind, count) for kind, count in KINDS.items()))
    for number in range(clients):
        seed = number % len(truth)
        life = Life(address, stop, notes, seed + 1, truth[seed], random.Random(number))
        kind = kinds[number * len(kinds) // clients % len(kinds)]
        threads.append(threading.Thread(target=live, args=(kind, life), daemon=True))
        threads[-1].start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    if left := sum(thread.is_alive() for thread in threads):
        notes.errors.append(f"{left} clients still wait for an answer")
    return notes


def main() -> None:
    """Compute what is right, start the app on an empty cache, load it, and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.load", description=__doc__)
    parser.add_argument("--clients", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, default=3, help="calibrations that the clients share")
    parser.add_argument("--rest", type=float, default=60.0, help="seconds from the end to the last look at memory")
    parser.add_argument("--lecture", type=int, metavar="STUDENTS", help="a lecture with so many students instead")
    parser.add_argument("--checked", type=int, default=1000, help="settings of a lecture that are computed again")
    arguments = parser.parse_args()
    if arguments.lecture:
        return hold(arguments.lecture, arguments.seconds, arguments.rest, arguments.checked)
    home = cache_folder()
    with tempfile.TemporaryDirectory() as folder:
        for cache in ("library", "page"):
            (Path(folder) / cache).mkdir()
            for kept in ("models", "wheels"):
                (Path(folder) / cache / kept).symlink_to(home / kept)
        os.environ["INTRASLICE_CACHE"] = f"{folder}/library"
        truth = truths(arguments.seeds)
        os.environ["INTRASLICE_CACHE"] = f"{folder}/page"
        os.environ[UNUSED_SECONDS.variable] = str(round(arguments.rest / 2))
        with running_app() as address:
            memory = Memory()
            Page(address).ask("evaluate", list(asked(0, 30)))  # so that the model is there
            before = memory.now()
            threading.Thread(target=memory.watch, daemon=True).start()
            notes = load(address, arguments.clients, arguments.seconds, truth)
            time.sleep(arguments.rest)
            tell(notes, (before, memory.most_of_all, memory.now()))
            memory.end()


def tell(notes: Notes, memory: tuple[int, int, int]) -> None:
    """The table, and the first of what went wrong."""
    times = sorted(notes.slider) or [0.0]
    rows = {
        "calls": sum(notes.calls.values()),
        "errors": len(notes.errors),
        "refusals in words": sum(notes.refusals.values()),
        "numbers checked": sum(notes.checked.values()),
        "foreign numbers": len(notes.foreign),
        "slider, median (ms)": round(1e3 * statistics.median(times)),
        "slider, 95th percentile (ms)": round(1e3 * times[int(0.95 * (len(times) - 1))]),
        "resident before, most, after (MiB)": " / ".join(f"{value:,}" for value in memory),
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    print(dict(notes.calls), dict(notes.checked), sep="\n")
    for problem in [*notes.errors[:20], *notes.foreign[:20]]:
        print(problem)


if __name__ == "__main__":
    main()
