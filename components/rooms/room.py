"""A room in memory: what its students and its presenter may see of it, and when that has changed."""

from __future__ import annotations

from collections import Counter
from threading import Lock
from typing import Any
from uuid import uuid4

from .questions import Value, questions
from .store import Answer, StoredRoom

LIFETIME = 24 * 3600.0  # seconds
RUN = uuid4().hex[:8]  # so that versions of an earlier process are never taken for ours


class Room:
    """A room, loaded from the store. Whoever changes it commits the change to the store first.

    Attributes:
        numbers: the number of each student in the order of joining, by SHA-256 of the id.
        answers: the current answers by question and student.
        addresses: network addresses from which somebody has created or joined it, in this process.
    """

    def __init__(self, stored: StoredRoom) -> None:
        self.code, self.lead, self.created, self.step = stored[:4]
        self.revealed: dict[int, Value | None] = dict(stored.revealed)
        self.numbers = {student: number for number, student in enumerate(stored.students, start=1)}
        self.answers: dict[int, dict[bytes, Value]] = {number: {} for number in questions()}
        self.addresses: set[str] = set()
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
        return self.created + LIFETIME

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

    def add_student(self, student: bytes) -> None:
        """Add a student who has joined."""
        with self._lock:
            self.numbers.setdefault(student, len(self.numbers) + 1)
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
