"""Files that tests write and change."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas


def edit_json(file: Path, **changes: Any) -> None:
    """Change fields of the JSON object in a file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def configure(**values: Any) -> Callable[[Path], None]:
    """Changes values in the configuration of a model's folder."""
    return lambda folder: edit_json(folder / "config.json", **values)


def write_table(file: Path, **columns: Sequence) -> None:
    """Write columns in the format of the file's name: .jsonl, .csv or .parquet."""
    frame = pandas.DataFrame(columns)
    if file.suffix == ".jsonl":
        frame.to_json(file, orient="records", lines=True)
    else:
        frame.to_csv(file, index=False) if file.suffix == ".csv" else frame.to_parquet(file)


def write_documents(file: Path, documents: Sequence[str]) -> Path:
    """Write documents in the format of the file's name; where that has columns, with an `id` beside the `text`."""
    if file.suffix == ".txt":
        file.write_text("\n\n".join(documents), encoding="utf-8")
    else:
        write_table(file, id=range(len(documents)), text=documents)
    return file
