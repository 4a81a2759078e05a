"""`python -m tests.load.room`: a class of sixty predicts in real time, and its server is killed in the middle.

Every student sends a prediction within some seconds, and again until it is acknowledged, with the same id. In the
middle of the second question the server gets SIGKILL and is started again. Ends with 1 where a line does not hold.
"""

import argparse
import os
import random
import secrets
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import psutil

from tests.support.page.browsing import running_app

SPREAD, POLL, STUDENT_POLL = 8.0, 0.4, 1.5  # seconds; the last two as in `assets/rooms/room.js`
LATENCY = 1.0  # seconds, 95th percentile
QUESTIONS = {1: lambda: round(random.uniform(1, 5), 1), 2: lambda: [random.randint(0, 80) for _ in range(6)]}


class Class:
    """The room, the server's address, and what was sent and acknowledged."""

    def __init__(self, address: str) -> None:
        self.address = address
        made = httpx.post(f"{address}/rooms", json={}).json()
        self.code, self.secret = made["code"], made["lead"]
        self.sent: dict[int, list[float]] = {step: [] for step in QUESTIONS}
        self.acknowledged = dict.fromkeys(QUESTIONS, 0)
        self.errors: list[str] = []
        self.over = threading.Event()

    def post(self, action: str, body: dict[str, object], **headers: str) -> httpx.Response:
        return httpx.post(f"{self.address}/rooms/{self.code}/{action}", json=body, headers=headers, timeout=20)

    def lead(self, action: str, **body: object) -> None:
        self.post(action, body, **{"x-room-lead": self.secret}).raise_for_status()


def insist(room: Class, action: str, body: dict[str, object], student: str) -> None:
    """Send until the server has acknowledged it."""
    while True:
        try:
            answer = room.post(action, body, **{"x-room-student": student})
        except httpx.TransportError:
            time.sleep(0.5)
            continue
        if answer.status_code != 200:
            room.errors.append(answer.text)
        return


def student(room: Class) -> None:
    """Join, ask for news as the page does, and predict once for each question, at a moment within `SPREAD`."""
    me, answered, since = secrets.token_hex(16), set(), ""
    insist(room, "join", {}, me)
    with httpx.Client(timeout=20) as http:
        step = 1
        while not room.over.is_set():
            if step not in answered and step in QUESTIONS:
                time.sleep(random.uniform(0, SPREAD))
                body = {"id": secrets.token_hex(8), "step": step, "value": QUESTIONS[step]()}
                room.sent[step].append(time.monotonic())
                insist(room, "answer", body, me)
                room.acknowledged[step] += 1
                if random.random() < 0.3:  # an acknowledgement that was lost on its way
                    insist(room, "answer", body, me)
                answered.add(step)
            try:
                address, headers = f"{room.address}/rooms/{room.code}/state", {"x-room-student": me}
                news = http.get(address, params={"since": since} if since else {}, headers=headers)
                if news.status_code == 200:
                    step, since = news.json()["step"], news.json()["version"]
            except httpx.TransportError:
                pass
            room.over.wait(STUDENT_POLL)


def watch(room: Class, step: int, students: int, kill: float = 0) -> tuple[list[tuple[float, int]], float]:
    """What the presenter sees, until all predictions are there: moments and counts; and the moment of the kill."""
    seen: list[tuple[float, int]] = []
    with httpx.Client(timeout=20) as http:
        begun = time.monotonic()
        while not seen or seen[-1][1] < students:
            if kill and time.monotonic() > begun + kill:
                return seen, time.monotonic()
            address, headers = f"{room.address}/rooms/{room.code}/state", {"x-room-lead": room.secret}
            state = http.get(address, headers=headers).json()
            seen.append((time.monotonic(), state["answers"].get(str(step), {}).get("count", 0)))
            time.sleep(POLL)
            if time.monotonic() > begun + 120:
                break
    return seen, 0.0


def latencies(sent: list[float], seen: list[tuple[float, int]]) -> list[float]:
    """Seconds from each student's press to the first state that counts as many."""
    found = []
    for count, moment in enumerate(sorted(sent), start=1):
        shown = next((at for at, number in seen if number >= count and at >= moment), None)
        if shown is not None:
            found.append(shown - moment)
    return found


def main() -> None:
    """Start the page, let the class predict, kill the server, and say what held."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.room", description=__doc__)
    parser.add_argument("--students", type=int, default=60)
    count = parser.parse_args().students
    with tempfile.TemporaryDirectory() as folder, ExitStack() as servers:
        os.environ["INTRASLICE_ROOMS"] = folder
        log = servers.enter_context((Path(folder) / "log").open("w"))
        room = Class(servers.enter_context(running_app(output=log)))
        threads = [threading.Thread(target=student, args=(room,)) for _ in range(count)]
        for thread in threads:
            thread.start()
        seen, _ = watch(room, 1, count)
        delays = latencies(room.sent[1], seen)
        room.lead("reveal", step=1, truth=1.4)
        room.lead("step", step=2)
        watch(room, 2, count, kill=SPREAD / 2)
        before = room.acknowledged[2]
        (server,) = psutil.Process().children()
        server.kill()
        room.address = servers.enter_context(running_app(output=log))
        seen, _ = watch(room, 2, count)
        room.over.set()
        for thread in threads:
            thread.join()
        state = httpx.get(f"{room.address}/rooms/{room.code}/state", headers={"x-room-lead": room.secret}).json()
    p95 = statistics.quantiles(delays, n=20)[-1]
    counted = {step: state["answers"][str(step)]["count"] for step in QUESTIONS}
    print(f"{count} students, {before} predictions of question 2 acknowledged before kill -9")
    print(f"counted: {counted}; acknowledged: {room.acknowledged}")
    print(
        f"from the press to the presenter's histogram: median {statistics.median(delays):.2f} s, "
        f"95th percentile {p95:.2f} s"
    )
    print(f"refusals: {len(room.errors)} {room.errors[:3]}")
    sys.exit(not (all(number == count for number in counted.values()) and p95 < LATENCY and not room.errors))


if __name__ == "__main__":
    main()
