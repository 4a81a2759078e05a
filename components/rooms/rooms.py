"""All rooms: who may create, join, answer and lead, and in which bounds.

One process serves a folder, on which it has a lock: rooms are kept in memory once somebody has asked for them, and
every change is committed to the store before it is made there.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from .. import limits
from ..i18n.language import LazyString, lazy_gettext
from .questions import Question, questions, unknown_question
from .room import Room
from .store import Answer, Store, StoredRoom, StoreError
from .wrong_codes import WrongCodes

ALPHABET = "BCDFGHJKMNPQRSTVWXYZ"  # no letter that looks like another or like a digit, and no vowel: no words
LENGTH = 6
STUDENT_ID = re.compile(r"[0-9a-f]{32}")
ANSWER_ID = re.compile(r"[0-9a-zA-Z-]{8,40}")
MAX_REVISIONS = 50  # answers of one student to one question


class Refused(Exception):
    """What a client asked for is refused; the message is a sentence for the client.

    Attributes:
        status: of HTTP.
        wait: seconds after which it is worth another try; 0 where it never is.
    """

    def __init__(self, status: int, words: LazyString, wait: int = 0) -> None:
        super().__init__(words)
        self.status, self.wait = status, wait


class Rooms:
    """The rooms in a folder. Methods may be called from any thread; they raise Refused and StoreError."""

    def __init__(self, folder: Path) -> None:
        self._store, self._wrong_codes = Store(folder), WrongCodes()
        self._rooms: dict[str, Room] = {}
        self._codes: set[str] | None = None  # of all rooms, kept from the store: wrong codes cost nothing
        self._lock = Lock()  # held while something is changed, the commit included
        self._timer: Timer | None = None
        self.delete_expired()

    def create(self, address: str) -> tuple[Room, str]:
        """A new room, and the secret of whoever leads it."""
        self.delete_expired()
        secret = secrets.token_urlsafe(24)
        with self._lock:
            self._make_place(address)
            code = ""
            while not code or code in self._all_codes():
                code = "".join(secrets.choice(ALPHABET) for _ in range(LENGTH))
            stored = StoredRoom(code, _digest(secret), time.time(), 1, {}, [], [])
            self._store.create(stored)
            self._all_codes().add(code)
            room = self._rooms[code] = Room(stored, address)
        self._schedule()
        return room, secret

    def join(self, text: str, student: str, address: str) -> Room:
        """The room with this code, which the student has joined now or before.

        After `WRONG_CODES` wrong codes an address can only join rooms in which it takes part already: whoever tries
        codes learns nothing more, and nobody can lock a class out by typing wrong codes in the same building. New
        students of an address join at a pace that lets a lecture hall in at once, and few invented ones.
        """
        code, digest = normalised(text), _digest(student)
        if not STUDENT_ID.fullmatch(student):
            raise Refused(400, lazy_gettext("This browser's id is not valid. Reload the page."))
        wait = self._wrong_codes.wait(address)
        room = self.find(code, in_memory=wait > 0)
        if wait and not (room and (room.is_from(address) or digest in room.numbers)):
            words = lazy_gettext("Too many wrong codes. Try again in {minutes} min.", minutes=-(-wait // 60))
            raise Refused(429, words, wait)
        if room is None:
            self._wrong_codes.count(address)
            raise Refused(404, lazy_gettext("No class has this code. Check it, or ask for the link."))
        with self._lock:
            self._require_current(room)
            if digest not in room.numbers:
                if (count := len(room.numbers)) >= limits.STUDENTS.value:
                    raise Refused(409, lazy_gettext("This class is full: it has {count} students.", count=count))
                if wait := room.join_wait(address):
                    words = lazy_gettext(
                        "Many students from your network are joining this class. Try again in {count} s.", count=wait
                    )
                    raise Refused(429, words, wait)
                self._store.join(room.code, digest)
                room.add_student(digest, address)
        return room

    def student_room(self, text: str, student: str) -> tuple[Room, bytes]:
        """The room of a student who has joined it, and the student's digest.

        Anybody else gets the same answer, whether there is such a room or not.
        """
        room, digest = self.find(normalised(text)), _digest(student)
        if room is None or digest not in room.numbers:
            raise Refused(410, lazy_gettext("This class has ended, or you have not joined it."))
        return room, digest

    def led_room(self, text: str, secret: str) -> Room:
        """The room that this secret leads. Anybody else gets the same answer, whether there is such a room or not."""
        room = self.find(normalised(text))
        if room is None or not hmac.compare_digest(room.lead, _digest(secret)):
            raise Refused(403, lazy_gettext("This class has ended, or was not started in this browser."))
        return room

    def answer(self, text: str, student: str, body: dict[str, Any]) -> Room:
        """Record the answer `{"id", "step", "value"}`: once for each id, and only before its question is revealed.

        A second answer to a question replaces the first.
        """
        room, digest = self.student_room(text, student)
        id, step, value = body.get("id"), body.get("step"), body.get("value")
        question = _question(step)
        if not isinstance(id, str) or not ANSWER_ID.fullmatch(id):
            raise Refused(400, lazy_gettext("The prediction's id is not valid. Reload the page and send it again."))
        if not question.is_answer(value):
            words = lazy_gettext(
                "The prediction for question {step} must be {expected}.", step=step, expected=question.expected
            )
            raise Refused(400, words)
        with self._lock:
            self._require_current(room, digest)
            earlier = room.question_of(digest, id)
            if earlier == question.number:
                return room  # a repeat
            if earlier is not None:
                words = lazy_gettext(
                    "This prediction's id was already used for another question. Reload the page and send it again."
                )
                raise Refused(409, words)
            if question.number in room.revealed:
                words = lazy_gettext("Too late: the answer to question {step} has been revealed.", step=step)
                raise Refused(409, words)
            if question.number != room.step:
                raise Refused(409, lazy_gettext("The class is on question {step}.", step=room.step))
            if room.answer_count >= (max_answers := limits.ROOM_ANSWERS.value):
                words = lazy_gettext(
                    "This class already has {count:,} predictions and accepts no more.", count=max_answers
                )
                raise Refused(429, words)
            if room.revisions(digest, question.number) >= MAX_REVISIONS:
                words = lazy_gettext("Too many changes to this prediction. The last accepted one counts.")
                raise Refused(429, words)
            answer = Answer(digest, question.number, id, value)
            self._store.answer(room.code, answer)
            room.add_answer(answer)
        return room

    def go_to(self, text: str, secret: str, step: Any) -> Room:
        """Make a question the current one."""
        room = self.led_room(text, secret)
        number = _question(step).number
        with self._lock:
            self._require_current(room)
            if number != room.step:
                self._store.go_to(room.code, number)
                room.go_to(number)
        return room

    def reveal(self, text: str, secret: str, step: Any, truth: Any) -> Room:
        """Reveal a question, with what was measured, or None while that is not known; it may follow."""
        room = self.led_room(text, secret)
        question = _question(step)
        if not question.is_truth(truth):
            raise Refused(400, question.wrong_truth)
        with self._lock:
            self._require_current(room)
            if step not in room.revealed or (truth is not None and truth != room.revealed[step]):
                self._store.reveal(room.code, step, truth)
                room.reveal(step, truth)
        return room

    def remove_without_answers(self, text: str, secret: str) -> Room:
        """Remove the students who have answered no question; they may join again."""
        room = self.led_room(text, secret)
        with self._lock:
            self._require_current(room)
            self._store.remove_without_answers(room.code)
            room.remove_without_answers()
        return room

    def delete(self, text: str, secret: str) -> None:
        """Delete a room at once."""
        room = self.led_room(text, secret)
        with self._lock:
            self._store.delete(room.code)
            self._forget(room.code)

    def delete_expired(self) -> None:
        """Delete the rooms that are 24 hours old, now and every minute."""
        if not self._store.exists():
            return
        with suppress(StoreError), self._lock:  # the log has it
            self._store.delete(created_before=time.time() - limits.ROOM_SECONDS)
            self._codes = None  # to be read again: those of rooms that nobody has asked for are deleted too
            for code in [code for code, room in self._rooms.items() if room.expires <= time.time()]:
                self._forget(code)
        self._schedule()

    def find(self, code: str, in_memory: bool = False) -> Room | None:
        """The room with this code, unless it has expired; `in_memory` looks only there, and never waits."""
        if (room := self._rooms.get(code)) is None and not in_memory:
            with self._lock:
                if code in self._all_codes() and (stored := self._store.load(code)) is not None:
                    room = self._rooms.setdefault(code, Room(stored))
        return room if room is not None and room.expires > time.time() else None

    def close(self) -> None:
        """Close the store, and expect nothing to expire."""
        if self._timer is not None:
            self._timer.cancel()
        self._store.close()

    def _make_place(self, address: str) -> None:
        """Delete the oldest room without students where there is no place for one more. The lock is held."""
        of_address = {code for code, room in self._rooms.items() if address and room.creator == address}
        may_add = len(of_address) < limits.ADDRESS_ROOMS.value
        if may_add and limits.has_room(limits.ROOMS, len(self._all_codes()), bool(of_address)):
            return
        idle = self._store.codes(time.time() - limits.EMPTY_ROOM_SECONDS)
        empty = [code for code in idle if may_add or code in of_address]
        if not empty:
            words = lazy_gettext(
                "There are too many classes on this server, or from your network address. Delete one that is no longer "
                "needed, or try again later."
            )
            raise Refused(429, words, limits.EMPTY_ROOM_SECONDS)
        self._store.delete(empty[0])
        self._forget(empty[0])

    def _all_codes(self) -> set[str]:
        """The codes of all rooms. The lock is held."""
        if self._codes is None:
            if not self._store.exists():
                return set()  # until somebody creates a room: it may be another process
            self._codes = set(self._store.codes())
        return self._codes

    def _forget(self, code: str) -> None:
        """Drop a deleted room from memory. The lock is held."""
        self._rooms.pop(code, None)
        self._all_codes().discard(code)

    def _require_current(self, room: Room, student: bytes | None = None) -> None:
        """Refuse a room that was deleted, or a student who was removed, a moment ago. The lock is held."""
        if self._rooms.get(room.code) is not room or (student and student not in room.numbers):
            raise Refused(410, lazy_gettext("This class has ended, or you have not joined it."))

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = Timer(limits.EXPIRY_SECONDS, self.delete_expired)
        self._timer.daemon = True
        self._timer.start()


def normalised(text: str) -> str:
    """A code as somebody has typed it, in capitals without blanks and hyphens."""
    return re.sub(r"[\s-]", "", text[:40]).upper()


def is_student(room: Room, student: str) -> bool:
    """Whether the student has joined the room."""
    return _digest(student) in room.numbers


def is_lead(room: Room, secret: str) -> bool:
    """Whether the secret leads the room."""
    return hmac.compare_digest(room.lead, _digest(secret))


def _question(step: Any) -> Question:
    if type(step) is not int or step not in questions():
        raise Refused(400, unknown_question(step))
    return questions()[step]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="replace")).digest()
