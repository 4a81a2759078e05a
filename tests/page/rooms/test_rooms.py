"""Rooms: every answer counts once, and nobody reads or leads what is not theirs."""

from __future__ import annotations

import json
import secrets
import sqlite3

import pytest

from components.jobs import limits
from components.rooms.rooms import ALPHABET, LENGTH
from components.rooms.store import FILE

COST, BUDGET, HURTS = 1, 2, 3  # questions: a number, bars, a choice
ELSEWHERE = "198.51.100.1"


def test_the_class_is_pooled_revealed_and_goes_on(klass) -> None:
    students = [klass.join() for _ in range(4)]
    for student, value in zip(students, (1.0, 1.5, 1.5, 5), strict=True):
        assert klass.answer(student, value).status_code == 200
    shown = klass.lead("state").json()
    assert (shown["students"], shown["step"], shown["answers"]["1"]["count"]) == (4, 1, 4)
    edges, counts = (shown["answers"]["1"][name] for name in ("edges", "counts"))
    assert (edges[0], edges[-1], len(edges)) == (1, 5, 21)
    expected = [sum(edges[i] <= v < edges[i + 1] + (i == 19) for v in (1.0, 1.5, 1.5, 5)) for i in range(20)]
    assert counts == expected
    assert shown["answers"]["1"]["quartiles"] == [1.375, 1.5, 2.375]
    assert klass.state(students[0]).json()["revealed"] == {}
    klass.lead("reveal", step=COST, truth=1.41)
    seen = klass.state(students[3]).json()
    assert seen["mine"] == {"1": 5}
    assert seen["revealed"]["1"] == {"truth": 1.41, "class": shown["answers"]["1"]}
    klass.lead("step", step=BUDGET)
    for student, bars in zip(students, ([0, 10], [20, 30], [40, 50], [1, 2, 3]), strict=True):
        assert klass.answer(student, bars, BUDGET).status_code == 200
    assert klass.lead("state").json()["answers"]["2"] == {"count": 4, "bars": [[10, 20, 30], [20, 30, 40]]}
    klass.lead("step", step=HURTS)
    assert klass.answer(students[0], 3, HURTS).status_code == 200
    assert klass.counts(HURTS) == [0, 0, 0, 1]


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
    with sqlite3.connect(klass.folder / FILE) as database:
        assert database.execute("SELECT value FROM answers ORDER BY number").fetchall() == [(None,), ("3",)]


def test_late_answers_and_answers_to_another_question_are_refused_with_a_sentence(klass) -> None:
    student = klass.join()
    assert klass.answer(student, 1, HURTS).json() == {"error": "The class is on question 1."}
    klass.lead("reveal", step=COST, truth=1.4)
    refused = klass.answer(student, 2)
    assert (refused.status_code, refused.json()["error"]) == (
        409,
        "Too late: the answer to question 1 has been revealed.",
    )
    german = klass.http.post(
        f"/rooms/{klass.code}/answer?lang=de",
        headers={"x-room-student": student},
        json={"id": "12345678", "step": 1, "value": 2},
    )
    assert german.json()["error"].startswith("Zu spät")


FORGED = [(COST, value) for value in (None, True, "2", 0.99, 5.01, [1], {}, float("1e999"), 10**400, -1, [[[]]])] + [
    (HURTS, value) for value in (-1, 4, 1.5, True, "0", None)
]
FORGED += [(BUDGET, value) for value in (3, [], [81], [-1], [1] * 7, ["1"], [None], [True], [[1]])]


@pytest.mark.parametrize(("step", "value"), FORGED)
def test_forged_answers_are_refused(klass, step, value) -> None:
    student = klass.join()
    klass.lead("step", step=step)
    content = json.dumps({"id": "12345678", "step": step, "value": value})
    headers = {"x-room-student": student, "content-type": "application/json"}
    refused = klass.http.post(f"/rooms/{klass.code}/answer", headers=headers, content=content)
    assert refused.status_code == 400
    assert "must be" in refused.json()["error"]
    assert klass.lead("state").json()["answers"] == {}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"[1]", 400),
        (b"[" * 3000, 400),
        (b'{"value": NaN, "step": 1, "id": "12345678"}', 400),
        (b'{"step": 99, "value": 1, "id": "12345678"}', 400),
        (b'{"step": true, "value": 1, "id": "12345678"}', 400),
        (b'{"step": 1, "value": 1, "id": "short"}', 400),
        (b'{"step": 1, "value": 1, "id": ["12345678"]}', 400),
        (b'{"step": 1, "value": 1, "id": "12345678", "more": "' + b"x" * 5000 + b'"}', 413),
    ],
)
def test_malformed_and_oversized_requests_are_refused_with_a_sentence(klass, content, status) -> None:
    headers = {"x-room-student": klass.join(), "content-type": "application/json"}
    refused = klass.http.post(f"/rooms/{klass.code}/answer", headers=headers, content=content)
    assert refused.status_code == status
    assert refused.json()["error"].endswith(".")
    plain = klass.http.post(f"/rooms/{klass.code}/answer", headers={"x-room-student": "x"}, content="{}")
    assert plain.status_code == 415  # what a form of another site can send


def test_nobody_reads_the_answer_of_another_student(klass) -> None:
    first, second = klass.join(), klass.join()
    klass.answer(first, 4.5)
    for headers in ({}, {"x-room-student": ""}, {"x-room-student": "0" * 32}, {"x-room-lead": "x"}):
        answer = klass.http.get(f"/rooms/{klass.code}/state", headers=headers)
        assert answer.status_code in (403, 410)
    assert klass.state(second).json()["mine"] == klass.state(second).json()["revealed"] == {}
    assert first not in klass.lead("state").text
    assert first not in klass.lead("answers.csv").text
    stored = b"".join(path.read_bytes() for path in klass.folder.iterdir())
    assert first.encode() not in stored
    assert klass.secret.encode() not in stored


def test_only_the_secret_leads_and_nobody_learns_whether_there_is_a_room(klass) -> None:
    student = klass.join()
    for secret in ("", "x", student, klass.secret[:-1], klass.secret + "x", klass.code):
        answers = [klass.lead(action, secret, step=2, truth=1) for action in ("step", "reveal", "delete", "qr")]
        answers.append(klass.lead("answers.csv", secret))
        assert {answer.status_code for answer in answers} == {403}
    elsewhere = klass.http.post("/rooms/BCDFGH/delete", headers={"x-room-lead": "x"}, json={})
    assert elsewhere.json() == klass.lead("delete", "x").json()
    outside = {"x-room-student": "0" * 32}
    answers = [klass.http.get(f"/rooms/{code}/state", headers=outside) for code in (klass.code, "BCDFGH")]
    assert answers[0].json() == answers[1].json()
    since = klass.state(student).json()["version"]
    assert klass.state(student, since=since).status_code == 204
    assert klass.state("0" * 32, since=since).status_code == 410
    assert klass.lead("state").json()["step"] == 1


def test_ten_thousand_guesses_get_nowhere_and_lock_no_class_out(klass) -> None:
    attacker, student = klass.client(ELSEWHERE), {"x-room-student": secrets.token_hex(16)}
    statuses = []
    for index in range(10_000):  # the last guess is right
        code = klass.code if index == 9_999 else "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
        try:
            klass.rooms.join(code, student["x-room-student"], ELSEWHERE)
            statuses.append(200)
        except Exception as refused:
            statuses.append(refused.status)
    assert statuses.count(404) == limits.WRONG_CODES.value
    assert statuses.count(429) == 10_000 - limits.WRONG_CODES.value
    refused = attacker.post(f"/rooms/{klass.code}/join", headers=student, json={})
    assert int(refused.headers["retry-after"]) > 500
    assert refused.json()["error"] == "Too many wrong codes. Try again in 10 min."
    # Sixty behind one address, of whom somebody has typed wrong codes again and again.
    for _ in range(limits.WRONG_CODES.value + 5):
        klass.http.post("/rooms/BBBBBB/join", headers=student, json={})
    joined = [klass.join() for _ in range(60)]
    assert all(klass.answer(one, 2).status_code == 200 for one in joined)


def test_codes_are_read_as_people_type_them(klass) -> None:
    typed = f" {klass.code[:3].lower()}-{klass.code[3:].lower()} "
    joined = klass.http.post(f"/rooms/{typed}/join", headers={"x-room-student": "a" * 32}, json={})
    assert joined.json()["code"] == klass.code
    assert set(klass.code) <= set(ALPHABET)
    refused = klass.http.post(f"/rooms/{klass.code}/join", headers={"x-room-student": "me"}, json={})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    "headers", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}]
)
def test_another_sites_page_is_refused(klass, headers) -> None:
    assert klass.http.post("/rooms", headers=headers, json={}).status_code == 403
    own = {"origin": "http://testserver"}
    assert klass.http.post("/rooms", headers=own, json={}).status_code == 200
    proxied = {"origin": "https://page.example", "x-forwarded-host": "page.example"}
    assert klass.http.post("/rooms", headers=proxied, json={}).status_code == 200


def test_limits_hold_and_refuse_with_a_sentence(klass, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_STUDENTS", "2")
    monkeypatch.setenv("INTRASLICE_MAX_ROOMS", "5")
    monkeypatch.setenv("INTRASLICE_MAX_ROOM_ANSWERS", "3")
    student = klass.join()
    klass.join()
    full = klass.http.post(f"/rooms/{klass.code}/join", headers={"x-room-student": "f" * 32}, json={})
    assert (full.status_code, full.json()["error"]) == (409, "This class is full: it has 2 students.")
    klass.join(student)  # who has joined already is let in
    assert [klass.answer(student, 1 + index).status_code for index in range(4)] == [200, 200, 200, 429]
    assert klass.state(student).json()["mine"] == {"1": 3}
    created = [klass.http.post("/rooms", json={}).status_code for _ in range(5)]
    assert created == [200, 200, 200, 429, 429]  # one place is kept for other addresses
    others = [klass.client(ELSEWHERE).post("/rooms", json={}).status_code for _ in range(2)]
    assert others == [200, 429]
