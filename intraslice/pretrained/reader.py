"""Weights on this disk -> a transformers model and its tokenizer.

Only safetensors and GGUF are read, so nothing is unpickled, and no code that comes with a model is run. Before anything
is built, headers say whether the files hold what the configuration speaks of.
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

MAX_LAYERS = 512
MAX_LABELS = 1024  # of a classifier, which none of these models is; transformers lists them all
_ALONE = threading.RLock()
_LAYER = re.compile(r"\b(?:layers|blk)\.(\d+)\.")
# Absolute paths, up to the last of their names; not what follows a scheme, as in https://


@dataclass(frozen=True)
class Weights:
    """Weights on this disk. `source` is a sentence for people; `gguf` the file in `folder` when it is one."""

    folder: Path
    source: str
    gguf: str | None = None

    @property
    def called(self) -> str:
        """What they are called in messages: never where they lie, but for a folder that somebody named."""
        return self.gguf or self.source or self.folder.name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads in a model folder, there or not.

    Raises:
        ValueError, OSError: the index of shards cannot be read, or names files elsewhere.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists() or not index.exists():
        return [whole]
    names = read_json(index).get("weight_map")
    names = set(names.values()) if isinstance(names, dict) else set()
    if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
        raise ValueError(f"{index.name} names no files beside it")
    return [folder / name for name in sorted(names)]


def tensor_shapes(weights: Weights) -> Shapes:
    """Shapes of all tensors by name, from the files' headers.

    Raises:
        UserError: a file is missing, or its header is wrong or out of bounds.
    """
    with _refusing(f"{weights.called} cannot be read", "fetch it again"):
        if weights.gguf:
            require_gguf(weights.folder / weights.gguf)
            return gguf_header(weights.folder / weights.gguf).shapes
        files = weight_files(weights.folder)
        if missing := [file.name for file in files if not file.exists()]:
            raise UserError(
                f"{weights.called} has no {missing[0]}; expected safetensors (pickled .bin files are not read)"
            )
        return {name: shape for file in files for name, shape in safetensors_shapes(file).items()}


def read_config(weights: Weights) -> transformers.PreTrainedConfig:
    """The model's configuration.

    Raises:
        UserError: there is none, it is broken or absurd, or it is of a model that cannot be sliced.
    """
    with _refusing(f"{weights.called} has no readable configuration", "fetch it again"):
        given = _gguf_config(weights) if weights.gguf else read_json(weights.folder / "config.json")
        if not isinstance(given.get("model_type"), str):
            raise ValueError("it says no model_type")
        for field, limit in {"num_hidden_layers": MAX_LAYERS, "num_labels": MAX_LABELS}.items():
            if isinstance(given.get(field), int) and given[field] > limit:  # transformers makes lists as long
                raise ValueError(f"{field} is above {limit}")
        if "transformers_weights" in given:
            raise ValueError("it names weights of its own")
        family_named(given["model_type"][:40])  # of what cannot be sliced, a configuration is not even made
        config = AutoConfig.from_pretrained(weights.folder, gguf_file=weights.gguf, trust_remote_code=False)
    family_of(config)
    if getattr(config, "quantization_config", None) and not weights.gguf:
        raise UserError(f"{weights.called} is quantised and cannot be sliced; take the unquantised model")
    return config


def _gguf_config(weights: Weights) -> dict[str, Any]:
    """What a GGUF file's header says of the configuration, by transformers' names."""
    require_gguf(weights.folder / str(weights.gguf))
    fields = gguf_header(weights.folder / str(weights.gguf)).fields
    architecture = fields.get("general.architecture")
    return {"model_type": architecture, "num_hidden_layers": fields.get(f"{architecture}.block_count")}


def require_match(config: transformers.PreTrainedConfig, weights: Weights) -> None:
    """Raise UserError where weight files do not hold the tensors that the configuration speaks of.

    What it speaks of would be made in memory all the same. A GGUF file has names of its own: there, so many tensors of
    each shape will do.
    """
    name, shapes = weights.called, tensor_shapes(weights)
    layers = len({found[1] for tensor in shapes if (found := _LAYER.search(tensor))})
    if config.num_hidden_layers != layers:
        raise UserError(f"{name} has not as many layers as its configuration says but {layers}; fetch it again")
    with _refusing(f"{name} has an absurd configuration", "fetch it again"), torch.device("meta"), quiet_transformers():
        # In the default's precision, whatever the weights have: another would be all threads' default meanwhile.
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    wanted = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key not in tied}
    if weights.gguf:
        for shape, count in (Counter(wanted.values()) - Counter(shapes.values())).items():
            raise UserError(f"{name} lacks {count} tensors of shape {shape}, by its configuration; fetch it again")
        return
    held = {key: shapes.get(key, shapes.get(key.removeprefix("model."))) for key in wanted}
    if absent := sorted(key for key, shape in held.items() if shape is None):
        raise UserError(f"{name} lacks {len(absent)} tensors of the model, such as {absent[0]}; fetch it again")
    if wrong := sorted(key for key, shape in held.items() if shape != wanted[key]):
        raise UserError(
            f"{name} has {wrong[0]} of shape {held[wrong[0]]}, and by its configuration {wanted[wrong[0]]}; "
            "fetch it again"
        )


def read_weights(
    weights: Weights, dtype: torch.dtype, device_map: dict[str, str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer as transformers gives them, on the CPU or where `device_map` puts each part.

    Raises:
        UserError: weights or tokenizer are missing, broken, incomplete, or of a model that cannot be sliced.
    """
    config = read_config(weights)
    require_match(config, weights)
    options: dict[str, Any] = {"trust_remote_code": False} | ({"gguf_file": weights.gguf} if weights.gguf else {})
    with _refusing(f"{weights.called} cannot be read", "fetch it again"), quiet_transformers():
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
        raise UserError(f"{weights.called} lacks {len(absent)} tensors, such as {absent[0]}; fetch it again")
    remedy = "put tokenizer.json or tokenizer.model beside the weights"
    with _refusing(f"{weights.called} has no tokenizer that can be read", remedy), quiet_transformers():
        tokenizer = AutoTokenizer.from_pretrained(weights.folder, **options)
    if weights.gguf:
        # The tensors are plain floats now; without this the model refuses to be saved.
        model.hf_quantizer = None
        del model.config.quantization_config
    return model, tokenizer


def require_gguf(file: Path) -> None:
    """Raise UserError when `file` is no GGUF file or there is nothing to read it with."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file.name} needs the package gguf to be read; run `pip install gguf`")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file.name} is not a GGUF file; fetch it again, or name another model")


@contextmanager
def _refusing(problem: str, remedy: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes a UserError: what strangers wrote can make libraries raise anything."""
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        # tokenizers, written in Rust, raises its panics past `Exception`.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UserError(f"{problem} ({first_line(error)}); {remedy}") from error


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers on stderr; our own errors say what matters.

    One thread at a time: while transformers builds a model, it changes its classes for the whole process, and two that
    do so at once leave them changed.
    """
    library, accelerate = transformers.utils.logging, logging.getLogger("accelerate.big_modeling")
    with _ALONE:
        verbosity, bars, level = library.get_verbosity(), library.is_progress_bar_enabled(), accelerate.level
        gguf_bar = modeling_gguf_pytorch_utils.tqdm  # which heeds none of the settings below
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
