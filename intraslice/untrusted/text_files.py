"""Text files that people bring -> documents, with bounds on whatever a file can ask for.

What counts of a file is its beginning, the same for every caller: `MAX_CHARACTERS` characters and `MAX_ROWS` rows.
No message quotes what stands in a file, or says where it lies.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from intraslice.core.errors import UserError
from intraslice.untrusted.process import Bounds, run_apart

MAX_CHARACTERS = 2**25  # of a file that are read; of a parquet file, of its column text. Some eight million tokens
MAX_ROWS = 2**20  # that are read, be they blank
MAX_LINE = 2**22  # characters of a line of JSON or CSV: one that is longer is refused
PARQUET_BOUNDS = Bounds(memory=3 * 2**29, seconds=20)

_NUMBER = re.compile(r"[-+]?[\d.,]+")
_LINE = re.compile(r"[^\n\v\f\r\x1c-\x1e\x85\u2028\u2029]+")  # between what `str.splitlines` parts at
csv.field_size_limit(MAX_LINE)


def read_text_file(path: Path) -> list[str]:
    """The documents of a file's beginning: paragraphs of a .txt file, else rows of the column text. Blank ones go.

    Raises:
        UserError: the file cannot be read, is of another kind, or has no text.
    """
    if not path.stat().st_size:
        raise UserError(f"{path.name} is empty; expected text")
    try:
        documents = list(filter(str.strip, islice(READERS[path.suffix.lower()](path), MAX_ROWS)))
    except UserError:
        raise
    except UnicodeError as error:
        raise UserError(f"{path.name} is not UTF-8 ({getattr(error, 'reason', error)}); save it as UTF-8") from error
    except (OSError, ValueError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path.name} cannot be read ({reason}); save it again, or name another file") from error
    if not documents:
        raise UserError(f"{path.name} has no text in it; expected text")
    if path.suffix.lower() == ".csv" and all(map(_NUMBER.fullmatch, documents)):
        raise _not_text(path, "numbers")
    return documents


def _paragraphs(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8-sig") as file:
        text = file.read(MAX_CHARACTERS)
    paragraphs = [paragraph for paragraph in text.split("\n\n", MAX_ROWS) if paragraph]
    if len(paragraphs) == 1:  # no blank line in it: a document a line
        return (line[0] for line in _LINE.finditer(text))
    return iter(paragraphs)


def _json_rows(path: Path) -> Iterator[str]:
    columns, named = 0, False  # of the first row, and whether any has a text
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ValueError(f"line {number} is not JSON") from None
        if not isinstance(row, dict):
            raise ValueError(f'line {number} is no object such as {{"text": "words"}}')
        columns, named = columns or len(row), named or "text" in row
        text = row.get("text")
        if not isinstance(text, str | None):
            raise _not_text(path, type(text).__name__)
        (text or "").encode()  # half of a pair of surrogates can be written, but is no text
        yield text or ""
    if columns and not named:
        raise _no_text_column(path, columns)


def _csv_rows(path: Path) -> Iterator[str]:
    rows = csv.reader(_lines(path))
    header = next(rows, [])
    if "text" not in header:
        raise _no_text_column(path, len(header))
    column = header.index("text")
    for row in rows:
        if len(row) > len(header):
            raise ValueError(f"line {rows.line_num} has {len(row)} fields and the first line {len(header)}")
        yield row[column] if column < len(row) else ""


def _parquet_rows(path: Path) -> Iterator[str]:
    found = run_apart("parquet", PARQUET_BOUNDS, path=str(path), characters=MAX_CHARACTERS, rows=MAX_ROWS)
    if "columns" in found:
        raise _no_text_column(path, found["columns"])
    if "type" in found:
        raise _not_text(path, found["type"])
    return iter(found["documents"])


def _lines(path: Path) -> Iterator[str]:
    """Whole lines, with their ends, until `MAX_CHARACTERS` are read."""
    left = MAX_CHARACTERS
    with path.open(encoding="utf-8-sig", newline="") as file:
        while left > 0 and (line := file.readline(MAX_LINE + 1)):
            if len(line) > MAX_LINE:
                raise ValueError(f"a line has more than {MAX_LINE:,} characters")
            left -= len(line)
            yield line


def _no_text_column(path: Path, columns: int) -> UserError:
    return UserError(f"{path.name} has no column called text among its {columns:,}; name one so")


def _not_text(path: Path, kind: str) -> UserError:
    return UserError(f"{path.name} has {kind} in its column text; expected strings")


READERS: dict[str, Callable[[Path], Iterator[str]]] = {
    ".txt": _paragraphs,
    ".jsonl": _json_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
