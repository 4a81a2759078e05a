"""All classes ("rooms"): who may create, join, answer and lead one, and in which bounds.

What a class is stands in the database alone. In memory are the network addresses of a class, which are not stored, and
wrong codes.
"""

import hashlib
import hmac
import json
import math
import re
import secrets
import time
from collections import deque
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from threading import Timer
from typing import Any, NamedTuple

from intraslice.core import checks

from .. import limits
from .questions import Question, Value, questions
from .store import Refused, Store

ALPHABET = "BCDFGHJKMNPQRSTVWXYZ"  # no letter that looks like another or like a digit, and no vowel: no words
LENGTH = 6
STUDENT_ID = re.compile(r"[0-9a-f]{32}")
ANSWER_ID = re.compile(r"[0-9a-zA-Z-]{8,40}")
MAX_REVISIONS = 50  # answers of one student to one question
MAX_ADDRESSES = 10_000  # that are remembered; the one that was noted first is forgotten first


class Room(NamedTuple):
    """A class as it is stored, without its students and answers."""

    code: str
    lead: bytes  # SHA-256 of the presenter's secret
    created: float  # seconds since 1970
    step: int  # the current question
    revealed: dict[int, Value | None]  # what was measured, by question

    @property
    def expires(self) -> float:
        """When it is deleted, in seconds since 1970."""
        return self.created + limits.ROOM_SECONDS


class Rooms:
    """The classes in a folder. Methods may be called from any thread; they raise Refused.

    A class is found by its code as a person types it. A client who has not joined or does not lead it gets the
    same answer as for a class that does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._store = Store(folder)
        self.lock = self._store.lock  # held while the classes are read or changed
        self._creators: dict[str, str] = {}  # network addresses by code
        # By code and address: the time at which its students so far would have joined, one every `limits.JOIN_SECONDS`.
        self._paced: dict[tuple[str, str], float] = {}
        self._wrong_codes: dict[str, deque[float]] = {}  # when an address has sent its last wrong codes
        self._timer = Timer(0, self.delete_expired)
        self.delete_expired()

    def create(self, address: str) -> tuple[Room, str]:
        """A new class, and the secret of its presenter."""
        secret = secrets.token_urlsafe(24)
        with self._store.lock:
            self._make_place(address)
            code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
            room = Room(code, _digest(secret), time.time(), 1, {})
            self._store.execute("INSERT INTO rooms VALUES (?, ?, ?, ?)", *room[:4], create=True)
            self._creators[code] = address
            _note(self._paced, (code, address), 0.0)
        self.delete_expired()
        return room, secret

    def join(self, text: str, student: str, address: str) -> Room:
        """The class with this code, which the student has joined now or before.

        After `WRONG_CODES` wrong codes an address can only join classes in which it takes part already. Its new
        students join at a pace that lets a lecture hall in at once, and few invented ones.
        """
        if not STUDENT_ID.fullmatch(student):
            raise Refused("This browser's id is not valid. Reload the page.", 400)
        digest = _digest(student)
        with self._store.lock:
            room, now = self._find(text), time.monotonic()
            has_joined = room is not None and self._has_joined(room, digest)
            takes_part = has_joined or (room is not None and address != "" and (room.code, address) in self._paced)
            times = self._wrong_codes.get(address, deque(maxlen=limits.WRONG_CODES.value))
            wait = math.ceil(times[0] + limits.WRONG_CODE_SECONDS - now) if len(times) == times.maxlen else 0
            if wait > 0 and not takes_part:
                raise Refused("Too many wrong codes. Try again in {minutes} min.", 429, wait, minutes=-(-wait // 60))
            if room is None:
                _note(self._wrong_codes, address, times)
                times.append(now)
                raise Refused("No class has this code. Check it, or ask for the link.", 404)
            if has_joined:
                return room
            if (count := self._count("students", room.code)) >= limits.STUDENTS.value:
                raise Refused("This class is full: it has {count} students.", 409, count=count)
            paced = self._paced.get((room.code, address), 0.0)
            if (wait := math.ceil(paced - (limits.JOINS.value - 1) * limits.JOIN_SECONDS - now)) > 0:
                words = "Many students from your network are joining this class. Try again in {count} s."
                raise Refused(words, 429, wait, count=wait)
            self._store.execute("INSERT INTO students (code, student) VALUES (?, ?)", room.code, digest)
            _note(self._paced, (room.code, address), max(paced, now) + limits.JOIN_SECONDS)
        return room

    def answer(self, text: str, student: str, body: dict[str, Any]) -> None:
        """Record `{"id", "step", "value"}`: once for each id, until the question is revealed. A later one counts."""
        with self._store.lock:
            room, digest = self._joined(text, student)
            id, step, value = body.get("id"), body.get("step"), body.get("value")
            question = _question(step)
            if not isinstance(id, str) or not ANSWER_ID.fullmatch(id):
                raise Refused("The prediction's id is not valid. Reload the page and send it again.", 400)
            if not question.is_answer(value):
                words = "The prediction for question {step} must be {expected}."
                raise Refused(words, 400, step=step, expected=question.expected)
            key = room.code, digest, id
            earlier = self._store.execute("SELECT step FROM answers WHERE code = ? AND student = ? AND id = ?", *key)
            if earlier == [(step,)]:
                return  # a repeat
            if earlier:
                words = "This prediction's id was already used for another question. Reload the page and send it again."
                raise Refused(words, 409)
            if step in room.revealed:
                raise Refused("Too late: the answer to question {step} has been revealed.", 409, step=step)
            if step != room.step:
                raise Refused("The class is on question {step}.", 409, step=room.step)
            if self._count("answers", room.code) >= (most := limits.ROOM_ANSWERS.value):
                raise Refused("This class already has {count:,} predictions and accepts no more.", 429, count=most)
            if self._count("answers", room.code, "AND student = ? AND step = ?", digest, step) >= MAX_REVISIONS:
                raise Refused("Too many changes to this prediction. The last accepted one counts.", 429)
            columns = "(code, student, id, step, value)"
            self._store.execute(f"INSERT INTO answers {columns} VALUES (?, ?, ?, ?, ?)", *key, step, json.dumps(value))

    def seen_by_student(self, text: str, student: str, since: str = "") -> dict[str, Any] | None:
        """The current question, the class's answers to what is revealed, and the student's; None if `since` is this."""
        with self._store.lock:
            room, digest = self._joined(text, student)
            if (version := _version(room.step, room.revealed)) == since:
                return None
            answers = self._answers(room.code)
        mine = {step: json.loads(values[digest]) for step, values in answers.items() if digest in values}
        revealed = {
            step: {"truth": truth, "class": _distribution(step, tuple(answers.get(step, {}).values()))}
            for step, truth in room.revealed.items()
        }
        common = {"version": version, "code": room.code, "step": room.step, "expires": room.expires}
        return {**common, "revealed": revealed, "mine": mine}

    def seen_by_lead(self, text: str, secret: str, since: str = "") -> dict[str, Any] | None:
        """The number of students, all answers' distributions, and what is revealed; None if `since` is this version."""
        with self._store.lock:
            room = self.led_room(text, secret)
            students = self._count("students", room.code)
            if (version := _version(room.step, room.revealed, students, self._count("answers", room.code))) == since:
                return None
            answers = self._answers(room.code)
        shown = {step: _distribution(step, tuple(values.values())) for step, values in answers.items()}
        revealed = {step: {"truth": truth} for step, truth in room.revealed.items()}
        common = {"version": version, "code": room.code, "step": room.step, "expires": room.expires}
        return {**common, "students": students, "revealed": revealed, "answers": shown}

    def led_room(self, text: str, secret: str) -> Room:
        """The class that this secret leads."""
        room = self._find(text)
        if room is None or not hmac.compare_digest(room.lead, _digest(secret)):
            raise Refused("This class has ended, or was not started in this browser.", 403)
        return room

    def predictions(self, text: str, secret: str) -> tuple[Room, list[tuple[int, int, Value]]]:
        """The class; and of each current answer the question, the student's number in order of joining, the value."""
        with self._store.lock:
            room = self.led_room(text, secret)
            answers = self._answers(room.code)
            students = self._store.execute("SELECT student FROM students WHERE code = ? ORDER BY number", room.code)
        rows = [
            (step, number, json.loads(answers[step][student]))
            for step in sorted(answers)
            for number, (student,) in enumerate(students, start=1)
            if student in answers[step]
        ]
        return room, rows

    def go_to(self, text: str, secret: str, step: Any) -> None:
        """Make a question the current one."""
        with self._store.lock:
            room = self.led_room(text, secret)
            self._store.execute("UPDATE rooms SET step = ? WHERE code = ?", _question(step).number, room.code)

    def reveal(self, text: str, secret: str, step: Any, truth: Any) -> None:
        """Reveal a question, with what was measured, or None while that is not known; it may follow."""
        with self._store.lock:
            room = self.led_room(text, secret)
            question = _question(step)
            if not question.is_truth(truth):
                raise Refused(
                    "The measured value for question {step} has the wrong type or is out of range. Reload the page and "
                    "reveal it again.",
                    400,
                    step=step,
                )
            if step not in room.revealed or truth is not None:
                row = room.code, step, json.dumps(truth)
                self._store.execute("INSERT OR REPLACE INTO reveals VALUES (?, ?, ?)", *row)

    def remove_without_answers(self, text: str, secret: str) -> None:
        """Remove the students who have answered no question; they may join again. The others get new numbers."""
        with self._store.lock:
            code = self.led_room(text, secret).code
            answered = "SELECT student FROM answers WHERE code = ?"
            self._store.execute(f"DELETE FROM students WHERE code = ? AND student NOT IN ({answered})", code, code)

    def delete(self, text: str, secret: str) -> None:
        """Delete a class at once."""
        with self._store.lock:
            self._delete("code = ?", self.led_room(text, secret).code)

    def delete_expired(self) -> None:
        """Delete the classes that are 24 hours old, now and every minute."""
        if not self._store.exists:
            return
        with suppress(Refused):  # it is in the log
            self._delete("created <= ?", time.time() - limits.ROOM_SECONDS)
        self._timer.cancel()
        self._timer = Timer(limits.EXPIRY_SECONDS, self.delete_expired)
        self._timer.daemon = True
        self._timer.start()

    def close(self) -> None:
        """Close the store, and delete nothing more."""
        self._timer.cancel()
        self._store.close()

    def _find(self, text: str) -> Room | None:
        """The class with this code, unless it has expired."""
        code = re.sub(r"[\s-]", "", text[:40]).upper()  # as a person types it
        after = time.time() - limits.ROOM_SECONDS
        found = "SELECT lead, created, step FROM rooms WHERE code = ? AND created > ?"
        with self._store.lock:
            rows = self._store.execute(found, code, after)
            reveals = self._store.execute("SELECT step, truth FROM reveals WHERE code = ? ORDER BY step", code)
        if not rows:
            return None
        lead, created, step = rows[0]
        return Room(code, lead, created, step, {number: json.loads(truth) for number, truth in reveals})

    def _joined(self, text: str, student: str) -> tuple[Room, bytes]:
        """The class of a student who has joined it, and the student's digest."""
        room, digest = self._find(text), _digest(student)
        if room is None or not self._has_joined(room, digest):
            raise Refused("This class has ended, or you have not joined it.", 410)
        return room, digest

    def _has_joined(self, room: Room, student: bytes) -> bool:
        return self._count("students", room.code, "AND student = ?", student) > 0

    def _answers(self, code: str) -> dict[int, dict[bytes, str]]:
        """The current answers as JSON, by question and student."""
        answers: dict[int, dict[bytes, str]] = {}
        query = "SELECT step, student, value FROM answers WHERE code = ? AND value IS NOT NULL ORDER BY number"
        for step, student, value in self._store.execute(query, code):
            answers.setdefault(step, {})[student] = value
        return {step: values for step, values in answers.items() if step in questions()}

    def _count(self, table: str, code: str, condition: str = "", *values: Any) -> int:
        return int(self._store.execute(f"SELECT COUNT(*) FROM {table} WHERE code = ? {condition}", code, *values)[0][0])

    def _make_place(self, address: str) -> None:
        """Delete the oldest class without students where there is no place for one more. The lock is held."""
        codes = [code for (code,) in self._store.execute("SELECT code FROM rooms")]
        self._creators = {code: self._creators[code] for code in codes if code in self._creators}
        of_address = {code for code, creator in self._creators.items() if address and creator == address}
        may_add = len(of_address) < limits.ADDRESS_ROOMS.value
        if may_add and limits.has_room(limits.ROOMS, len(codes), bool(of_address)):
            return
        empty = "SELECT code FROM rooms WHERE created < ? AND code NOT IN (SELECT code FROM students) ORDER BY created"
        oldest = [code for (code,) in self._store.execute(empty, time.time() - limits.EMPTY_ROOM_SECONDS)]
        if not (oldest := [code for code in oldest if may_add or code in of_address]):
            raise Refused(
                "There are too many classes on this server, or from your network address. Delete one that is no longer "
                "needed, or try again later.",
                429,
                limits.EMPTY_ROOM_SECONDS,
            )
        self._delete("code = ?", oldest[0])

    def _delete(self, condition: str, value: object) -> None:
        """Delete classes with all that belongs to them, also from the log and from memory."""
        self._store.execute(f"DELETE FROM rooms WHERE {condition}", value)
        _distribution.cache_clear()
        with suppress(Refused):
            self._store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _question(step: Any) -> Question:
    if type(step) is not int or step not in questions():
        words = "The lesson has no question {step}; its questions are 1 to {count}. Reload the page."
        raise Refused(words, 400, step=checks.quoted(step), count=len(questions()))
    return questions()[step]


@lru_cache(maxsize=256)
def _distribution(step: int, answers: tuple[str, ...]) -> dict[str, Any]:
    """The distribution of answers in JSON, made once for all students who see it."""
    return questions()[step].distribution(list(map(json.loads, answers)))


def _version(*shown: object) -> str:
    """Differs if what is shown does."""
    return hashlib.sha256(repr(shown).encode()).hexdigest()[:16]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()


def _note(notes: dict[Any, Any], key: object, value: object) -> None:
    """Set an entry as the newest of at most `MAX_ADDRESSES`."""
    notes.pop(key, None)
    notes[key] = value
    if len(notes) > MAX_ADDRESSES:
        del notes[next(iter(notes))]
