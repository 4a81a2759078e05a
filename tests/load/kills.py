"""`python -m tests.load.kills`: real work killed at 20 moments, run again, and looked at; one table.

Ends with 1 where a line does not hold.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from intraslice.__main__ import main as command
from intraslice.core.cache import cache_folder
from intraslice.pretrained.sources import DEFAULT, obtain_weights

SMALL = ["--sequences", "4", "--length", "128", "--order", "one-shot", "--json"]
MEASURED = ["--eval-tokens", "512", "--no-speed"]


def convert(_: Path) -> Any:
    """Dequantise the default model; a digest of each of its files."""
    return _digests(obtain_weights(DEFAULT).folder)


def calibrate(out: Path) -> Any:
    """Ratios by a calibration, and their file."""
    return _told(["ratios", *SMALL, "--csv", str(out / "ratios.csv")])["layers"]


def save(out: Path) -> Any:
    """A sliced model as a folder and as a file for llama.cpp; a digest of each."""
    folder, file = out / "sliced", out / "sliced.gguf"
    if not folder.exists():  # nothing is written over
        _told(["slice", *SMALL, "--out", str(folder)])
    if not file.exists():
        _told(["export", "--model", str(folder), "--gguf", str(file), "--json"])
    return _digests(out)


def sweep(out: Path) -> Any:
    """Perplexities of two models, and their file."""
    points = ["--methods", "intraslice", "--estimators", "pca", "--sparsities", "0.2", "0.4"]
    rows = _told(["sweep", *SMALL, *points, *MEASURED, "--csv", str(out / "sweep.csv")])["rows"]
    return [[row["method"], row["sparsity"], row["perplexity"]] for row in rows]


# And what the cache has of before.
WORKS = {convert: ("wheels",), **dict.fromkeys((calibrate, save, sweep), ("wheels", "models"))}


class Outcome(NamedTuple):
    """Of one run: what it answered, nothing if it was killed; and the files that there were at its end."""

    answer: Any
    files: set[str]
    seconds: float


def main() -> None:
    """Kill every work at its moments, and tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.load.kills", description=__doc__)
    parser.add_argument("--moments", type=int, default=5, help="of each work, evenly over its time")
    moments, home, held = parser.parse_args().moments, cache_folder(), True
    print("| | seconds, CPU | left half done when killed | numbers afterwards | left after the next start |")
    print("|---|---|---|---|---|")
    for work, kept in WORKS.items():
        with _place(home, kept) as place:
            whole = run(work, place)
        half = unequal = moment = 0
        left: set[str] = set()
        seconds = whole.seconds
        while moment < moments:
            with _place(home, kept) as place:
                first = run(work, place, seconds * (moment + 0.5) / moments)
                if first.answer is not None:  # done before its moment, so it is faster now: this moment once more
                    seconds = 0.95 * min(seconds, first.seconds)
                    continue
                moment += 1
                half += bool(first.files - whole.files)
                again = run(work, place)
                unequal += again.answer != whole.answer
                left |= again.files ^ whole.files
        held = held and not unequal and not left
        numbers = f"{unequal} of {moments} differ" if unequal else "equal"
        print(
            f"| {work.__name__} | {whole.seconds:.1f} | {half} of {moments} | {numbers} | "
            f"{', '.join(sorted(left)) or 'nothing'} |",
            flush=True,
        )
    sys.exit(not held)


def run(work: Callable[[Path], Any], place: Path, kill_after: float = math.inf) -> Outcome:
    """One run in a process of its own, ended by SIGKILL after so many seconds of computing if it is still at work."""
    context = multiprocessing.get_context("fork")  # imports are not what is to be killed
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(work, place, sender))
    process.start()
    sender.close()
    answer, computed, child = None, 0.0, psutil.Process(process.pid)
    while not receiver.poll(0.01):
        if (computed := sum(child.cpu_times()[:2])) >= kill_after:
            process.kill()
            break
    else:
        with contextlib.suppress(EOFError):
            answer = receiver.recv()
    process.join()
    if answer is None and kill_after == math.inf:
        raise RuntimeError(f"{work.__name__} ended with {process.exitcode}; what it printed says why")
    return Outcome(answer, _files(place), computed)


def _answer(work: Callable[[Path], Any], place: Path, sender: Connection) -> None:
    os.environ["INTRASLICE_CACHE"] = str(place / "cache")
    sender.send(work(place / "out"))


@contextlib.contextmanager
def _place(home: Path, kept: tuple[str, ...]) -> Any:
    """An empty folder for what comes out, and a cache that has some of another's."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("cache", "out"):
            (place / name).mkdir()
        for name in kept:
            (place / "cache" / name).symlink_to(home / name)
        yield place


def _files(place: Path) -> set[str]:
    return {str(file.relative_to(place)) for file in place.rglob("*")}


def _digests(folder: Path) -> dict[str, str]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _told(words: list[str]) -> Any:
    """The JSON that a command answers with."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()) as errors:
        if command(words):
            raise RuntimeError(errors.getvalue()[-300:])
    return json.loads(said.getvalue())


if __name__ == "__main__":
    main()
