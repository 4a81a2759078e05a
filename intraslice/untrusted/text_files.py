"""Reads users' text files into documents, within bounds on every resource.

Only the beginning of a file is read, the same for every caller: `MAX_CHARACTERS` characters and `MAX_ROWS` rows.
Messages neither quote the content of a file nor contain its path.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO, TextIOWrapper
from itertools import islice
from pathlib import Path

from intraslice.core.errors import Message, UserError
from intraslice.untrusted.process import Bounds, run_in_subprocess

MAX_CHARACTERS = 2**25  # per file; per text column of a parquet file. About eight million tokens
MAX_ROWS = 2**20  # per file, including blank ones
MAX_LINE = 2**22  # characters per line of JSON or CSV; a file with a longer line is refused
PARQUET_BOUNDS = Bounds(memory=3 * 2**29, seconds=20)

_NUMBER = re.compile(r"[-+]?[\d.,]+")
_LINE = re.compile(r"[^\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")  # lines as of `str.splitlines`
csv.field_size_limit(MAX_LINE)


def reading_bytes(text: str) -> int:
    """Bytes of memory that the process which reads the file `text` may take; 0 where none is started."""
    return PARQUET_BOUNDS.memory if text.lower().endswith(".parquet") else 0


def read_text_file(path: Path) -> list[str]:
    """The non-blank documents at the beginning of a file: paragraphs of a .txt file, else rows of the column `text`.

    Raises UserError where the file cannot be read, is of another kind, or has no text.
    """
    if not path.stat().st_size:
        raise UserError("{file} is empty; expected text", file=path.name)
    try:
        documents = list(filter(str.strip, islice(READERS[path.suffix.lower()](path), MAX_ROWS)))
    except UserError:
        raise
    except UnicodeError as error:
        reason = str(getattr(error, "reason", error))
        raise UserError("{file} is not UTF-8 ({reason}); save it as UTF-8", file=path.name, reason=reason) from error
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error.strerror if isinstance(error, OSError) else error)
        message = "{file} cannot be read ({reason}); save it again, or name another file"
        raise UserError(message, file=path.name, reason=reason) from error
    if not documents:
        raise UserError("{file} has no text in it; expected text", file=path.name)
    if path.suffix.lower() == ".csv" and all(map(_NUMBER.fullmatch, documents)):
        raise _not_text(path, "numbers")
    return documents


def _paragraphs(path: Path) -> Iterator[str]:
    with _beginning(path) as file:
        text = file.read(MAX_CHARACTERS)
    paragraphs = [paragraph for paragraph in text.split("\n\n", MAX_ROWS) if paragraph]
    if len(paragraphs) == 1:  # without blank lines, every line is a document
        return (line[0] for line in _LINE.finditer(text))
    return iter(paragraphs)


def _json_rows(path: Path) -> Iterator[str]:
    columns, has_text = 0, False  # columns of the first row; whether any row has a text
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number} is not JSON") from None
        if not isinstance(row, dict):
            raise ValueError(f'line {number} is not an object such as {{"text": "words"}}')
        columns, has_text = columns or len(row), has_text or "text" in row
        text = row.get("text")
        if not isinstance(text, str | None):
            raise _not_text(path, type(text).__name__)
        (text or "").encode()  # raises UnicodeError for a lone surrogate
        yield text or ""
    if columns and not has_text:
        raise _no_text_column(path, columns)


def _csv_rows(path: Path) -> Iterator[str]:
    rows = csv.reader(_lines(path))
    header = next(rows, [])
    if "text" not in header:
        raise _no_text_column(path, len(header))
    column = header.index("text")
    for row in rows:
        if len(row) > len(header):
            raise ValueError(f"line {rows.line_num} has {len(row)} fields, expected {len(header)} as in the first line")
        yield row[column] if column < len(row) else ""


def _parquet_rows(path: Path) -> Iterator[str]:
    result = run_in_subprocess("parquet", PARQUET_BOUNDS, path=str(path), characters=MAX_CHARACTERS, rows=MAX_ROWS)
    if "columns" in result:
        raise _no_text_column(path, result["columns"])
    if "type" in result:
        raise _not_text(path, result["type"])
    return iter(result["documents"])


def _beginning(path: Path, newline: str | None = None) -> TextIOWrapper:
    """The file's first bytes, in which `MAX_CHARACTERS` and one line more lie, read at once.

    Text is read from a file in pieces of 8 kB, and in a loop of such reads other threads wait for a second.
    """
    with path.open("rb") as file:
        data = file.read(4 * (MAX_CHARACTERS + MAX_LINE + 1))
    return TextIOWrapper(BytesIO(data), encoding="utf-8-sig", newline=newline)


def _lines(path: Path) -> Iterator[str]:
    """Whole lines, with their line ends, until `MAX_CHARACTERS` are read."""
    remaining = MAX_CHARACTERS
    with _beginning(path, newline="") as file:
        while remaining > 0 and (line := file.readline(MAX_LINE + 1)):
            if len(line) > MAX_LINE:
                raise ValueError(f"a line has more than {MAX_LINE:,} characters")
            remaining -= len(line)
            yield line


def _no_text_column(path: Path, columns: int) -> UserError:
    message = "{file} has no column called text (columns: {columns:,}); rename one to text"
    return UserError(message, file=path.name, columns=columns)


def _not_text(path: Path, kind: str) -> UserError:
    message = "{file} has {kind} in its column 'text'; expected strings"
    return UserError(message, file=path.name, kind=Message(kind))


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
