"""`python -m tests.load --lecture 60`: a lecture on a hosted page, and one table of what it took."""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from pathlib import Path
from unittest.mock import patch

import numpy
import psutil

from components.limits import HOPS_VARIABLE, MEMORY, UNUSED_SECONDS
from components.state.settings import PROMPT, Settings
from intraslice.pretrained.precision import choose_dtype
from tests.load.calls import Notes, Page
from tests.load.host import Memory, link_cache
from tests.load.lecture.oracle import check
from tests.load.lecture.students import EVERY, NEW_TOKENS, Lecture, Student, lead
from tests.load.room import Class
from tests.support.page.browsing import running_app
from tests.support.page.calling import inputs_of

BUDGET = 8 * 2**30  # bytes of memory that the page may take
LATE = 20.0  # seconds
UNUSED = 60  # seconds that the page keeps what nobody uses: `--rest` has to be longer to see the memory come back
KEPT_FOLDERS = ("models", "wheels", "calibration")  # of the cache: what a server that was prepared has


def hold(students: int, seconds: float, rest: float, max_settings: int) -> None:
    """Start a hosted page that is calibrated, hold the lecture, check what was shown, and tell."""
    with tempfile.TemporaryDirectory() as folder:
        link_cache(Path(folder) / "cache", KEPT_FOLDERS)
        environment = {
            "INTRASLICE_CACHE": f"{folder}/cache",
            "INTRASLICE_ROOMS": f"{folder}/rooms",
            "INTRASLICE_HOSTED": "1",
            "INTRASLICE_WARM": "0",
            HOPS_VARIABLE: "0",
            MEMORY.variable: str(BUDGET),
            UNUSED_SECONDS.variable: str(UNUSED),
        }
        log = Path(folder) / "log"
        with patch.dict(os.environ, environment), log.open("w") as output, running_app(output=output) as address:
            lecture, memory, used = _run(address, students, seconds, rest)
        if "Traceback" in (text := log.read_text()):
            lecture.notes.errors.append(f"the log: {text[text.index('Traceback') :][:2000]}")
    checked = check(lecture, max_settings)
    _tell(lecture, students, memory, used, checked)


def _run(
    address: str, students: int, seconds: float, rest: float
) -> tuple[Lecture, tuple[int, int, int], tuple[float, float]]:
    """Returns the lecture, MiB before, most and after, and the cores that the server and the students used."""
    (server,) = psutil.Process().children()
    default, page = Settings(dtype=choose_dtype()), Page(address)
    page.ask("evaluate", [*default])  # the lecturer has opened the page before, and asked once
    page.ask("answer", inputs_of(default, PROMPT, NEW_TOKENS, 0.0, 0, False, "", ""))
    memory = Memory()
    before = memory.now()
    threading.Thread(target=memory.watch, daemon=True).start()
    lecture = Lecture(address, Class(address), Notes(), seconds)
    people = [threading.Thread(target=Student(lecture, number).live, daemon=True) for number in range(students)]
    people.append(threading.Thread(target=lead, args=(lecture,), daemon=True))
    cpu, own, begin = _cpu(server), time.process_time(), time.monotonic()
    for person in people:
        person.start()
    time.sleep(seconds)
    wall = time.monotonic() - begin
    used = (_cpu(server) - cpu) / wall, (time.process_time() - own) / wall
    lecture.over.set()
    for person in people:
        person.join(timeout=60)
    if left := sum(person.is_alive() for person in people):
        lecture.notes.errors.append(f"{left} students still wait for an answer")
    time.sleep(rest)
    found = before, memory.most_of_all, memory.now()
    memory.end()
    return lecture, found, used


def _cpu(process: psutil.Process) -> float:
    return sum(process.cpu_times()[:2])


def _tell(
    lecture: Lecture, students: int, memory: tuple[int, int, int], used: tuple[float, float], checked: int
) -> None:
    """The table, and the first of what went wrong. A number that never came counts as infinitely late."""
    notes, end = lecture.notes, max([release.released for release in lecture.releases], default=0.0)
    kept = [release.kept - release.released for release in lecture.releases if release.kept is not None]
    live_wanted = [release for release in lecture.releases if release.kept is None]
    waits = [
        math.inf if release.live is None else release.live - release.released
        for release in live_wanted
        if release.live is not None or release.until is not None or release.released < end - EVERY
    ]
    asked = [answer for answer in lecture.answers if answer.first is not None or answer.asked < end - LATE]
    first = [math.inf if answer.first is None else answer.first - answer.asked for answer in asked]
    whole = [answer.whole - answer.asked for answer in lecture.answers if answer.whole is not None]
    wrong = len(notes.foreign)
    rows = {
        "students; seconds": f"{students}; {lecture.seconds:.0f}",
        "calls": f"{sum(notes.calls.values()):,}",
        "errors; refusals": f"{len(notes.errors)}; {sum(notes.refusals.values())}",
        "slider (ms)": _times([1e3 * seconds for seconds in notes.slider], 0),
        "release to a number that is kept (s)": _times(kept, 2),
        "release to a live number (s)": _times(waits, 1),
        "releases that another move ended before a number": sum(map(math.isinf, waits)),
        "first token (s)": _times(first, 1),
        "whole answers (s)": _times(whole, 1),
        "resident before; most; after (MiB)": "; ".join(f"{value:,}" for value in memory),
        "cores used by the server; by the students": f"{used[0]:.2f}; {used[1]:.2f}",
        "numbers and answers checked, settings; wrong": f"{sum(notes.checked.values()):,}, {checked}; {wrong}",
    }
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    print(dict(notes.calls), dict(notes.checked), dict(notes.refusals), sep="\n")
    for problem in [*notes.errors[:20], *notes.foreign[:20]]:
        print(problem)


def _times(values: list[float], digits: int) -> str:
    middle, late = numpy.percentile(values or [math.nan], (50, 95), method="nearest")
    return f"median {middle:.{digits}f}; 95th percentile {late:.{digits}f}; of {len(values)}"
