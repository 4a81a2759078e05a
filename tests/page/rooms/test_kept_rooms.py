"""What is kept of a class: nothing is lost when the process is killed, and nothing stays longer than a day."""

import contextlib
import csv
import io
import itertools
import multiprocessing
import sqlite3
import time
from multiprocessing.connection import Connection
from pathlib import Path

from components.limits import ROOM_SECONDS
from components.rooms.questions import questions
from components.rooms.rooms import Rooms
from components.rooms.routes import _cell
from components.rooms.store import FILE

COST, BUDGET, HURTS = 1, 2, 3  # questions: a number, bars, a choice


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


def test_a_class_is_deleted_by_its_presenter_and_after_24_hours(klass, start_class, monkeypatch) -> None:
    student = klass.join()
    klass.answer(student, 2)
    assert klass.lead("delete").json() == {"deleted": True}
    assert klass.state(student).status_code == klass.answer(student, 2).status_code == 410
    klass.rooms.close()
    later = start_class(klass.folder)
    student = later.join()
    later.answer(student, 2, id="first-of-them")
    later.lead("reveal", step=COST, truth=1.4)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + ROOM_SECONDS + 1)
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


def test_a_damaged_database_is_put_aside_and_classes_can_be_started(klass, start_class) -> None:
    klass.rooms.close()
    for path in klass.folder.iterdir():
        path.write_bytes(b"no database" * 1000)
    again = start_class(klass.folder)
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


def test_a_page_without_classes_leaves_the_disk_alone(tmp_path, start_class) -> None:
    rooms = Rooms(tmp_path / "rooms")
    assert start_class.client(None, rooms=rooms).get("/rooms/BCDFGH/state").status_code == 410
    assert not (tmp_path / "rooms").exists()
