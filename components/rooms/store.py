"""The database of the classes: SQLite in autocommit mode, so a change is on the disk before `execute` returns.

The journal is a write-ahead log and `synchronous` is FULL: an acknowledged answer survives a power failure. What is
deleted is overwritten (`secure_delete`). A damaged database is renamed and a new one begun.
"""

import logging
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from threading import RLock
from typing import Any

from filelock import FileLock, Timeout

from intraslice.core.cache import cache_folder
from intraslice.core.errors import UserError

from ..i18n.language import lazy_gettext

log = logging.getLogger(__name__)

FILE, RETRY_SECONDS = "rooms.sqlite", 10
UNUSABLE = lazy_gettext("Classes cannot be saved at the moment: the server's disk is full, locked or damaged.")
IN_USE = lazy_gettext(
    "This server has no classes, since another one uses the same folder for them. Stop that server, or start this one "
    "with another folder in INTRASLICE_ROOMS."
)
# `lead` and `student` are SHA-256 digests of secrets, `value` and `truth` JSON. Of a student's answers to a question
# the last one counts; the others may be NULL.
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
    """INTRASLICE_ROOMS, or beside the cache folder, whose eviction never reaches the classes."""
    cache = cache_folder()
    return Path(os.environ.get("INTRASLICE_ROOMS") or f"{cache}.rooms").expanduser()


class Refused(UserError):
    """A client's request is refused, with a sentence for the client; `status` is that of HTTP.

    After `wait` seconds the client may try again; 0 where that would not help.
    """

    def __init__(self, template: str, status: int, /, wait: int = 0, **values: Any) -> None:
        super().__init__(template, **values)
        self.status, self.wait = status, wait


class Store:
    """The database in a folder. Methods may be called from any thread, and raise Refused.

    A process that has used it keeps a lock on the folder, since rules hold within one process: another is refused.
    `lock` is held during a statement; hold it while several have to agree.
    """

    def __init__(self, folder: Path) -> None:
        self._path, self.lock = folder / FILE, RLock()
        self._folder_lock = FileLock(folder / ".lock", thread_local=False)
        self._connection: sqlite3.Connection | None = None

    @property
    def exists(self) -> bool:
        """Whether there is a database."""
        return self._path.is_file()

    def execute(self, statement: str, *values: Any, create: bool = False) -> list[Any]:
        """The rows that a statement returns; none where there is no database, unless that should be created."""
        with self.lock:
            if not (self._connection or create or self.exists):
                return []
            try:
                self._connection = self._connection or self._open()
                return self._connection.execute(statement, values).fetchall()
            except (sqlite3.Error, OSError) as error:
                message = IN_USE if isinstance(error, Timeout) else UNUSABLE
                log.warning("the classes in %s cannot be used: %s (%s)", self._path, message, error)
                # If it is damaged, the next call opens it again and finds out.
                if not isinstance(error, sqlite3.OperationalError):
                    self.close()
                raise Refused(message, 503, RETRY_SECONDS) from error

    def close(self) -> None:
        """Close the database, and leave the folder to other processes; the next call opens it again."""
        with self.lock:
            if self._connection is not None:
                self._connection.close()
            self._connection = None
            self._folder_lock.release()

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._folder_lock.is_locked:
            self._folder_lock.acquire(timeout=0)
        try:
            return _connect(self._path)
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            log.warning("%s is damaged (%s), is renamed, and a new one begins", self._path, error)
            for ending in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.replace(f"{self._path}{ending}", f"{self._path}.damaged{ending}")
            return _connect(self._path)


def _connect(path: Path) -> sqlite3.Connection:
    """A new connection. Raises sqlite3.DatabaseError where the file is damaged."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        if (result := connection.execute("PRAGMA quick_check").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(result)
        connection.executescript(SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
