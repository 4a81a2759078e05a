"""Classes: every answer counts once, no client reads or leads what is another's, and what is kept survives a kill."""

import contextlib
import csv
import io
import itertools
import json
import math
import multiprocessing
import secrets
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.testclient import TestClient

from components import limits
from components.rooms import rooms
from components.rooms.questions import questions
from components.rooms.rooms import ALPHABET, LENGTH, MAX_REVISIONS, Refused, Rooms
from components.rooms.routes import _cell, routes
from components.rooms.store import FILE
from components.server.middleware import in_language

COST, BUDGET, HURTS = 1, 2, 3  # questions: a number, bars, a choice
CAMPUS, ELSEWHERE = "192.0.2.1", "198.51.100.1"


class Class:
    """A class as its clients see it."""

    def __init__(self, folder: Path, address: str = CAMPUS) -> None:
        self.folder, self.rooms = folder, Rooms(folder)
        self.http = self.client(address)
        started = self.http.post("/rooms", json={}).json()
        self.code, self.secret = started["code"], started["lead"]

    def client(self, address: str = CAMPUS, rooms: Rooms | None = None) -> TestClient:
        """A client with a network address, of this class's server or of another one."""
        app = Starlette(routes=list(routes(rooms or self.rooms)), middleware=[Middleware(in_language)])
        return TestClient(app, client=(address, 50_000))

    def lead(self, action: str, secret: str | None = None, **body: object) -> httpx.Response:
        headers = {"x-room-lead": self.secret if secret is None else secret}
        if action in ("state", "answers.csv"):
            return self.http.get(f"/rooms/{self.code}/{action}", headers=headers, params=body)
        return self.http.post(f"/rooms/{self.code}/{action}", headers=headers, json=body)

    def ask_to_join(self, student: str, client: TestClient | None = None, code: str = "") -> httpx.Response:
        path = f"/rooms/{code or self.code}/join"
        return (client or self.http).post(path, headers={"x-room-student": student}, json={})

    def join(self, student: str | None = None, client: TestClient | None = None) -> str:
        answer = self.ask_to_join(student := student or secrets.token_hex(16), client)
        assert answer.status_code == 200, answer.text
        return student

    def answer(self, student: str, value: object, step: int = 1, id: str = "", **params: str) -> httpx.Response:
        body = {"id": id or secrets.token_hex(8), "step": step, "value": value}
        path, headers = f"/rooms/{self.code}/answer", {"x-room-student": student}
        return self.http.post(path, headers=headers, json=body, params=params)

    def state(self, student: str, **params: str) -> httpx.Response:
        return self.http.get(f"/rooms/{self.code}/state", headers={"x-room-student": student}, params=params)

    def counts(self, step: int = 1) -> list[int]:
        return self.lead("state").json()["answers"][str(step)]["counts"]


@pytest.fixture
def klass(tmp_path):
    made = Class(tmp_path / "rooms")
    yield made
    made.rooms.close()


def test_the_class_is_pooled_revealed_and_goes_on(klass) -> None:
    students = [klass.join() for _ in range(4)]
    for student, value in zip(students, (1.0, 1.5, 1.5, 5), strict=True):
        assert klass.answer(student, value).status_code == 200
    shown = klass.lead("state").json()
    assert (shown["students"], shown["step"], shown["answers"]["1"]["count"]) == (4, 1, 4)
    pooled = shown["answers"]["1"]
    edges, counts = numpy.histogram([1.0, 1.5, 1.5, 5], 20, (1, 5))[::-1]
    assert (pooled["edges"], pooled["counts"]) == (pytest.approx(edges.tolist()), counts.tolist())
    assert pooled["quartiles"] == [1.375, 1.5, 2.375]
    assert klass.state(students[0]).json()["revealed"] == {}
    klass.lead("reveal", step=COST, truth=1.41)
    seen = klass.state(students[3]).json()
    assert seen["mine"] == {"1": 5}
    assert seen["revealed"]["1"] == {"truth": 1.41, "class": pooled}
    klass.lead("step", step=BUDGET)
    for student, bars in zip(students, ([0, 10], [20, 30], [40, 50], [1, 2, 3]), strict=True):
        assert klass.answer(student, bars, BUDGET).status_code == 200
    assert klass.lead("state").json()["answers"]["2"] == {"count": 4, "bars": [[10, 20, 30], [20, 30, 40]]}
    klass.lead("step", step=HURTS)
    assert klass.answer(students[0], 3, HURTS).status_code == 200
    assert klass.counts(HURTS) == [0, 0, 0, 1]


def test_a_state_is_sent_again_only_where_it_shows_something_else(klass) -> None:
    student = klass.join()

    def changes(act) -> tuple[bool, bool]:
        """Whether the presenter's and the student's state differ once this was done."""
        states = (lambda **since: klass.lead("state", **since)), (lambda **since: klass.state(student, **since))
        versions = [state().json()["version"] for state in states]
        act()
        answers = [state(since=version) for state, version in zip(states, versions, strict=True)]
        return tuple(answer.status_code == 200 for answer in answers)

    assert changes(lambda: None) == changes(lambda: klass.join(student)) == (False, False)
    assert changes(klass.join) == changes(lambda: klass.answer(student, 2)) == (True, False)
    assert changes(lambda: klass.answer(student, 3)) == changes(lambda: klass.lead("remove")) == (True, False)
    assert changes(lambda: klass.lead("reveal", step=COST, truth=None)) == (True, True)
    assert changes(lambda: klass.lead("reveal", step=COST, truth=1.4)) == (True, True)
    assert changes(lambda: klass.lead("reveal", step=COST, truth=None)) == (False, False)
    assert changes(lambda: klass.lead("step", step=HURTS)) == (True, True)


def test_a_repeat_counts_once_and_a_later_prediction_replaces_the_earlier(klass) -> None:
    student = klass.join()
    for _ in range(3):
        assert klass.answer(student, 2, id="first-of-them").json() == {"counted": "first-of-them"}
    klass.answer(student, 3, id="second-of-them")
    assert klass.answer(student, 2, id="first-of-them").status_code == 200  # sent again when it was replaced already
    assert klass.state(student).json()["mine"] == {"1": 3}
    assert sum(klass.counts()) == 1
    klass.lead("reveal", step=COST, truth=None)
    assert klass.answer(student, 3, id="second-of-them").status_code == 200  # it was counted before the reveal
    klass.lead("step", step=HURTS)
    assert klass.answer(student, 1, HURTS, id="first-of-them").status_code == 409


def test_late_answers_and_answers_to_another_question_are_refused_with_a_sentence(klass) -> None:
    student = klass.join()
    assert klass.answer(student, 1, HURTS).json() == {"error": "The class is on question 1."}
    klass.lead("reveal", step=COST, truth=1.4)
    refused = klass.answer(student, 2)
    late = (409, "Too late: the answer to question 1 has been revealed.")
    assert (refused.status_code, refused.json()["error"]) == late
    assert klass.answer(student, 2, lang="de").json()["error"].startswith("Zu spät")


FORGED = {
    COST: (None, True, "2", 0.99, 5.01, [1], {}, float("1e999"), 10**400, -1, [[[]]]),
    BUDGET: (3, [], [81], [-1], [1] * 7, ["1"], [None], [True], [[1]]),
    HURTS: (-1, 4, 1.5, True, "0", None),
}
RIGHT = {"step": COST, "value": 1, "id": "12345678"}
WRONG = [{"value": math.nan}, *({"step": step} for step in (99, True, 1.0)), {"id": "short"}, {"id": ["12345678"]}]
MALFORMED = ["", "[1]", "[" * 3000, *(json.dumps(RIGHT | wrong) for wrong in WRONG)]
OVERSIZED = json.dumps(RIGHT | {"more": "x" * 5000})


def test_forged_malformed_and_oversized_answers_are_refused_with_a_sentence(klass) -> None:
    student = {"x-room-student": klass.join()}
    headers, path = {**student, "content-type": "application/json"}, f"/rooms/{klass.code}/answer"
    for step, values in FORGED.items():
        klass.lead("step", step=step)
        for value in values:
            content = json.dumps({"id": "12345678", "step": step, "value": value})
            refused = klass.http.post(path, headers=headers, content=content)
            assert (refused.status_code, "must be" in refused.json()["error"]) == (400, True), value
    for content in (*MALFORMED, OVERSIZED):
        refused = klass.http.post(path, headers=headers, content=content)
        status = 413 if content is OVERSIZED else 400
        assert (refused.status_code, refused.json()["error"][-1]) == (status, "."), content[:80]
    assert klass.http.post(path, headers=student, content="{}").status_code == 415  # a form of another site can send it
    for truth in ("1", [1], True, 1e7):
        assert klass.lead("reveal", step=COST, truth=truth).status_code == 400
    assert klass.lead("state").json()["answers"] == klass.lead("state").json()["revealed"] == {}


def test_no_student_reads_the_answer_of_another_one(klass) -> None:
    first, second = klass.join(), klass.join()
    klass.answer(first, 4.5)
    for headers in ({}, {"x-room-student": ""}, {"x-room-student": "0" * 32}, {"x-room-lead": "x"}):
        answer = klass.http.get(f"/rooms/{klass.code}/state", headers=headers)
        assert answer.status_code in (403, 410)
    assert klass.state(second).json()["mine"] == klass.state(second).json()["revealed"] == {}
    assert first not in klass.lead("state").text + klass.lead("answers.csv").text
    stored = b"".join(path.read_bytes() for path in klass.folder.iterdir())
    assert first.encode() not in stored
    assert klass.secret.encode() not in stored


def test_only_the_secret_leads_and_others_do_not_learn_whether_there_is_a_class(klass) -> None:
    student = klass.join()
    for secret in ("", "x", student, klass.secret[:-1], klass.secret + "x", klass.code):
        answers = [klass.lead(action, secret, step=2, truth=1) for action in ("step", "reveal", "remove", "delete")]
        answers += [klass.lead("qr", secret), klass.lead("answers.csv", secret)]
        assert {answer.status_code for answer in answers} == {403}
    elsewhere = klass.http.post("/rooms/BCDFGH/delete", headers={"x-room-lead": "x"}, json={})
    assert elsewhere.json() == klass.lead("delete", "x").json()
    outside = {"x-room-student": "0" * 32}
    answers = [klass.http.get(f"/rooms/{code}/state", headers=outside) for code in (klass.code, "BCDFGH")]
    assert answers[0].json() == answers[1].json()
    since = klass.state(student).json()["version"]
    assert klass.state("0" * 32, since=since).status_code == 410
    assert klass.lead("state").json()["step"] == 1


def test_ten_thousand_guesses_get_nowhere_and_lock_no_class_out(klass) -> None:
    student, statuses = secrets.token_hex(16), []
    for index in range(10_000):  # the last guess is right
        code = klass.code if index == 9_999 else "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
        with pytest.raises(Refused) as refused:
            klass.rooms.join(code, student, ELSEWHERE)
        statuses.append(refused.value.status)
    assert statuses == [404] * limits.WRONG_CODES.value + [429] * (10_000 - limits.WRONG_CODES.value)
    answer = klass.ask_to_join(student, klass.client(ELSEWHERE))
    assert int(answer.headers["retry-after"]) > 500
    assert answer.json()["error"] == "Too many wrong codes. Try again in 10 min."
    # Sixty behind the address of the class's presenter, and clients of unknown addresses, with many wrong codes.
    proxied = klass.client("a proxy's socket")
    member = klass.join(client=proxied)
    for client in (klass.http, proxied):
        for _ in range(limits.WRONG_CODES.value + 5):
            klass.ask_to_join(student, client, "BBBBBB")
    assert {klass.answer(klass.join(), 2).status_code for _ in range(60)} == {200}
    assert klass.ask_to_join(student, proxied).status_code == 429
    klass.join(member, proxied)


@pytest.mark.parametrize("addresses", [[CAMPUS], [f"2001:db8:7:{network:x}::1" for network in range(200)]])
def test_a_hall_joins_at_once_and_invented_students_at_a_pace_and_can_be_removed(addresses, klass, monkeypatch) -> None:
    clock = SimpleNamespace(monotonic=lambda: 1000.0, time=time.time)
    monkeypatch.setattr(rooms, "time", clock)
    hall, *_ = clients = [klass.client(address) for address in addresses]
    students = [klass.join(client=hall) for _ in range(60)]

    def join(number: int) -> httpx.Response:
        return klass.ask_to_join(f"{number:032x}", clients[number % len(clients)])

    invented = [join(number) for number in range(140)]
    assert sum(answer.status_code == 200 for answer in invented) == limits.JOINS.value - len(students)
    assert invented[-1].headers["retry-after"] == f"{limits.JOIN_SECONDS:.0f}"
    assert invented[-1].json()["error"].startswith("Many students from your network are joining this class.")
    klass.join(students[0], hall)  # a reload
    klass.join(client=klass.client(ELSEWHERE))
    clock.monotonic = lambda: 1000.0 + limits.JOIN_SECONDS
    assert [join(200 + number).status_code for number in range(2)] == [200, 429]
    klass.answer(students[2], 2)
    klass.lead("step", step=HURTS)
    klass.answer(students[1], 3, HURTS)
    assert klass.lead("state").json()["students"] == 82
    assert klass.lead("remove").json()["students"] == klass.lead("state").json()["students"] == 2
    assert klass.answer(students[0], 3, HURTS).status_code == klass.state(students[0]).status_code == 410
    assert klass.state(students[2]).json()["mine"] == {"1": 2}
    klass.join(students[0], klass.client(ELSEWHERE))  # again
    klass.answer(students[0], 3, HURTS)
    table = klass.lead("answers.csv").text
    assert [row[:3] for row in table.splitlines()[1:]] == ["2,1", "1,3", "3,3"]
    klass.rooms.close()  # and so it is after a restart
    again = Class(klass.folder)
    again.code, again.secret = klass.code, klass.secret
    assert again.lead("answers.csv").text == table
    again.rooms.close()


def test_clients_of_a_class_that_ends_meanwhile_are_told_so(klass, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_JOINS", "1000")

    def take_part(number: int) -> list[int]:
        student = f"{number:032x}"
        answers = [klass.ask_to_join(student), klass.answer(student, 2)]
        if number % 10 == 0:
            answers.append(klass.lead("delete" if number == 50 else "remove"))
        return [answer.status_code for answer in answers]

    with ThreadPoolExecutor(8) as pool:
        statuses = {status for several in pool.map(take_part, range(60)) for status in several}
    assert {200} <= statuses <= {200, 403, 404, 410}
    assert take_part(1) == [404, 410]
    with sqlite3.connect(klass.folder / FILE) as database:
        assert database.execute("SELECT COUNT(*) FROM students").fetchone() == (0,)


def test_codes_are_read_as_people_type_them_and_other_sites_pages_are_refused(klass) -> None:
    typed = f" {klass.code[:3].lower()}-{klass.code[3:].lower()} "
    assert klass.ask_to_join("a" * 32, code=typed).json()["code"] == klass.code
    assert set(klass.code) <= set(ALPHABET)
    assert klass.ask_to_join("me", code=typed).status_code == 400
    own = ({"origin": "http://testserver"}, {"origin": "https://page.example", "x-forwarded-host": "page.example"})
    others = ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"})
    for status, several in ((200, own), (403, others)):
        assert {klass.http.post("/rooms", headers=headers, json={}).status_code for headers in several} == {status}


def test_limits_hold_and_refuse_with_a_sentence(klass, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_STUDENTS", "2")
    student, other = klass.join(), klass.join()
    full = klass.ask_to_join("f" * 32)
    assert (full.status_code, full.json()["error"]) == (409, "This class is full: it has 2 students.")
    klass.join(student)  # who has joined already is let in
    changes = [klass.answer(student, 2).status_code for _ in range(MAX_REVISIONS + 1)]
    assert changes == [200] * MAX_REVISIONS + [429]
    monkeypatch.setenv("INTRASLICE_MAX_ROOM_ANSWERS", str(MAX_REVISIONS + 1))
    assert [klass.answer(other, 1 + index).status_code for index in range(2)] == [200, 429]
    assert klass.state(other).json()["mine"] == {"1": 1}


def test_an_address_has_ten_classes_and_the_oldest_without_students_gives_way(klass, monkeypatch) -> None:
    def start(*addresses: str) -> list[int]:
        return [klass.client(address).post("/rooms", json={}).status_code for address in addresses]

    def codes() -> set[str]:
        with sqlite3.connect(klass.folder / FILE) as database:
            return {code for (code,) in database.execute("SELECT code FROM rooms")}

    networks = [f"2001:db8:7:{network:x}::1" for network in range(12)]
    assert start(*networks) == [200] * 10 + [429] * 2  # one site
    monkeypatch.setenv("INTRASLICE_MAX_ROOMS", "14")
    assert start(*[CAMPUS] * 3) == [200, 429, 429]  # a fifth of the places is kept for other addresses
    assert start(ELSEWHERE, "198.51.100.2", "198.51.100.3") == [200, 200, 429]
    klass.join()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + limits.EMPTY_ROOM_SECONDS + 1)
    klass.rooms.close()  # the next server knows no addresses of these classes
    klass.rooms = Rooms(klass.folder)
    kept = codes()
    assert start(*["198.51.100.3"] * 12) == [200] * 10 + [429] * 2
    assert klass.code in codes()
    assert (len(codes()), len(kept - codes())) == (14, 10)
    monkeypatch.setattr(time, "time", lambda: now + 2 * limits.EMPTY_ROOM_SECONDS + 2)
    assert start("198.51.100.3") == [200]  # instead of its own oldest
    assert len(kept - codes()) == 10


def test_the_table_is_csv_that_no_spreadsheet_computes(klass) -> None:
    students = [klass.join() for _ in range(2)]
    klass.answer(students[1], 1.5)
    klass.lead("reveal", step=COST, truth=1.41)
    klass.lead("step", step=HURTS)
    klass.answer(students[0], 2, HURTS)
    text = klass.lead("answers.csv").text
    rows = list(csv.reader(io.StringIO(text.removeprefix("\ufeff"))))
    assert rows[1:] == [
        ["2", "1", "What does a cut cost?", "1.5", "1.41"],
        ["1", "3", "Which layer hurts most?", "Third quarter", ""],
    ]
    assert "Drittes Viertel" in klass.lead("answers.csv", lang="de").text
    assert [_cell(cell) for cell in ("=1+1", "@x", "-2", "+2", "a", -2)] == ["'=1+1", "'@x", "'-2", "'+2", "a", -2]


def test_a_class_is_deleted_by_its_presenter_and_after_24_hours(klass, monkeypatch) -> None:
    student = klass.join()
    klass.answer(student, 2)
    assert klass.lead("delete").json() == {"deleted": True}
    assert klass.state(student).status_code == klass.answer(student, 2).status_code == 410
    klass.rooms.close()
    later = Class(klass.folder)
    student = later.join()
    later.answer(student, 2, id="first-of-them")
    later.lead("reveal", step=COST, truth=1.4)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + limits.ROOM_SECONDS + 1)
    assert later.state(student).status_code == 410
    later.rooms.close()
    Rooms(klass.folder).close()  # the next server, to which no client has come
    assert b"first-of-them" not in b"".join(path.read_bytes() for path in klass.folder.iterdir())
    with sqlite3.connect(klass.folder / FILE) as database:
        for table in ("rooms", "students", "answers", "reveals"):
            assert database.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)


def test_the_qr_code_is_of_a_link_and_an_inline_image(klass) -> None:
    image = klass.lead("qr", link=f"https://page.example/?room={klass.code}").json()["svg"]
    assert image.startswith("<svg")
    assert "script" not in image
    for link in ("javascript:alert(1)", 5, "https://" + "x" * 1000):
        assert klass.lead("qr", link=link).status_code == 400


def test_every_question_of_the_lesson_has_bins_and_takes_what_its_control_gives() -> None:
    for question in questions().values():
        if question.kind in ("range", "number"):
            edges = question.edges()
            assert len(edges) <= 21
            assert (edges[0], edges[-1]) == (question.low, question.high)
            assert question.distribution([question.low, question.high])["counts"][-1] == 1
        else:
            value = [0] * question.choices if question.kind == "bars" else question.choices - 1
            assert question.is_answer(value)
    assert {question.kind for question in questions().values()} == {"range", "number", "choice", "answers", "bars"}


def answer_for_ever(folder: Path, acknowledge: Connection) -> None:
    """Start a class, send its code and secret, then a number for each answer that is saved."""
    rooms = Rooms(folder)
    room, secret = rooms.create("")
    acknowledge.send((room.code, secret))
    for number in itertools.count():
        student = f"{number:032x}"
        rooms.join(room.code, student, "")
        rooms.answer(room.code, student, {"id": f"answer-{number}", "step": 1, "value": 2})
        acknowledge.send(number)


def test_after_kill_9_every_acknowledged_answer_counts_once(tmp_path, monkeypatch) -> None:
    for name in ("STUDENTS", "JOINS"):
        monkeypatch.setenv(f"INTRASLICE_MAX_{name}", "100000")
    context = multiprocessing.get_context("fork")
    acknowledged, acknowledge = context.Pipe(duplex=False)
    writer = context.Process(target=answer_for_ever, args=(tmp_path, acknowledge), daemon=True)
    writer.start()
    acknowledge.close()
    code, secret = acknowledged.recv()
    count = 1 + max(acknowledged.recv() for _ in range(25))
    writer.kill()
    writer.join()
    with contextlib.suppress(EOFError, OSError):
        while True:
            count = 1 + acknowledged.recv()
    rooms = Rooms(tmp_path)
    assert count <= sum(rooms.seen_by_lead(code, secret)["answers"][1]["counts"]) <= count + 1
    rooms.answer(code, f"{3:032x}", {"id": "answer-3", "step": 1, "value": 2})  # sent again
    assert sum(rooms.seen_by_lead(code, secret)["answers"][1]["counts"]) <= count + 1
    rooms.close()


def test_a_restart_keeps_step_reveals_answers_and_what_older_versions_stored(klass) -> None:
    student = klass.join()
    klass.answer(student, 2)
    klass.lead("reveal", step=COST, truth=1.4)
    klass.lead("step", step=BUDGET)
    before, lead = klass.state(student).json(), klass.lead("state").json()
    klass.rooms.close()
    replaced = "(number, code, student, step, id, value) SELECT 0, code, student, step, 'replaced', NULL FROM answers"
    with sqlite3.connect(klass.folder / FILE) as database:  # they set replaced answers to NULL
        database.execute(f"INSERT INTO answers {replaced}")
    klass.rooms = Rooms(klass.folder)
    klass.http = klass.client()
    assert klass.state(student).json() == before
    assert klass.lead("state").json() | {"version": lead["version"]} == lead


def test_a_damaged_database_is_put_aside_and_classes_can_be_started(klass) -> None:
    klass.rooms.close()
    for path in klass.folder.iterdir():
        path.write_bytes(b"no database" * 1000)
    again = Class(klass.folder)
    assert again.lead("state").status_code == 200
    assert (klass.folder / f"{FILE}.damaged").is_file()
    again.rooms.close()


def test_a_locked_or_full_disk_is_a_sentence_and_the_class_goes_on(klass, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_JOINS", "200")
    student, execute = klass.join(), klass.rooms._store.execute
    execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(klass.folder / FILE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    refused = klass.answer(student, 2, id="kept-by-client")
    assert refused.status_code == 503
    assert refused.json()["error"].startswith("Classes cannot be saved at the moment")
    assert klass.lead("state").json()["answers"] == {}  # what is not committed is not shown
    other.execute("ROLLBACK")
    other.close()
    execute("PRAGMA max_page_count = 1")
    *_, last = (klass.ask_to_join(f"{number:032x}") for number in range(100))
    assert last.status_code == 503
    execute("PRAGMA max_page_count = 1000000")
    assert klass.answer(student, 2, id="kept-by-client").status_code == 200
    assert sum(klass.counts()) == 1


def test_of_two_servers_in_one_folder_the_second_has_no_classes_and_says_so(klass, caplog) -> None:
    second = Rooms(klass.folder)  # a page that starts
    assert "another folder in INTRASLICE_ROOMS" in caplog.text
    http = klass.client(rooms=second)
    for refused in (http.post("/rooms", json={}), klass.ask_to_join("a" * 32, http)):
        assert refused.status_code == 503
        assert refused.json()["error"].startswith("This server has no classes, since another one uses the same folder")
    klass.answer(klass.join(), 2)
    klass.rooms.close()
    assert klass.ask_to_join("a" * 32, http).status_code == 200  # the first has ended
    state = http.get(f"/rooms/{klass.code}/state", headers={"x-room-lead": klass.secret}).json()
    assert (state["students"], state["answers"]["1"]["count"]) == (2, 1)
    assert klass.lead("step", step=2).status_code == 503
    second.close()


def test_a_page_without_classes_leaves_the_disk_alone(tmp_path) -> None:
    rooms = Rooms(tmp_path / "rooms")
    assert Class.client(None, rooms=rooms).get("/rooms/BCDFGH/state").status_code == 410
    assert not (tmp_path / "rooms").exists()
