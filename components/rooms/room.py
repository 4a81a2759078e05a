"""A room in memory: what its students and its presenter may see of it, and when that has changed."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from threading import Lock
from typing import Any
from uuid import uuid4

from .. import limits
from .questions import Value, questions
from .store import Answer, StoredRoom

RUN = uuid4().hex[:8]  # so that versions of an earlier process are never taken for ours
MAX_ADDRESSES = 500  # that are remembered


class Room:
    """A room, loaded from the store. Whoever changes it commits the change to the store first.

    Attributes:
        numbers: the number of each student in the order of joining, by SHA-256 of the id.
        answers: the current answers by question and student.
        creator: the network address from which it was created in this process, or "".
    """

    def __init__(self, stored: StoredRoom, creator: str = "") -> None:
        self.code, self.lead, self.created, self.step = stored[:4]
        self.revealed: dict[int, Value | None] = dict(stored.revealed)
        self.numbers = _numbered(stored.students)
        self.answers: dict[int, dict[bytes, Value]] = {number: {} for number in questions()}
        self.creator = creator
        # By address: the time at which its students so far would have joined, one every `JOIN_SECONDS`.
        self._paced = {creator: 0.0}
        self._ids: dict[tuple[bytes, str], int] = {}  # the question of each answer, replaced ones included
        self._revisions: Counter[tuple[bytes, int]] = Counter()
        self._distributions: dict[int, dict[str, Any]] = {}
        self._changes = self._shown_changes = 0
        self._lock = Lock()
        for answer in stored.answers:
            self._keep(answer)

    @property
    def expires(self) -> float:
        """When it is deleted, in seconds since 1970."""
        return self.created + limits.ROOM_SECONDS

    @property
    def answer_count(self) -> int:
        """The number of answers that were received, replaced ones included."""
        return len(self._ids)

    def question_of(self, student: bytes, id: str) -> int | None:
        """The question that the answer with this id belongs to, or None."""
        return self._ids.get((student, id))

    def revisions(self, student: bytes, step: int) -> int:
        """How many answers the student has given to a question."""
        return self._revisions[student, step]

    def version(self, is_lead: bool) -> str:
        """Changes whenever the presenter, or a student, would see something else."""
        return f"{RUN}.{self._changes if is_lead else self._shown_changes}"

    def is_from(self, address: str) -> bool:
        """Whether somebody has created or joined it from an address, in this process; nobody has from ""."""
        return bool(address) and address in self._paced

    def join_wait(self, address: str) -> int:
        """Seconds until a new student may join from an address; 0 where one may now."""
        ahead = (limits.JOINS.value - 1) * limits.JOIN_SECONDS
        return max(0, math.ceil(self._paced.get(address, 0.0) - ahead - time.monotonic()))

    def add_student(self, student: bytes, address: str) -> None:
        """Add a student who has joined from an address."""
        with self._lock:
            self.numbers.setdefault(student, len(self.numbers) + 1)
            self._paced[address] = max(self._paced.get(address, 0.0), time.monotonic()) + limits.JOIN_SECONDS
            if len(self._paced) > MAX_ADDRESSES:
                del self._paced[next(iter(self._paced))]
            self._changes += 1

    def remove_without_answers(self) -> None:
        """Remove the students who have answered no question; the others get new numbers, as after a restart."""
        with self._lock:
            answered = {student for student, _ in self._ids}
            self.numbers = _numbered(student for student in self.numbers if student in answered)
            self._changes += 1

    def add_answer(self, answer: Answer) -> None:
        """Add an answer, which replaces the student's earlier one."""
        with self._lock:
            self._keep(answer)
            self._changes += 1

    def go_to(self, step: int) -> None:
        """Set the current question."""
        with self._lock:
            self.step = step
            self._changes += 1
            self._shown_changes += 1

    def reveal(self, step: int, truth: Value | None) -> None:
        """Mark a question as revealed, with what was measured."""
        with self._lock:
            self.revealed = {**self.revealed, step: truth}
            self._changes += 1
            self._shown_changes += 1

    def seen_by_student(self, student: bytes) -> dict[str, Any]:
        """The current question, the class's answers to what is revealed, and the student's answers: nobody else's."""
        with self._lock:
            revealed = {
                step: {"truth": truth, "class": self._distribution(step)} for step, truth in self.revealed.items()
            }
            mine = {step: values[student] for step, values in self.answers.items() if student in values}
            return {"version": self.version(False), **self._common(), "revealed": revealed, "mine": mine}

    def seen_by_lead(self) -> dict[str, Any]:
        """The number of students, the distribution of the answers to every question, and what is revealed."""
        with self._lock:
            answers = {step: self._distribution(step) for step, values in self.answers.items() if values}
            revealed = {step: {"truth": truth} for step, truth in self.revealed.items()}
            counts = {"version": self.version(True), **self._common(), "students": len(self.numbers)}
            return {**counts, "revealed": revealed, "answers": answers}

    def _common(self) -> dict[str, Any]:
        return {"code": self.code, "step": self.step, "expires": self.expires}

    def _distribution(self, step: int) -> dict[str, Any]:
        if step not in self._distributions:
            self._distributions[step] = questions()[step].distribution(list(self.answers[step].values()))
        return self._distributions[step]

    def _keep(self, answer: Answer) -> None:
        self._ids[answer.student, answer.id] = answer.step
        self._revisions[answer.student, answer.step] += 1
        if answer.value is not None and answer.step in self.answers:
            self.answers[answer.step][answer.student] = answer.value
            self._distributions.pop(answer.step, None)


def _numbered(students: Iterable[bytes]) -> dict[bytes, int]:
    return {student: number for number, student in enumerate(students, start=1)}
