"""Reads weights on disk into a transformers model and its tokenizer.

Only safetensors and GGUF are read, so nothing is unpickled, and no code that comes with a model is run. The headers of
the files are checked against the configuration before anything is built.
"""

import copy
import json
import logging
import math
import mmap
import os
import re
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
import transformers.modeling_gguf_pytorch_utils as gguf_utils
from gguf import GGML_QUANT_SIZES
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.errors import UserError, first_line
from intraslice.modeling.families import family_named, family_of
from intraslice.pretrained.tokenizer import LOADING, let_child_encode_if_slow
from intraslice.untrusted.process import run_in_subprocess

# Headers of weight files. A reader allocates memory by what the header claims. They are therefore read within bounds,
# and a claim that the file is too short for is refused. These functions raise ValueError, with a clause that completes
# a sentence about the file.
Shapes = dict[str, tuple[int, ...]]

MAX_JSON = 2**20  # bytes of a model's safetensors headers, index of shards or configuration: 8,000 tensors
MAX_TENSORS = 2**15
MAX_VALUES = 2**20  # in all arrays of a GGUF file: vocabulary and merges. gguf-py takes a kilobyte for each
MAX_TEXT = 2**20  # bytes of one string in a GGUF file
MAX_DIMENSIONS = 8
# Arrays of a GGUF file for which transformers takes ten seconds; of a configuration only their length is a part.
VOCABULARY = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "scores", "token_type"))

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


def gguf_header(file: Path) -> tuple[Shapes, Fields, bytes]:
    """Shapes by GGUF's tensor names, in the order of torch's axes, the fields, and the header without `VOCABULARY`."""
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

    def value(self) -> str | int | float:
        """The next field: a number, a string, or the length of an array, which is skipped."""
        kind = self.number("<I")
        if kind == _TEXT:
            return self.text()
        if kind in _FORMATS:
            return self.number(_FORMATS[kind])
        if kind != _ARRAY:
            raise ValueError(f"its header has values of the unknown type {kind}")
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


def _read_gguf(cursor: _Cursor) -> tuple[Shapes, Fields, bytes]:
    block_sizes = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    magic, version = cursor.number("<I").to_bytes(4, "little"), cursor.number("<I")
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("it is not a GGUF file of version 2 or 3")
    tensors, count = cursor.number("<Q"), cursor.number("<Q")
    if max(tensors, count) > MAX_TENSORS:
        raise ValueError(f"its header counts {max(tensors, count):,} entries; expected at most {MAX_TENSORS:,}")
    fields: Fields = {}
    kept = []  # raw fields
    for _ in range(count):
        start, name = cursor.position, cursor.text()
        fields[name] = cursor.value()
        if name not in VOCABULARY:
            kept.append(cursor.data[start : cursor.position])
    size = f"{fields.get('general.architecture')}.vocab_size"
    if size not in fields and isinstance(tokens := fields.get(VOCABULARY[0]), int):
        kept.append(struct.pack("<Q", len(size.encode())) + size.encode() + struct.pack("<II", 4, tokens))
    shapes, end, start = {}, 0, cursor.position
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
    counts = struct.pack("<IIQQ", int.from_bytes(b"GGUF", "little"), version, tensors, len(kept))
    return shapes, fields, counts + b"".join(kept) + cursor.data[start : cursor.position]


def _json_object(text: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not a JSON object")
    return value


MAX_LAYERS = 512
MAX_LABELS = 1024  # of a classifier head, which none of these models has; transformers lists all labels
_transformers_lock = threading.RLock()
_LAYER = re.compile(r"\b(?:layers|blk)\.(\d+)\.")


@dataclass(frozen=True)
class Weights:
    """Weights on disk. `source` describes them for people; `gguf` is the file name in `folder` of a GGUF file."""

    folder: Path
    source: str
    gguf: str | None = None

    @property
    def display_name(self) -> str:
        """Name for messages. It has no path, except that of a folder that the user named."""
        return self.gguf or self.source or self.folder.name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers would read, if they exist. ValueError or OSError for a bad index."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists() or not index.exists():
        return [single]
    names = read_json(index).get("weight_map")
    names = set(names.values()) if isinstance(names, dict) else set()
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise ValueError(f"{index.name} must list at least one file, and only .safetensors files in its own folder")
    return [folder / name for name in sorted(names)]


def tensor_shapes(weights: Weights) -> Shapes:
    """Shapes of all tensors by name, from the files' headers. Raises UserError where a file is missing or invalid."""
    with as_user_error(f"{weights.display_name} cannot be read", "fetch it again"):
        if weights.gguf:
            return gguf_header(weights.folder / weights.gguf)[0]
        files = weight_files(weights.folder)
        if missing := [file.name for file in files if not file.exists()]:
            raise UserError(
                f"{weights.display_name} has no {missing[0]}; expected safetensors or GGUF (pickled .bin files are not "
                "read). Choose another model, or convert this one with save_pretrained"
            )
        return safetensors_shapes(*files)


def read_config(weights: Weights) -> transformers.PreTrainedConfig:
    """The configuration. Raises UserError where it is missing, invalid or out of bounds, or of another family."""
    with as_user_error(f"{weights.display_name} has no readable configuration", "fetch it again"):
        if weights.gguf:
            _, fields, header = gguf_header(weights.folder / weights.gguf)
            architecture = fields.get("general.architecture")
            # A GGUF file of Gemma 3 has the text model alone.
            model_type = "gemma3_text" if architecture == "gemma3" else architecture
            layers = fields.get(f"{architecture}.block_count")
            values: dict[str, Any] = {"model_type": model_type, "num_hidden_layers": layers}
        else:
            values = read_json(weights.folder / "config.json")
        if not isinstance(values.get("model_type"), str):
            raise ValueError("it has no model_type")
        for field, limit in {"num_hidden_layers": MAX_LAYERS, "num_labels": MAX_LABELS}.items():
            if isinstance(values.get(field), int) and values[field] > limit:  # transformers makes lists as long
                raise ValueError(f"{field} is above {limit}")
        if "transformers_weights" in values:
            raise ValueError("it has the field transformers_weights, which is not allowed")
        family_named(values["model_type"][:40])  # refuses other models before their configuration is built
        if weights.gguf:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                (sparse := Path(folder, weights.gguf)).write_bytes(header)
                os.truncate(sparse, len(header) + (weights.folder / weights.gguf).stat().st_size)  # zeros as weights
                config = AutoConfig.from_pretrained(folder, gguf_file=weights.gguf, trust_remote_code=False)
        else:
            config = AutoConfig.from_pretrained(weights.folder, trust_remote_code=False)
    family_of(config)
    if getattr(config, "quantization_config", None) and not weights.gguf:
        raise UserError(f"{weights.display_name} is quantised and cannot be sliced; use the unquantised model")
    return config


def empty_model(config: transformers.PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration on the meta device, which takes no memory."""
    with torch.device("meta"), quiet_transformers():
        # In the default precision: transformers would make any other the default of all threads meanwhile.
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)


def require_match(config: transformers.PreTrainedConfig, weights: Weights) -> None:
    """Raise UserError if the weight files lack tensors that the configuration describes.

    transformers would allocate those tensors all the same. A GGUF file has its own tensor names, so there only the
    number of tensors of each shape is compared.
    """
    name, shapes = weights.display_name, tensor_shapes(weights)
    layers = len({found[1] for tensor in shapes if (found := _LAYER.search(tensor))})
    if config.num_hidden_layers != layers:
        raise UserError(
            f"{name} has {layers} layers, expected {config.num_hidden_layers} according to its configuration; fetch it "
            "again"
        )
    with as_user_error(f"{name} has an invalid configuration", "fetch it again"):
        model = empty_model(config)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key not in tied}
    if weights.gguf:
        for shape, count in (Counter(expected.values()) - Counter(shapes.values())).items():
            raise UserError(
                f"{name} lacks tensors of shape {shape} that its configuration requires ({count}); fetch it again"
            )
        return
    actual = {key: shapes.get(key, shapes.get(key.removeprefix("model."))) for key in expected}
    if absent := sorted(key for key, shape in actual.items() if shape is None):
        raise UserError(f"{name} lacks tensors of the model ({len(absent)}), such as {absent[0]}; fetch it again")
    if wrong := sorted(key for key, shape in actual.items() if shape != expected[key]):
        raise UserError(
            f"{name} has {wrong[0]} of shape {actual[wrong[0]]}, expected {expected[wrong[0]]} according to its "
            "configuration; fetch it again"
        )


def read_weights(
    weights: Weights, dtype: torch.dtype, device_map: dict[str, str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer as transformers loads them, on the CPU or by `device_map`. UserError for invalid ones."""
    config = read_config(weights)
    require_match(config, weights)
    tokenizer = read_tokenizer(weights)
    options: dict[str, Any] = {"trust_remote_code": False} | ({"gguf_file": weights.gguf} if weights.gguf else {})
    with as_user_error(f"{weights.display_name} cannot be read", "fetch it again"), quiet_transformers():
        loaded: Any = AutoModelForCausalLM.from_pretrained(  # a pair, by `output_loading_info`
            weights.folder,
            config=config,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            output_loading_info=True,
            device_map=device_map,
            **options,
        )
    model, loading = loaded
    # transformers fills what is missing with random numbers and only warns.
    if absent := sorted(loading["missing_keys"]):
        raise UserError(f"{weights.display_name} lacks tensors ({len(absent)}), such as {absent[0]}; fetch it again")
    if weights.gguf:
        # The tensors are dequantised; with a quantizer the model refuses to be saved.
        model.hf_quantizer = None
        del model.config.quantization_config
    return model, tokenizer


def read_tokenizer(weights: Weights) -> PreTrainedTokenizerBase:
    """The tokenizer beside the weights. Raises UserError if there is none that can be read."""
    remedy = "put tokenizer.json or tokenizer.model beside the weights"
    options: dict[str, Any] = {"gguf_file": weights.gguf} if weights.gguf else {}
    with as_user_error(f"{weights.display_name} has no tokenizer that can be read", remedy):
        if not weights.gguf:
            run_in_subprocess("tokens", LOADING, path=str(weights.folder))  # what takes too much takes it there
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(weights.folder, trust_remote_code=False, **options)
        let_child_encode_if_slow(tokenizer)
    return tokenizer


@contextmanager
def as_user_error(problem: str, remedy: str) -> Iterator[None]:
    """Turn any exception inside into a UserError: untrusted files can make libraries raise anything."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # tokenizers, written in Rust, raises a panic that is not an `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{problem} ({first_line(error)}); {remedy}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and warnings of transformers, whose important cases have errors of our own.

    One thread at a time: while transformers builds a model, it changes its classes for the whole process, and two
    threads at once would leave them changed.
    """
    library, accelerate = transformers.utils.logging, logging.getLogger("accelerate.big_modeling")
    with _transformers_lock:
        verbosity, bars, level = library.get_verbosity(), library.is_progress_bar_enabled(), accelerate.level
        gguf_bar = gguf_utils.tqdm  # ignores the settings below
        library.set_verbosity_error()
        library.disable_progress_bar()
        accelerate.setLevel(logging.ERROR)
        gguf_utils.tqdm = partial(gguf_bar, disable=True)
        try:
            yield
        finally:
            library.set_verbosity(verbosity)
            accelerate.setLevel(level)
            gguf_utils.tqdm = gguf_bar
            if bars:
                library.enable_progress_bar()
