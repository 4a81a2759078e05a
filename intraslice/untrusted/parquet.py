"""Reads the column `text` of a parquet file, row by row up to a limit. Runs in a separate process."""

from typing import Any

import pyarrow
from pyarrow.parquet import ParquetFile

BATCH = 2**24  # bytes of text per batch, by the sizes in the file's metadata: a row may be a word or a book
BUFFER = 2**20  # bytes; without a buffer, a whole column chunk is read at once


def run(path: str, characters: int, rows: int) -> dict[str, Any]:
    """`documents`, or, if there is no text column, the number of `columns`, or the `type` of a column that is not text.

    The last document is truncated to the limit on characters. Raises ValueError for an invalid parquet file.
    """
    try:
        schema = ParquetFile(path).schema_arrow
        if "text" not in schema.names:
            return {"columns": len(schema.names)}
        kind, types = schema.field("text").type, pyarrow.types
        value_kind = kind.value_type if types.is_dictionary(kind) else kind
        text_kinds = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
        if not any(is_kind(value_kind) for is_kind in text_kinds):
            return {"type": str(kind)[:40]}
        # Dictionary-encoded columns stay encoded: decoded, a few bytes could become gigabytes.
        dictionaries = ["text"] if types.is_string(kind) else None
        file = ParquetFile(path, buffer_size=BUFFER, read_dictionary=dictionaries)
        return {"documents": _texts(file, characters, rows)}
    except MemoryError:
        raise
    except UnicodeDecodeError:
        raise ValueError("its text is not UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"it is not a valid parquet file: {type(error).__name__}") from error


def _texts(file: ParquetFile, characters: int, rows: int) -> list[str]:
    metadata, texts = file.metadata, list[str]()
    column = metadata.schema.names.index("text")
    groups = [metadata.row_group(index).column(column) for index in range(metadata.num_row_groups)]
    size = max(1, sum(group.total_uncompressed_size for group in groups))
    batch_rows = min(max(1, BATCH * metadata.num_rows // size), 2**14)
    for batch in file.iter_batches(batch_rows, columns=["text"], use_threads=False):
        for value in batch.column(0):
            if len(texts) >= rows or characters <= 0:
                return texts
            texts.append((value.as_py() or "")[:characters])
            characters -= len(texts[-1])
    return texts
