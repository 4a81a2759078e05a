"""Hostile models as the Hub's local cache holds them, which is the door that every download ends at."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from tests.support.library.tiny_models import VOCABULARY, llama_gqa

OWNER = "somebody"
MARK = "wrote-this"  # the name of a file that code of a model would write


def write_models(hub: Path, count: int) -> dict[str, bool]:
    """Write so many models into a Hub cache; whether each is to be taken, by its id. The first of them is."""
    made: dict[str, bool] = {}
    good = hub.parent / "good"
    llama_gqa().save_pretrained(good)
    tokenizer = Tokenizer(WordLevel({f"w{index}": index for index in range(VOCABULARY)}, unk_token="w3"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w3", eos_token="w2").save_pretrained(good)
    for number in range(count):
        name, spoil = WAYS[number % len(WAYS)]
        folder = hub / f"models--{OWNER}--{name}{number}"
        commit = hashlib.sha1(folder.name.encode()).hexdigest()
        snapshot = folder / "snapshots" / commit
        shutil.copytree(good, snapshot)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        spoil(snapshot)
        made[f"{OWNER}/{name}{number}"] = name in TAKEN
    return made


def _config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "config.json", changes)


def _template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def _instead(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def _weights(header: dict, data: bytes = bytes(4)) -> Callable[[Path], None]:
    encoded = json.dumps({"model.norm.weight": header}).encode()
    return _instead("model.safetensors", struct.pack("<Q", len(encoded)) + encoded + data)


def _without_weights(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return spoil


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _with_code(folder: Path) -> None:
    _edit(folder / "config.json", {"auto_map": {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}})
    (folder / "code.py").write_text(f"open({str(folder / MARK)!r}, 'w').close()\n")


def _many_words(folder: Path) -> None:
    _edit(folder / "tokenizer.json", {"model": {"type": "WordLevel", "vocab": {f"w{i}": i for i in range(500_000)}}})


def _nested_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"a":' * 100_000)


def _edit(file: Path, changes: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class _Writes:
    def __reduce__(self) -> tuple:
        return (open, (MARK, "w"))


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BOMB = (
    "{% set ns = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}"
)
TAKEN = ("good", "doubling", "counting", "escaping", "writing", "coded", "sliced")  # without their code and templates
WAYS: list[tuple[str, Callable[[Path], Any]]] = [
    ("good", lambda folder: None),
    ("doubling", _template(BOMB)),
    ("counting", _template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")),
    ("escaping", _template("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os }}")),
    ("writing", _template("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}")),
    ("coded", _with_code),
    ("layers", _config(num_hidden_layers=10**9)),
    ("layer500", _config(num_hidden_layers=500)),
    ("wide", _config(hidden_size=2**40)),
    ("neurons", _config(intermediate_size=10**9)),
    ("vocabulary", _config(vocab_size=10**12)),
    ("heads", _config(num_attention_heads=10**9, num_key_value_heads=10**9)),
    ("none", _config(num_attention_heads=0)),
    ("labels", _config(num_labels=10**10)),
    ("family", _config(model_type="../../etc/passwd")),
    ("named", _config(transformers_weights="/etc/passwd")),
    ("quantised", _config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
    ("nested", _instead("config.json", b"[" * 10**6)),
    ("long", _instead("config.json", b'{"model_type": "llama", "x": "' + b"x" * 2**23 + b'"}')),
    ("cut", _cut),
    ("header", _instead("model.safetensors", struct.pack("<Q", 2**62))),
    ("shape", _weights(ENTRY | {"shape": [2**31, 2**31]})),
    ("offsets", _weights(ENTRY | {"data_offsets": [0, 2**62]})),
    ("negative", _weights(ENTRY | {"shape": [-1, -1]})),
    ("index", _without_weights("model.safetensors.index.json", b'{"weight_map": {"x": "../../../../../etc/passwd"}}')),
    ("pickled", _without_weights("pytorch_model.bin", pickle.dumps(_Writes()))),
    ("gguf", _without_weights("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))),
    ("words", _many_words),
    ("tokens", _nested_tokenizer),
    ("sliced", _instead("intraslice.json", b'{"format": 1, "layers": ' + b"[" * 10**6)),
]
