"""A model ready for slicing: weights, tokenizer, where they come from, and a fingerprint to key caches by."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.checkpoints.format import is_checkpoint
from intraslice.checkpoints.format import load as load_checkpoint
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import canonicalise, family_of
from intraslice.modeling.offload import PLACEMENTS, Placement, canonicalise_offloaded_, fetched, place_layers
from intraslice.pretrained.memory import MemoryEstimate, available_bytes, estimate_memory, require_memory
from intraslice.pretrained.reader import read_config, read_weights
from intraslice.pretrained.sources import DEFAULT, SUGGESTED_MODELS, fetch_weights, obtain_weights

__all__ = [
    "DEFAULT",
    "SUGGESTED_MODELS",
    "LoadedModel",
    "MemoryEstimate",
    "estimate_memory",
    "fingerprint",
    "load_model",
    "prepare_model",
    "require_memory",
]

SAMPLES = 1024  # values of each parameter that go into the fingerprint


@dataclass
class LoadedModel:
    """A canonicalised model. `name` is what was asked for; `source` says plainly which weights these are.

    `made` is None for a dense model, and how it was made for a sliced checkpoint.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    fingerprint: str
    made: dict[str, Any] | None = None


def load_model(
    name: str = DEFAULT,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    device_map: Placement | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> LoadedModel:
    """Load a Hub id, a folder in transformers format, a .gguf file, or the offline default, ready for slicing.

    The model is in eval mode, its parameters take no gradients, and its layers are canonical (see families.py). With a
    `device_map` it may be larger than memory: "auto" keeps on disk what does not fit, "disk" every layer.

    Raises:
        UserError: no such model, one that cannot be sliced, one that does not fit, or a device that is not there.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here ({str(error).splitlines()[0]}); try 'cpu'") from error
    if device_map is not None:
        return _load_offloaded(name, dtype, device, device_map, progress)
    if is_checkpoint(name):
        model, tokenizer, made = load_checkpoint(name, device, dtype)
        return LoadedModel(model, tokenizer, name, f"{made['source']}, sliced", fingerprint(model), made)
    weights = require_memory(name, dtype, device).weights or fetch_weights(name, progress=progress)
    # transformers makes the precision that it reads in the default of all threads meanwhile, and others may work.
    model, tokenizer = read_weights(weights, torch.float32 if device == "cpu" else dtype)
    _settle_tokenizer(tokenizer, model, name)
    model = _in_precision_(model, dtype).eval().requires_grad_(False)
    digest = fingerprint(model)
    canonicalise(model)
    return LoadedModel(model.to(device), tokenizer, name, weights.source, digest)


def prepare_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Prepare a dense model that transformers has loaded; it and its tokenizer stay as they are.

    What is returned shares the tensors of embeddings, norms and head with the model, and holds its own canonical copy
    of the layers' linear maps, so that it takes about as much memory again.

    Raises:
        UserError: no dense transformers model, one that cannot be sliced, is quantised, is spread over several devices,
            or is in another precision than float32 and bfloat16.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"model must be a Hub id, a path or a transformers model, got {type(model).__name__}")
    name = model.config.name_or_path or type(model).__name__
    family_of(model.config)
    layers, devices = model.model.layers, {parameter.device for parameter in model.parameters()}
    if any(isinstance(layer.self_attn, SlicedAttention) for layer in layers):
        raise UserError(f"{name} was prepared or sliced before; pass the model as transformers loads it, or its id")
    if getattr(model.config, "quantization_config", None):
        raise UserError(f"{name} is quantised and cannot be sliced; take the unquantised model")
    if len(devices) > 1 or model.device.type == "meta":
        raise UserError(f"{name} is spread over several devices; pass its id or folder, with device_map='auto'")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"the model's dtype must be float32 or bfloat16, got {model.dtype}; convert it with model.to")
    digest, own_tokenizer = fingerprint(model), copy.deepcopy(tokenizer)
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    own = copy.deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()}).eval()
    for part in own.modules():  # the owner's hooks would notice our forwards
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    own.set_attn_implementation("sdpa")
    _settle_tokenizer(own_tokenizer, own, name)
    canonicalise(own)
    return LoadedModel(own, own_tokenizer, name, f"{name}, as transformers loaded it", digest)


def _in_precision_(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Round parameters, one by one, and nothing else: buffers, such as rotary frequencies, are float32 in any."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def _load_offloaded(
    name: str,
    dtype: torch.dtype,
    device: str,
    device_map: Placement,
    progress: ProgressCallback | bool,
) -> LoadedModel:
    if device_map not in PLACEMENTS:
        raise UserError(f"device map must be one of {', '.join(PLACEMENTS)}, got {device_map!r}")
    if is_checkpoint(name):
        raise UserError(f"{name} is sliced already and is loaded whole; leave the device map out")
    weights = obtain_weights(name, progress=progress)
    if weights.gguf:
        raise UserError(f"{name} is a GGUF file, which is read whole; for a device map take safetensors")
    config = read_config(weights)
    places = place_layers(config, dtype, device, device_map, available_bytes(device), available_bytes())
    model, tokenizer = read_weights(weights, dtype, places)
    _settle_tokenizer(tokenizer, model, name)
    model = model.eval().requires_grad_(False)
    digest = fingerprint(model)
    canonicalise_offloaded_(model, places, device)
    return LoadedModel(model, tokenizer, name, weights.source, digest)


def fingerprint(model: PreTrainedModel) -> str:
    """Hex digest of the configuration and of a sample of every parameter: the same weights in another folder agree.

    A few hundred values of each parameter are read, so that it costs a fraction of a second on any model.
    """
    config = model.config.to_dict()
    for field in ("_name_or_path", "architectures", "transformers_version"):
        config.pop(field, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        values = fetched(model, name, parameter).detach().flatten()
        # An odd stride does not walk down one column of a matrix.
        sample = values[:: max(1, len(values) // SAMPLES) | 1].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def _settle_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    rows = model.model.embed_tokens.num_embeddings
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < rows:
        raise UserError(
            f"the tokenizer of {name} has token ids up to {largest} and its model {rows} embeddings; "
            "put the tokenizer that belongs to the weights beside them"
        )
    tokenizer.padding_side = "left"  # generation continues from the right end
    tokenizer.clean_up_tokenization_spaces = False  # decoded text is what the tokens say
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
