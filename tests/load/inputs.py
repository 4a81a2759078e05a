"""What the fuzzer sends and finds: values of parameters, uploaded files, and models in the local cache of the Hub."""

import gzip
import hashlib
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pyarrow
from pyarrow.parquet import write_table
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from components import limits
from components.state.settings import Settings
from intraslice.core import checks
from tests.support.library.file_formats import configure, edit_json
from tests.support.library.tiny_models import FAMILIES, VOCABULARY

GOOD: dict[str, Sequence[Any]] = {
    "sequences": (1, 2, 4),
    "length": (32, 64, 128),
    "samples": (0, 1),
    "seed": range(4),
    "sparsity": (0, 10, 30, 45),
    "tokens": (1, 4),
    "temperature": (0, 0.7),
    "layer": range(30),
    "prompt": ("Why does it rain?", "😀 " * 20),
    "passage": ("It rains where air rises.",),
    "locked": ("", "2 mlp 25"),
    "methods": (["intraslice"], ["intraslice", "magnitude"]),
    "estimators": (["pca"], ["fisher", "uniform"]),
    "sparsities": ([20], [10, 30]),
    "speed": (False,),
    "quantise": (["none"], ["none", "q4_0"]),
    "gguf_type": ("f16", "q4_0"),
}


def bounds() -> dict[str, Sequence[Any]]:
    """By parameter: the largest and smallest that are taken where the page is hosted, and those next to them."""
    return {
        "sequences": (limits.SEQUENCES.value, limits.SEQUENCES.value + 1, 0),
        "length": (limits.LENGTH.value, limits.LENGTH.value + 1, 2, 1),
        "samples": (limits.SEQUENCES.value, limits.SEQUENCES.value + 1, -1),
        "seed": (checks.MAX_INTEGER, checks.MAX_INTEGER + 1),
        "sparsity": (80, 80.000001, -1e-9),
        "bias": (0.2, 2, 2.0001, 0.1999),
        "cap": (0, 100, 100.1),
        "tokens": (1, limits.NEW_TOKENS.value, limits.NEW_TOKENS.value + 1),
        "temperature": (limits.TEMPERATURE.value, limits.TEMPERATURE.value + 0.01),
        "layer": (29, 30, 10_000, 10_001),
        "prompt": ("", "x" * limits.PROMPT.value, "😀" * (limits.PROMPT.value + 1)),
        "passage": ("", "x " * (limits.PASSAGE.value // 2), "x" * (limits.PASSAGE.value + 1)),
        "locked": ("0 mlp 5," * (limits.LOCKED.value // 8), "0 mlp 5," * limits.LOCKED.value, "999 mlp 5", "0 mlp nan"),
        "model": ("a/" + "b" * (limits.NAME.value - 2), "a/" + "b" * limits.NAME.value),
        "sparsities": (list(range(80)), list(range(1000)), [], ["20"], [float("nan")]),
        "methods": (["intraslice+"], ["intraslice"] * 1000, [["a"]], "intraslice"),
        "estimators": (["pca"] * 1000, ["mine.py:importances"], []),
        "quantise": (["f32"] * 1000, ["q2_k"], "none", []),
        "gguf_type": ("f32", "q2_k", ""),
    }


def paths(server: str) -> list[str]:
    """Of what lies on a server whose page is in the folder `server`."""
    return [
        *("/etc/passwd", "file:///etc/passwd", "~/.bashrc", "/proc/self/environ", "/dev/zero", "\\\\host\\share", ".."),
        *(f"{server}/app.py", f"{server}/secret.csv", f"{server}/secret.json", f"file://{server}/secret.csv"),
        *("app.py", "secret.csv", "../server/secret.csv", "components/frame", "assets/lesson", "mine.py:importances"),
        *("../" * 20 + "etc/passwd", "http://169.254.169.254/latest/meta-data", "http://127.0.0.1:1/x.csv"),
    ]


def rubbish(server: str) -> list[Any]:
    """What is good for no parameter."""
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    names = paths(server)
    return [
        *(None, True, -1, 10**30, 1e300, float("nan"), float("inf"), -float("inf"), 10**400, 0.5, "7"),
        *("", " ", "\0", "\ud800", "x" * 100_000, "é" * 50_000, "\u202e\u0000\ufeff", "%s%n{0}{settings}"),
        *("'; DROP TABLE models;--", "<script>alert(1)</script>", "{{7*7}}", "$(id)", "`id`", "__import__('os')"),
        *([], {}, [[]], {"a": 1}, deep, list(range(10_000)), {"__type__": "update", "choices": ["x"], "value": "x"}),
        *("somebody/none", "meta-llama/Llama-3.2-1B", "a/../b", "default ", "gpt2", "somebody/none/../../etc"),
        *names,
        *({"path": name, "meta": {"_type": "gradio.FileData"}} for name in names),
        {"path": "x.csv", "url": "http://127.0.0.1:1/x.csv", "meta": {"_type": "gradio.FileData"}},
        {"path": 7, "meta": {"_type": "gradio.FileData"}},
    ]


def drawn(dice: random.Random, parameters: Sequence[dict[str, Any]], server: str) -> list[Any]:
    """A value for each parameter, as the API describes it: all good, or up to three of them not."""
    values = [_good(dice, parameter) for parameter in parameters]
    usual, at_bounds, worst = Settings()._asdict(), bounds(), rubbish(server)
    for index in dice.sample(range(len(values)), min(len(values), dice.choice((0, 1, 1, 2, 3)))):
        name = parameters[index]["parameter_name"]
        ways = [at_bounds.get(name, worst), worst, parameters[index]["type"].get("enum") or [usual.get(name)]]
        values[index] = dice.choice(dice.choice(ways))
    shape = dice.random()
    if shape < 0.03:
        return values[: dice.randrange(len(values) + 1)]
    return values + [dice.choice(worst)] * 3 if shape > 0.98 else values


def _good(dice: random.Random, parameter: dict[str, Any]) -> Any:
    name = parameter["parameter_name"]
    return dice.choice(GOOD[name]) if name in GOOD else parameter.get("parameter_default")


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
        "good.parquet": parquet(pyarrow.table({"text": prose})),
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
        "many.parquet": parquet(pyarrow.table({f"c{number}": [1] for number in range(2000)})),
        "repeated.parquet": parquet(repeated("x" * 4_000_000, 200)),
        "blank.parquet": parquet(repeated(" ", 5_000_000)),
        "page.parquet": parquet(pyarrow.table({"text": ["x" * 400_000_000]})),
        "nested.parquet": parquet(pyarrow.table({"text": [[["x"] * 1000] * 1000]})),
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


def parquet(table: pyarrow.Table) -> bytes:
    file = io.BytesIO()
    write_table(table, file, compression="zstd")
    return file.getvalue()


def repeated(value: str, times: int) -> pyarrow.Table:
    entries: Callable = pyarrow.DictionaryArray.from_arrays
    return pyarrow.table({"text": entries(numpy.zeros(times, numpy.int32), [value])})


def _zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("text.csv", bytes(200 * MEBI))
    return file.getvalue()


OWNER = "somebody"
MARK = "wrote-this"  # the name of a file that code of a model would write


def write_models(hub: Path, count: int) -> dict[str, bool]:
    """Write so many models into a Hub cache; whether each is to be taken, by its id. The first of them is."""
    made: dict[str, bool] = {}
    good = hub.parent / "good"
    FAMILIES["llama-gqa"]().save_pretrained(good)
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


def _instead(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content)


def _template(text: str) -> Callable[[Path], None]:
    return _instead("chat_template.jinja", text.encode())


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
    configure(auto_map={"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"})(folder)
    (folder / "code.py").write_text(f"open({str(folder / MARK)!r}, 'w').close()\n")


def _many_words(folder: Path) -> None:
    vocabulary = {f"w{i}": i for i in range(500_000)}
    edit_json(folder / "tokenizer.json", model={"type": "WordLevel", "vocab": vocabulary})


class _Writes:
    def __reduce__(self) -> tuple:
        return (open, (MARK, "w"))


ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BOMB = "{% set n = namespace(x='x' * 1000) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
TAKEN = ("good", "doubling", "counting", "escaping", "writing", "coded", "sliced")  # without their code and templates
WAYS: list[tuple[str, Callable[[Path], Any]]] = [
    ("good", lambda folder: None),
    ("doubling", _template(BOMB)),
    ("counting", _template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")),
    ("escaping", _template("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os }}")),
    ("writing", _template("{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}")),
    ("coded", _with_code),
    ("layers", configure(num_hidden_layers=10**9)),
    ("layer500", configure(num_hidden_layers=500)),
    ("wide", configure(hidden_size=2**40)),
    ("neurons", configure(intermediate_size=10**9)),
    ("vocabulary", configure(vocab_size=10**12)),
    ("heads", configure(num_attention_heads=10**9, num_key_value_heads=10**9)),
    ("none", configure(num_attention_heads=0)),
    ("labels", configure(num_labels=10**10)),
    ("family", configure(model_type="../../etc/passwd")),
    ("named", configure(transformers_weights="/etc/passwd")),
    ("quantised", configure(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})),
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
    ("tokens", _instead("tokenizer.json", b'{"a":' * 100_000)),
    ("sliced", _instead("intraslice.json", b'{"format": 1, "layers": ' + b"[" * 10**6)),
]
