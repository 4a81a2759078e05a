"""Reads the headers of weight files: names and shapes of tensors, and the metadata fields of a GGUF file.

A reader allocates memory by what the header claims. Headers are therefore read within bounds, and a claim that the file
is too short for is refused. Every function raises ValueError, with a clause that completes a sentence about the file.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

Shapes = dict[str, tuple[int, ...]]

MAX_JSON = 2**20  # bytes of a model's safetensors headers, index of shards or configuration: 8,000 tensors
MAX_TENSORS = 2**15
MAX_VALUES = 2**20  # in all arrays of a GGUF file: vocabulary and merges. gguf-py takes a kilobyte for each
MAX_TEXT = 2**20  # bytes of one string in a GGUF file
MAX_DIMENSIONS = 8

# struct formats by GGUF's value type.
_FORMATS = dict(enumerate(("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"))) | {10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9


def read_json(file: Path) -> dict[str, Any]:
    """Read a file with a JSON object of bounded size."""
    if file.stat().st_size > MAX_JSON:
        raise ValueError(f"{file.name} has more than {MAX_JSON:,} bytes")
    return _json_object(file.read_bytes(), file.name)


def safetensors_shapes(*files: Path) -> Shapes:
    """Shapes of all tensors of a model's files, by name."""
    shapes: Shapes = {}
    left = MAX_JSON  # for all: parsed, a header takes up to forty times its bytes
    for file in files:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(size - 8, left):
                raise ValueError(
                    f"{file.name} is truncated, or the headers of the model have more than {MAX_JSON:,} bytes"
                )
            header = _json_object(opened.read(length), file.name)
        header.pop("__metadata__", None)
        left, unclaimed = left - length, size - 8 - length
        for name, entry in header.items():
            try:
                shape, (start, end) = tuple(entry["shape"]), entry["data_offsets"]
                valid = all(type(number) is int and number >= 0 for number in (*shape, start, end))
            except (TypeError, KeyError, ValueError):
                valid = False
            # No value takes less than half a byte.
            if not valid or len(shape) > MAX_DIMENSIONS or math.prod(shape) > 2 * (end - start):
                raise ValueError(f"{file.name} has an invalid header")
            shapes[name], unclaimed = shape, unclaimed - (end - start)
        if unclaimed < 0:
            raise ValueError(f"{file.name} is shorter than its header says")
    return shapes


Fields = dict[str, str | int | float]  # of a GGUF file: numbers and strings, and the length of each array


def gguf_header(file: Path) -> tuple[Shapes, Fields]:
    """Shapes by GGUF's tensor names, in the order of torch's axes, and the fields. Needs the package gguf."""
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _read_gguf(_Cursor(data))
        except struct.error:
            raise ValueError(f"{file.name} ends within its header") from None


class _Cursor:
    """A position in a file, and the number of array values that may still follow."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position, self.values_left = data, 0, MAX_VALUES

    def number(self, format: str) -> Any:
        """The next number, an int or a float, by its struct format."""
        (value,) = struct.unpack_from(format, self.data, self.position)
        self.position += struct.calcsize(format)
        return value

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise ValueError("it is shorter than its header says")

    def text(self) -> str:
        length = self.number("<Q")
        if length > MAX_TEXT:
            raise ValueError(f"a string in its header has more than {MAX_TEXT:,} bytes")
        start = self.position
        self.skip(length)
        return self.data[start : self.position].decode("utf-8", "replace")

    def array(self) -> int:
        kind, length = self.number("<I"), self.number("<Q")
        self.values_left -= length
        if self.values_left < 0:
            raise ValueError(f"the arrays in its header have more than {MAX_VALUES:,} values")
        if kind == _TEXT:
            for _ in range(length):
                self.skip(self.number("<Q"))
        elif kind in _FORMATS:
            self.skip(length * struct.calcsize(_FORMATS[kind]))
        else:
            raise ValueError(f"its header has arrays of the unknown type {kind}")
        return length

    def value(self) -> str | int | float:
        kind = self.number("<I")
        if kind == _TEXT:
            return self.text()
        if kind == _ARRAY:
            return self.array()
        if kind not in _FORMATS:
            raise ValueError(f"its header has values of the unknown type {kind}")
        return self.number(_FORMATS[kind])


def _read_gguf(cursor: _Cursor) -> tuple[Shapes, Fields]:
    from gguf.constants import GGML_QUANT_SIZES

    block_sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    magic, version = cursor.number("<I").to_bytes(4, "little"), cursor.number("<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("it is not a GGUF file of version 2 or 3")
    tensors, count = cursor.number("<Q"), cursor.number("<Q")
    if max(tensors, count) > MAX_TENSORS:
        raise ValueError(f"its header counts {max(tensors, count):,} entries; expected at most {MAX_TENSORS:,}")
    fields = {cursor.text(): cursor.value() for _ in range(count)}
    shapes, end = {}, 0
    for _ in range(tensors):
        name, dimensions = cursor.text(), cursor.number("<I")
        if dimensions > MAX_DIMENSIONS:
            raise ValueError(f"its header has a tensor of {dimensions:,} dimensions")
        sizes = [cursor.number("<Q") for _ in range(dimensions)]
        kind, offset = cursor.number("<I"), cursor.number("<Q")
        if kind not in block_sizes:
            raise ValueError(f"its header has tensors of the unknown type {kind}")
        block_values, block_bytes = block_sizes[kind]
        shapes[name] = tuple(reversed(sizes))
        end = max(end, offset + math.prod(sizes) // block_values * block_bytes)
    if cursor.position + end > len(cursor.data):
        raise ValueError("it is shorter than its header says")
    return shapes, fields


def _json_object(text: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value
