"""Reads weights on disk into a transformers model and its tokenizer.

Only safetensors and GGUF are read, so nothing is unpickled, and no code that comes with a model is run. The headers of
the files are checked against the configuration before anything is built.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
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
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    modeling_gguf_pytorch_utils,
)

from intraslice.core.errors import UserError, first_line
from intraslice.modeling.families import family_named, family_of
from intraslice.pretrained.headers import Shapes, gguf_header, read_json, safetensors_shapes
from intraslice.pretrained.tokenizer import LOADING, let_child_encode_if_slow
from intraslice.untrusted.process import run_in_subprocess

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
    """The safetensors files that transformers would read in a model folder, whether or not they exist.

    Raises ValueError or OSError where the index of shards cannot be read, or names files outside the folder.
    """
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
            return gguf_header(require_gguf(weights.folder / weights.gguf))[0]
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
            _, fields = gguf_header(require_gguf(weights.folder / weights.gguf))
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
        config = AutoConfig.from_pretrained(weights.folder, gguf_file=weights.gguf, trust_remote_code=False)
    family_of(config)
    if getattr(config, "quantization_config", None) and not weights.gguf:
        raise UserError(f"{weights.display_name} is quantised and cannot be sliced; use the unquantised model")
    return config


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
    with (
        as_user_error(f"{name} has an invalid configuration", "fetch it again"),
        torch.device("meta"),
        quiet_transformers(),
    ):
        # In the default precision: transformers would make any other the default of all threads meanwhile.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
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
    """Model and tokenizer as transformers loads them, on the CPU or placed by `device_map`.

    Raises UserError where weights or tokenizer are missing, invalid or incomplete, or the model cannot be sliced.
    """
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


def require_gguf(file: Path) -> Path:
    """The file. Raises UserError if it is not a GGUF file or the package gguf is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file.name} needs the package gguf to be read; run `pip install gguf`")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file.name} is not a GGUF file; fetch it again, or name another model")
    return file


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
        gguf_bar = modeling_gguf_pytorch_utils.tqdm  # ignores the settings below
        library.set_verbosity_error()
        library.disable_progress_bar()
        accelerate.setLevel(logging.ERROR)
        modeling_gguf_pytorch_utils.tqdm = partial(gguf_bar, disable=True)
        try:
            yield
        finally:
            library.set_verbosity(verbosity)
            accelerate.setLevel(level)
            modeling_gguf_pytorch_utils.tqdm = gguf_bar
            if bars:
                library.enable_progress_bar()
