"""Weights on this disk -> a transformers model and its tokenizer.

Only safetensors and GGUF are read, so nothing is unpickled, and no code that comes with a model is run.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from intraslice.errors import UserError
from intraslice.modeling.families import family_of


@dataclass(frozen=True)
class Weights:
    """Weights on this disk. `source` is a sentence for people; `gguf` the file in `folder` when it is one."""

    folder: Path
    source: str
    gguf: str | None = None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model folder needs, there or not."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    return [folder / file for file in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def read_config(weights: Weights) -> transformers.PreTrainedConfig:
    """The model's configuration.

    Raises:
        UserError: there is none, it is broken, or it is of a model that cannot be sliced.
    """
    try:
        config = AutoConfig.from_pretrained(weights.folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError) as error:
        raise UserError(f"no readable config.json in {weights.folder} ({first_line(error)}); fetch it again") from error
    family_of(config)
    if getattr(config, "quantization_config", None):
        raise UserError(
            f"the weights in {weights.folder} are quantised and cannot be sliced; take the unquantised model"
        )
    return config


def read_weights(
    weights: Weights, dtype: torch.dtype, device_map: dict[str, str] | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer as transformers gives them, on the CPU or where `device_map` puts each part.

    Raises:
        UserError: weights or tokenizer are missing, broken, incomplete, or of a model that cannot be sliced.
    """
    location, options = weights.folder, {"trust_remote_code": False}
    if weights.gguf:
        location = weights.folder / weights.gguf
        require_gguf(location)
        options["gguf_file"] = weights.gguf
    else:
        read_config(weights)
        if missing := [file.name for file in weight_files(weights.folder) if not file.exists()]:
            raise UserError(
                f"{weights.folder} has no {missing[0]}; wanted weights as safetensors (pickled .bin files are not read)"
            )
    try:
        with quiet_transformers():
            model, loading = AutoModelForCausalLM.from_pretrained(
                weights.folder,
                dtype=dtype,
                attn_implementation="sdpa",
                use_safetensors=True,
                output_loading_info=True,
                device_map=device_map,
                **options,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise UserError(f"the weights in {location} cannot be read ({first_line(error)}); fetch them again") from error
    # transformers fills what is missing with random numbers and only warns.
    if absent := sorted(loading["missing_keys"]):
        raise UserError(f"{location} lacks {len(absent)} tensors of the model, such as {absent[0]}; fetch it again")
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(weights.folder, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise UserError(
            f"{location} has no tokenizer that can be read ({first_line(error)}); "
            "put tokenizer.json or tokenizer.model beside the weights"
        ) from error
    if weights.gguf:
        # The tensors are plain floats now; without this the model refuses to be saved.
        model.hf_quantizer = None
        del model.config.quantization_config
    return model, tokenizer


def require_gguf(file: Path) -> None:
    """Raise UserError when `file` is no GGUF file or there is nothing to read it with."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{file} needs the package gguf to be read; run `pip install gguf`")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UserError(f"{file} is not a GGUF file; fetch it again, or name another model")


def first_line(error: BaseException) -> str:
    """An error's message as part of one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no advice from transformers on stderr; our own errors say what matters."""
    library, accelerate = transformers.utils.logging, logging.getLogger("accelerate.big_modeling")
    verbosity, bars, level = library.get_verbosity(), library.is_progress_bar_enabled(), accelerate.level
    library.set_verbosity_error()
    library.disable_progress_bar()
    accelerate.setLevel(logging.ERROR)
    try:
        yield
    finally:
        library.set_verbosity(verbosity)
        accelerate.setLevel(level)
        if bars:
            library.enable_progress_bar()
