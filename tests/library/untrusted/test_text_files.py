"""Files that ask for more than they are, and the process that reads them: bounded, and nothing of them is told."""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy
import pyarrow
import pytest
from file_formats import write_documents
from pyarrow.parquet import write_table
from refusing import refused

from intraslice.untrusted import process, text_files
from intraslice.untrusted.process import Bounds, run_in_subprocess
from intraslice.untrusted.text_files import MAX_CHARACTERS, MAX_LINE, read_text_file

SECRET = "root:x:0:0:correct-horse"
KINDS = [".txt", ".jsonl", ".csv", ".parquet"]


def repeated(value: str, times: int) -> pyarrow.Table:
    """A column that is one entry of a dictionary, over and over: a few bytes on disk."""
    return pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(numpy.zeros(times, numpy.int32), [value])})


def refusal(path: Path) -> str:
    message = refused(read_text_file, path)
    assert len(message) < 300
    assert str(path.parent) not in message
    assert SECRET not in message
    return message


@pytest.mark.parametrize("suffix", KINDS)
def test_a_beginning_counts_the_same_for_every_caller(suffix, tmp_path, monkeypatch):
    documents = [f"{index:03} " + "words " * 16 for index in range(100)]  # of 100 characters
    path = write_documents(tmp_path / f"own{suffix}", documents)
    assert read_text_file(path) == documents
    monkeypatch.setattr(text_files, "MAX_CHARACTERS", 5_000)
    beginning = read_text_file(path)
    assert beginning == read_text_file(path)
    assert 40 <= len(beginning) <= 51
    assert beginning[:-1] == documents[: len(beginning) - 1]
    monkeypatch.setattr(text_files, "MAX_ROWS", 7)
    assert read_text_file(path) == documents[:7]


def test_repeated_entries_and_rows_without_end_are_not_written_out_nor_other_columns_read(tmp_path):
    write_table(repeated("x" * 4_000_000, 100), tmp_path / "bomb.parquet", compression="zstd")
    assert (tmp_path / "bomb.parquet").stat().st_size < 10_000
    documents = read_text_file(tmp_path / "bomb.parquet")
    assert sum(map(len, documents)) == MAX_CHARACTERS  # of 400 million
    assert len(documents) == 9
    write_table(repeated(" ", 5_000_000), tmp_path / "blank.parquet")
    assert "has no text in it" in refusal(tmp_path / "blank.parquet")
    table = repeated("x" * 40_000_000, 1000).rename_columns(["other"])
    write_table(table.append_column("text", pyarrow.array(["words"] * 1000)), tmp_path / "own.parquet")
    assert read_text_file(tmp_path / "own.parquet") == ["words"] * 1000
    text = "one\vtwo\fthree\x1cfour\x85five\u2028six\n seven \neight"
    (tmp_path / "own.txt").write_text(text)
    assert read_text_file(tmp_path / "own.txt") == text.splitlines()


def test_a_page_that_unpacks_to_more_than_its_process_may_take(tmp_path, monkeypatch):
    write_table(pyarrow.table({"text": ["x" * 100_000_000]}), tmp_path / "page.parquet", compression="zstd")
    monkeypatch.setattr(text_files, "PARQUET_BOUNDS", Bounds(memory=450 * 2**20, seconds=20))
    assert "it takes more than 450 MiB" in refusal(tmp_path / "page.parquet")


def test_a_hundred_thousand_columns_cost_nothing(tmp_path):
    columns = ",".join([f"{SECRET}{index}" for index in range(100_000)])
    (tmp_path / "wide.csv").write_text(f"{columns}\n{columns}\n")
    (tmp_path / "text.csv").write_text(f"{columns},text\n{columns},words\n")
    write_table(pyarrow.table({f"{SECRET}{index}": [1] for index in range(2000)}), tmp_path / "wide.parquet")
    start = time.process_time()
    assert refusal(tmp_path / "wide.csv") == "wide.csv has no column called text (columns: 100,000); rename one to text"
    assert read_text_file(tmp_path / "text.csv") == ["words"]
    assert "no column called text (columns: 2,000)" in refusal(tmp_path / "wide.parquet")
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("long.jsonl", '{"text": "' + "x" * MAX_LINE, "a line has more than 4,194,304 characters"),
        ("long.csv", "text\n" + "x" * (MAX_LINE + 1), "a line has more than 4,194,304 characters"),
        ("deep.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("number.jsonl", "1" * 5000, "line 1 is not JSON"),
        ("list.jsonl", f'["{SECRET}"]', "line 1 is not an object"),
        ("unclosed.csv", 'text\n"' + "x\n" * MAX_LINE, "field larger than field limit"),
        ("ragged.csv", f"text\na\nb,{SECRET}\n", "line 3 has 2 fields, expected 1"),
        ("passwd.csv", f"{SECRET}\n{SECRET}\n", "no column called text (columns: 1)"),
        ("passwd.jsonl", f"{SECRET}\n", "line 1 is not JSON"),
        ("keys.jsonl", json.dumps({SECRET: 1}), "no column called text (columns: 1)"),
        ("values.jsonl", json.dumps({"text": {SECRET: SECRET}}), "has dict in its column 'text'"),
        ("half.jsonl", '{"text": "\\ud800"}', "is not UTF-8"),
        ("passwd.parquet", SECRET * 10, "not a valid parquet file"),
        ("cut.parquet", f"PAR1{SECRET}\x10\x00\x00\x00PAR1", "not a valid parquet file"),
    ],
)
def test_what_is_refused_is_not_quoted(name, content, words, tmp_path):
    (tmp_path / name).write_text(content)
    assert words in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", KINDS)
def test_other_threads_get_their_turns_meanwhile(tmp_path, suffix):
    """In a loop of small reads a thread that waits for the interpreter lock gets none for a second."""
    path = write_documents(tmp_path / f"own{suffix}", ["a few words and no more"] * 200_000)
    ended, turns = threading.Event(), 0

    def take_turns() -> None:
        nonlocal turns
        while not ended.wait(0.001):
            turns += 1

    other = threading.Thread(target=take_turns)
    start = time.thread_time()  # of reading, not of waiting for a processor
    other.start()
    read_text_file(path)
    seconds = time.thread_time() - start
    ended.set()
    other.join()
    assert turns > 20 * seconds


BOUNDS = Bounds(memory=400 * 2**20, seconds=1)


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Makes the script `script` with a body of `run`."""

    def write(body: str) -> None:
        (tmp_path / "child.py").write_text(Path(process.HERE, "child.py").read_text())
        (tmp_path / "script.py").write_text(f"import os, sys, time\ndef run(**given):\n    {body}\n")
        monkeypatch.setattr(process, "HERE", tmp_path)

    return write


def test_answers_and_errors_come_back_of_another_process_with_the_same_packages_and_no_secrets(script, monkeypatch):
    monkeypatch.setattr(process, "TIMEOUT_FACTOR", 60)  # of a busy machine
    script("return given | {'answer': 'half a pair \\ud800, é'}")
    given = {"value": [1, None, "é"]}
    assert run_in_subprocess("script", BOUNDS, **given) == given | {"answer": "half a pair \ud800, é"}
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    script("return [os.getpid(), sys.path, sys.flags.isolated, dict(os.environ)]")
    pid, path, isolated, environment = run_in_subprocess("script", BOUNDS)
    assert "correct-horse" not in environment.values()
    assert pid != os.getpid()
    assert path == sys.path
    assert isolated == 1
    script("raise RuntimeError('broken ' * 100)")
    with pytest.raises(ValueError, match="broken") as caught:
        run_in_subprocess("script", BOUNDS)
    assert len(str(caught.value)) <= 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return len('x' * 10**9)", "it takes more than 400 MiB"),
        ("os._exit(3)", "crashes the library that reads it"),
        ("while True: pass", "it takes more than 1 s"),
        ("time.sleep(60)", "it takes more than 1 s"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no memory")
def test_what_takes_too_much_is_ended(body, words, script, monkeypatch):
    monkeypatch.setattr(process, "TIMEOUT_FACTOR", 1 if "sleep" in body else 10)
    script(body)
    with pytest.raises(ValueError, match=words):
        run_in_subprocess("script", BOUNDS)
