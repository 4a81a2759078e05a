"""Files that untrusted clients upload: good ones, broken ones, and those that are small until they are read."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable

import numpy
import pyarrow
from pyarrow.parquet import write_table

WORDS = ["the", "rain", "falls", "where", "warm", "air", "rises", "and", "cools", "over", "hills", "and", "seas"]
MEBI = 2**20


def files() -> dict[str, bytes]:
    """Contents by name."""
    prose = [" ".join(random.Random(number).choices(WORDS, k=400)) for number in range(80)]
    rows = [{"text": paragraph, "other": number} for number, paragraph in enumerate(prose)]
    layers = [{"layer": layer, "attention_ratio": 0.2, "mlp_ratio": 0.3} for layer in range(30)]
    ratios = "layer,attention_ratio,mlp_ratio\n" + "".join(f"{layer},0.2,0.3\n" for layer in range(30))
    wide = ",".join(f"c{number}" for number in range(200_000))
    return {
        "good.txt": "\n\n".join(prose).encode(),
        "good.csv": "\n".join(["text,other", *(f'"{paragraph}",1' for paragraph in prose)]).encode(),
        "good.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "good.parquet": _parquet(pyarrow.table({"text": prose})),
        "ratios.csv": ratios.encode(),
        "ratios.json": json.dumps(layers).encode(),
        "importances.json": json.dumps({"layers": [{"attention": [0.1] * 9, "mlp": [0.1] * 1536}] * 30}).encode(),
        "deep.json": b"[" * MEBI,
        "deep.jsonl": b'{"text": ' + b"[" * MEBI,
        "numbers.json": b'[{"layer": 1e400, "mlp_ratio": ' + b"9" * 5_000 + b"}]",
        "halves.jsonl": b'{"text": "\\ud800"}\n' * 1000,
        "infinite.csv": b"layer,attention_ratio,mlp_ratio\n0,nan,inf\n1,-1,2\n1,0.1,0.1\n",
        "wide.csv": f"{wide},text\n{wide},words\n".encode(),
        "line.csv": b"text\n" + b"x" * 6 * MEBI,
        "quote.csv": b'text\n"' + b"x\n" * MEBI,
        "formula.csv": b"text\n=cmd|'/C calc'!A0\n<script>alert(1)</script>\n../../etc/passwd\n",
        "nul.csv": b"text\n" + bytes(10_000),
        "latin.txt": "é".encode("latin-1") * 10_000,
        "utf16.txt": "words and words ".encode("utf-16") * 1000,
        "blank.txt": b"\n" * 4 * MEBI,
        "one.txt": b"x" * 4 * MEBI,
        "same.txt": b"a " * 4 * MEBI,
        "empty.csv": b"",
        "empty.txt": b"",
        "empty.parquet": b"",
        "many.parquet": _parquet(pyarrow.table({f"c{number}": [1] for number in range(2000)})),
        "repeated.parquet": _parquet(_repeated("x" * 4_000_000, 200)),
        "blank.parquet": _parquet(_repeated(" ", 5_000_000)),
        "page.parquet": _parquet(pyarrow.table({"text": ["x" * 400_000_000]})),
        "nested.parquet": _parquet(pyarrow.table({"text": [[["x"] * 1000] * 1000]})),
        "magic.parquet": b"PAR1" + bytes(1000) + b"\xff\xff\xff\x7fPAR1",
        "zip.parquet": _zipped(),
        "zip.csv": _zipped(),
        "zip.txt": _zipped(),
        "gzip.jsonl": gzip.compress(b'{"text": "' + b"x" * 200 * MEBI),
        "pickle.csv": pickle.dumps({"text": "words"}),
        "page.html": b"<script>alert(1)</script>",
        "picture.svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "model.gguf": b"GGUF" + b"\xff" * 1000,
        "program.exe": b"MZ" + bytes(1000),
        "large.txt": b"words " * (21 * MEBI // 6),
    }


def mangled(dice: random.Random, name: str, content: bytes) -> tuple[str, bytes]:
    """A file as it is, cut, with some bytes changed, or under another name."""
    way = dice.choice(("whole", "whole", "cut", "changed", "named", "ending"))
    if way == "cut":
        return name, content[: dice.randrange(len(content) + 1)]
    if way == "changed" and content:
        changed = bytearray(content)
        for _ in range(20):
            changed[dice.randrange(len(changed))] = dice.randrange(256)
        return name, bytes(changed)
    if way == "named":
        names = ("../../app.py", "..", ".", "a/b.csv", "x" * 300 + ".csv", "a\0b.csv", "é😀.csv", "CON.csv", "", ".csv")
        return dice.choice(names), content
    if way == "ending":
        return name.split(".")[0] + dice.choice((".csv", ".CSV", ".jsonl", ".parquet", ".txt", ".json", "")), content
    return name, content


def _parquet(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    write_table(table, file, compression="zstd")
    return file.getvalue()


def _repeated(value: str, times: int) -> pyarrow.Table:
    entries: Callable = pyarrow.DictionaryArray.from_arrays
    return pyarrow.table({"text": entries(numpy.zeros(times, numpy.int32), [value])})


def _zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text.csv", bytes(200 * MEBI))
    return file.getvalue()
