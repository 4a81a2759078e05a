"""The database of the rooms: SQLite, in which every change is committed before its method returns.

The journal is a write-ahead log and `synchronous` is FULL, so that an answer that was acknowledged survives a killed
process and also a power failure. That costs one `fsync` for each answer, of which a class of sixty needs sixty per
question. What is deleted is overwritten (`secure_delete`). A damaged database is renamed and a new one begun.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import NamedTuple

from filelock import FileLock, Timeout

from intraslice.core.cache import cache_folder

from .. import limits
from ..i18n.language import lazy_gettext
from .questions import Value

log = logging.getLogger(__name__)

FILE = "rooms.sqlite"
UNUSABLE = lazy_gettext("Classes cannot be saved at the moment: the server's disk is full, locked or damaged.")
IN_USE = lazy_gettext(
    "This server has no classes, since another one uses the same folder for them. Stop that server, or start this one "
    "with another folder in INTRASLICE_ROOMS."
)
SCHEMA = """
PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA secure_delete = ON; PRAGMA foreign_keys = ON;
CREATE TABLE IF NOT EXISTS rooms (code TEXT PRIMARY KEY, lead BLOB NOT NULL, created REAL NOT NULL,
    step INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS reveals (code TEXT NOT NULL REFERENCES rooms ON DELETE CASCADE, step INTEGER NOT NULL,
    truth TEXT NOT NULL, PRIMARY KEY (code, step));
CREATE TABLE IF NOT EXISTS students (number INTEGER PRIMARY KEY, code TEXT NOT NULL REFERENCES rooms ON DELETE CASCADE,
    student BLOB NOT NULL, UNIQUE (code, student));
CREATE TABLE IF NOT EXISTS answers (number INTEGER PRIMARY KEY, code TEXT NOT NULL REFERENCES rooms ON DELETE CASCADE,
    student BLOB NOT NULL, step INTEGER NOT NULL, id TEXT NOT NULL, value TEXT, UNIQUE (code, student, id));
"""


def rooms_folder() -> Path:
    """INTRASLICE_ROOMS, or beside the cache folder, whose eviction never reaches the rooms."""
    cache = cache_folder()
    return Path(os.environ.get("INTRASLICE_ROOMS") or f"{cache}.rooms").expanduser()


class StoreError(Exception):
    """The database cannot be read or written; the message is a sentence for clients."""


class Answer(NamedTuple):
    """A student's answer to a question. Its value is None once a later one has replaced it."""

    student: bytes
    step: int
    id: str
    value: Value | None


class StoredRoom(NamedTuple):
    """All that is stored of a room, students and answers in the order in which they came."""

    code: str
    lead: bytes  # SHA-256 of the secret
    created: float  # seconds since 1970
    step: int
    revealed: dict[int, Value | None]  # what was measured, by question
    students: list[bytes]  # SHA-256 of the ids
    answers: list[Answer]


class Store:
    """The rooms in a folder. Methods may be called from any thread, and raise StoreError.

    The folder is created with the first room. A process that has used it keeps a lock on it, since the rooms are in its
    memory, too: another process gets StoreError.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / FILE, RLock()
        self._folder_lock = FileLock(folder / ".lock", thread_local=False)
        self._connection: sqlite3.Connection | None = None

    def exists(self) -> bool:
        """Whether there is a database."""
        return self._path.is_file()

    def close(self) -> None:
        """Close the database, and leave the folder to other processes; the next call opens it again."""
        with self._lock:
            self._disconnect()
            self._folder_lock.release()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def create(self, room: StoredRoom) -> None:
        """Add a room that has no students yet."""
        with self._transaction() as database:
            database.execute("INSERT INTO rooms VALUES (?, ?, ?, ?)", room[:4])

    def codes(self, empty_before: float | None = None) -> list[str]:
        """The codes of all rooms, the oldest first; or of those without students that were created before a moment."""
        query, values = "SELECT code FROM rooms", []
        if empty_before is not None:
            query, values = f"{query} WHERE created < ? AND code NOT IN (SELECT code FROM students)", [empty_before]
        with self._transaction() as database:
            return [code for (code,) in database.execute(f"{query} ORDER BY created", values)]

    def load(self, code: str) -> StoredRoom | None:
        """A room with its students and answers, or None."""
        with self._transaction() as database:
            row = database.execute("SELECT lead, created, step FROM rooms WHERE code = ?", [code]).fetchone()
            if row is None:
                return None
            lead, created, step = row
            reveals = database.execute("SELECT step, truth FROM reveals WHERE code = ?", [code]).fetchall()
            students = database.execute(
                "SELECT student FROM students WHERE code = ? ORDER BY number", [code]
            ).fetchall()
            columns = "SELECT student, step, id, value FROM answers WHERE code = ? ORDER BY number"
            answers = [
                Answer(student, number, id, None if value is None else json.loads(value))
                for student, number, id, value in database.execute(columns, [code])
            ]
        revealed = {number: json.loads(truth) for number, truth in reveals}
        return StoredRoom(code, lead, created, step, revealed, [student for (student,) in students], answers)

    def join(self, code: str, student: bytes) -> None:
        """Add a student to a room."""
        with self._transaction() as database:
            database.execute("INSERT OR IGNORE INTO students (code, student) VALUES (?, ?)", [code, student])

    def remove_without_answers(self, code: str) -> None:
        """Remove the students of a room who have answered no question."""
        with self._transaction() as database:
            answered = "SELECT student FROM answers WHERE code = ?"
            database.execute(f"DELETE FROM students WHERE code = ? AND student NOT IN ({answered})", [code, code])

    def answer(self, code: str, answer: Answer) -> None:
        """Add an answer; the student's earlier one to this question loses its value."""
        student, step, id, value = answer
        with self._transaction() as database:
            database.execute(
                "UPDATE answers SET value = NULL WHERE code = ? AND student = ? AND step = ?", [code, student, step]
            )
            row = [code, student, step, id, json.dumps(value)]
            database.execute("INSERT INTO answers (code, student, step, id, value) VALUES (?, ?, ?, ?, ?)", row)

    def go_to(self, code: str, step: int) -> None:
        """Set the current question of a room."""
        with self._transaction() as database:
            database.execute("UPDATE rooms SET step = ? WHERE code = ?", [step, code])

    def reveal(self, code: str, step: int, truth: Value | None) -> None:
        """Mark a question as revealed, with what was measured."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO reveals VALUES (?, ?, ?)", [code, step, json.dumps(truth)])

    def delete(self, code: str = "", created_before: float = 0.0) -> None:
        """Delete a room, or those created before a moment, with all that belongs to them, also from the log."""
        with self._transaction() as database:
            values = [code, created_before]
            deleted = database.execute("DELETE FROM rooms WHERE code = ? OR created < ?", values).rowcount
        if deleted:
            with self._lock, suppress(sqlite3.Error):
                self._open().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is committed at the end, one at a time."""
        with self._lock:
            try:
                database = self._open()
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                    database.execute("COMMIT")
                except BaseException:
                    with suppress(sqlite3.Error):
                        database.execute("ROLLBACK")
                    raise
            except (sqlite3.Error, OSError, ValueError) as error:
                words = IN_USE if isinstance(error, Timeout) else UNUSABLE
                log.warning("the rooms in %s cannot be used: %s (%s)", self._path, words, error)
                # If it is damaged, the next call opens it again and finds out.
                if not isinstance(error, sqlite3.OperationalError):
                    with suppress(sqlite3.Error):
                        self._disconnect()
                raise StoreError(words) from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._folder_lock.is_locked:
                self._folder_lock.acquire(timeout=0)
            try:
                self._connection = _connect(self._path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log.warning("%s is damaged (%s), is renamed, and a new one begins", self._path, error)
                for ending in ("", "-wal", "-shm"):
                    with suppress(FileNotFoundError):
                        damaged = self._path.with_name(f"{FILE}.damaged{ending}")
                        os.replace(self._path.with_name(f"{FILE}{ending}"), damaged)
                self._connection = _connect(self._path)
        return self._connection


def _connect(path: Path) -> sqlite3.Connection:
    """A new connection. Raises sqlite3.DatabaseError where the file is damaged."""
    connection = sqlite3.connect(path, timeout=limits.LOCK_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        if (result := connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(result)
        connection.executescript(SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
