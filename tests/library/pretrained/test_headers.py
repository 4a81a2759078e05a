"""Weight files and configurations that lie: refused by their headers, in little memory and time, with nothing built."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy
import pytest
from file_formats import configure
from forked import answers_of
from refusing import refused
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from intraslice.loading import load_model
from intraslice.pretrained import reader
from intraslice.pretrained.memory import estimate_memory
from intraslice.pretrained.reader import MAX_JSON, MAX_VALUES, Weights, gguf_header, read_config, safetensors_shapes

resource = pytest.importorskip("resource", reason="this system bounds no process")

GROWTH = 3 * 2**30  # bytes: what a hostile file may at most take in a test, should it not be refused
SECONDS = 20
HIDDEN, NEURONS, VOCABULARY = 16, 24, 300


def refusal(work: Callable[[], object]) -> str:
    """The one line in which `work` is refused, found in a bounded process: unrefused, it would take the machine."""

    def bounded() -> str:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_AS, (size + GROWTH,) * 2)
        resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + SECONDS,) * 2)
        return refused(work)

    (message,) = answers_of([bounded])
    assert len(message) < 400
    return message


def write_gguf(path: Path, layers: int = 2, **changes: int) -> Path:
    """A tiny Llama; `changes` make its fields lie."""
    said = {"block_count": layers, "embedding_length": HIDDEN, "feed_forward_length": NEURONS} | changes
    writer = gguf.GGUFWriter(path, "llama")
    for field, value in {"context_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2, **said}.items():
        writer.add_uint32(f"llama.{field}", value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["t", "1", "<|endoftext|>", *(f"t{index}" for index in range(VOCABULARY - 3))])
    writer.add_token_types([1] * VOCABULARY)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)
    random = numpy.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(numpy.float32))

    tensor("token_embd", VOCABULARY, HIDDEN)
    tensor("output_norm", HIDDEN)
    for layer in range(layers):
        shapes = dict.fromkeys(("attn_norm", "ffn_norm"), (HIDDEN,))
        shapes |= dict.fromkeys(("attn_q", "attn_output"), (HIDDEN, HIDDEN))
        shapes |= dict.fromkeys(("attn_k", "attn_v"), (HIDDEN // 2, HIDDEN))
        shapes |= dict.fromkeys(("ffn_gate", "ffn_up"), (NEURONS, HIDDEN)) | {"ffn_down": (HIDDEN, NEURONS)}
        for name, shape in shapes.items():
            tensor(f"blk.{layer}.{name}", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def gguf_bytes(fields: bytes = b"", tensors: bytes = b"", counts: tuple[int, int] | None = None) -> bytes:
    count = counts or (bool(tensors), bool(fields))
    return b"GGUF" + struct.pack("<IQQ", 3, *count) + fields + tensors


def array_of(kind: int, length: int) -> bytes:
    return gguf_bytes(text("general.languages") + struct.pack("<IIQ", 9, kind, length))


def test_a_gguf_file_is_counted_and_loaded(tmp_path, capfd):
    path = write_gguf(tmp_path / "tiny.gguf")
    reader = gguf.GGUFReader(path)
    shapes, fields, _ = gguf_header(path)
    assert shapes == {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    loaded = load_model(str(path))
    counted = sum(parameter.numel() for parameter in loaded.model.parameters())
    assert estimate_memory(str(path)).parameters == counted == sum(int(tensor.n_elements) for tensor in reader.tensors)
    assert fields["llama.block_count"] == 2
    own = read_config(Weights(tmp_path, "", path.name))
    whole = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name)
    assert own.to_dict() | {"_name_or_path": ""} == whole.to_dict() | {"_name_or_path": ""}
    assert capfd.readouterr().err == ""  # transformers would show a bar


def test_a_safetensors_header_gives_names_and_shapes_with_or_without_their_prefix(folder):
    tensors = load_file(folder / "model.safetensors")
    assert safetensors_shapes(folder / "model.safetensors") == {name: tuple(t.shape) for name, t in tensors.items()}
    whole = load_model(str(folder)).fingerprint
    save_file({n.removeprefix("model."): t for n, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    assert load_model(str(folder)).fingerprint == whole


def test_shards_are_read_together(folder, tiny_llama_gqa):
    whole = load_model(str(folder))
    (folder / "model.safetensors").unlink()
    tiny_llama_gqa().save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert estimate_memory(str(folder)).parameters == sum(p.numel() for p in whole.model.parameters())
    assert load_model(str(folder)).fingerprint == whole.fingerprint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(array_of(4, 2**62), "more than 1,048,576 values", id="numbers"),
        pytest.param(array_of(9, 2**62), "more than 1,048,576 values", id="arrays"),
        pytest.param(array_of(9, 3), "arrays of the unknown type 9", id="nested"),
        pytest.param(array_of(0, MAX_VALUES), "is shorter than its header says", id="short-numbers"),
        pytest.param(array_of(8, MAX_VALUES), "ends within its header", id="short-texts"),
        pytest.param(gguf_bytes(struct.pack("<Q", 2**62)), "has more than 1,048,576 bytes", id="name"),
        pytest.param(gguf_bytes(text("a") + struct.pack("<IQ", 8, 2**62)), "more than 1,048,576 bytes", id="text"),
        pytest.param(gguf_bytes(text("a") + struct.pack("<I", 99)), "unknown type 99", id="kind"),
        pytest.param(gguf_bytes(counts=(2**62, 0)), "expected at most 32,768", id="tensors"),
        pytest.param(gguf_bytes(counts=(0, 2**62)), "expected at most 32,768", id="fields"),
        pytest.param(gguf_bytes(tensors=text("t") + struct.pack("<I", 2**31)), "2,147,483,648 dim", id="dimensions"),
        pytest.param(
            gguf_bytes(tensors=text("t") + struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0)), "shorter", id="sizes"
        ),
        pytest.param(gguf_bytes(tensors=text("t") + struct.pack("<IQIQ", 1, 1, 0, 2**62)), "shorter", id="offset"),
        pytest.param(gguf_bytes(tensors=text("t") + struct.pack("<IQIQ", 1, 1, 99, 0)), "unknown type 99", id="type"),
        pytest.param(b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 2 or 3", id="version"),
        pytest.param(b"GGUF\x03", "ends within its header", id="end"),
        pytest.param(b"no such thing", "is not a GGUF file", id="magic"),
    ],
)
def test_a_gguf_header_is_not_believed(content, words, tmp_path):
    path = tmp_path / "bomb.gguf"
    path.write_bytes(content)
    for work in (estimate_memory, load_model):
        message = refusal(lambda work=work: work(str(path)))
        assert words in message
        assert str(tmp_path) not in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_count": 10**9}, "num_hidden_layers is above 512"),
        ({"block_count": 400}, "has 2 layers, expected"),
        ({"embedding_length": 2**24}, "lacks"),
        ({"feed_forward_length": 2**31}, "lacks"),
        ({"attention.head_count": 2**20}, "configuration"),
        ({"vocab_size": 2**31}, "lacks tensors of shape"),
    ],
)
def test_fields_of_a_gguf_file_must_agree_with_its_tensors(changes, words, tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", **changes)
    assert words in refusal(lambda: load_model(str(path)))


def test_a_gguf_file_of_another_family_is_refused_by_its_header(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes().replace(text("llama"), text("gemma")))
    monkeypatch.setattr(reader.AutoConfig, "from_pretrained", lambda *given, **options: pytest.fail("was read"))
    assert "model type 'gemma' cannot be sliced" in refusal(lambda: load_model(str(path)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is above 512"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers is above 512"),
        ({"num_hidden_layers": 500}, "has 3 layers, expected"),
        ({"num_hidden_layers": -1}, "layers"),
        ({"num_labels": 10**10}, "num_labels is above 1024"),
        ({"hidden_size": 9 * 10**6}, "according to its configuration"),
        ({"intermediate_size": 10**9}, "of shape (54, 132), expected (54, 1000000000)"),
        ({"vocab_size": 10**12}, "of shape (256, 54), expected"),
        ({"vocab_size": -1}, "configuration"),
        ({"num_attention_heads": 10**9, "num_key_value_heads": 10**9}, "configuration"),
        ({"num_attention_heads": 0}, "configuration"),
        ({"pad_token_id": 10**9}, "configuration"),
        ({"tie_word_embeddings": False}, "lacks tensors of the model (1), such as lm_head.weight"),
        ({"attention_bias": True}, "lacks tensors of the model (12)"),
        ({"model_type": "gemma3", "num_hidden_layers": 400}, "cannot be sliced"),
        ({"model_type": ["llama"]}, "has no model_type"),
        ({"model_type": "x" * 10**6}, "cannot be sliced"),
        ({"transformers_weights": "other.safetensors"}, "has the field transformers_weights"),
        ({"padding": "x" * MAX_JSON}, "config.json has more than 1,048,576 bytes"),
    ],
    ids=lambda value: ",".join(value)[:40] if isinstance(value, dict) else "",
)
def test_a_configuration_must_agree_with_the_weights(changes, words, folder):
    configure(**changes)(folder)
    assert words in refusal(lambda: load_model(str(folder)))


def test_a_configuration_that_nests_without_end(folder):
    (folder / "config.json").write_text("[" * 10**6)
    assert "config.json is not a JSON object" in refusal(lambda: reader.read_config(reader.Weights(folder, "it")))


def safetensors(header: object, data: bytes = b"") -> bytes:
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


ENTRIES = (  # of a header, which lie
    {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**62]},
    {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": 7, "data_offsets": [0, 4]},
    {"dtype": "F32", "shape": [1]},
    {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
    ["F32"],
)
NO_HEADERS = (b"", b"short", struct.pack("<Q", 2**62), struct.pack("<Q", 10**9) + b"{}")


@pytest.mark.parametrize(
    "content", [*NO_HEADERS, *(safetensors({"model.norm.weight": entry}, bytes(4)) for entry in ENTRIES)]
)
def test_a_safetensors_header_is_not_believed(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    for work in (estimate_memory, load_model):
        assert "model.safetensors" in refusal(lambda work=work: work(str(folder)))


def test_all_headers_of_a_model_together_are_bounded(folder):
    (folder / "model.safetensors").unlink()
    names = [f"model-{number}.safetensors" for number in range(5)]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {name: name for name in names}}))
    for name in names:
        (folder / name).write_bytes(safetensors({"__metadata__": {"a": "x" * (MAX_JSON // 5)}}))
    message = refusal(lambda: estimate_memory(str(folder)))
    assert "model-4.safetensors is truncated, or the headers of the model have more than 1,048,576 bytes" in message


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "", 7])
def test_an_index_of_shards_names_no_files_elsewhere(name, folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    for work in (estimate_memory, load_model):
        assert "only .safetensors files in its own folder" in refusal(lambda work=work: work(str(folder)))
