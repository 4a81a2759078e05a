"""Loads models for slicing: canonical layers, tokenizer, source, and a fingerprint for cache keys."""

import copy
import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.checkpoints.format import is_checkpoint
from intraslice.checkpoints.format import load as load_checkpoint
from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.checks import one_of
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressOption
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import canonicalise, family_of
from intraslice.modeling.offload import PLACEMENTS, Placement, canonicalise_offloaded_, fetch_tensor, place_layers
from intraslice.pretrained.memory import available_bytes, require_memory
from intraslice.pretrained.precision import choose_dtype
from intraslice.pretrained.reader import Weights, as_user_error, read_config, read_weights, weight_files
from intraslice.pretrained.sources import DEFAULT, fetch_weights, obtain_weights

FORMAT = "1"  # of the kept digests of weight files
SLICED = "{name} is sliced already; expected a dense model to slice"
_fingerprints: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # of the models in every LoadedModel


@dataclass
class LoadedModel:
    """A canonicalised model. `name` is the requested name; `source` is a human-readable description of the weights.

    `fingerprint` is that of the model as it was loaded: do not change its weights in place. `record` is None for a
    dense model, and for a sliced checkpoint the record of how it was made.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    source: str
    fingerprint: str
    record: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _fingerprints[self.model] = self.fingerprint

    @property
    def weights_digest(self) -> str:
        """The part of the fingerprint that covers the tensors alone; it is the same with every transformers release."""
        return self.fingerprint.partition("-")[0]

    @cached_property
    def identity(self) -> str:
        """The fingerprint and a digest of the tokenizer, for results that are kept by the name of their text.

        Read it once before the tokenizer is used, which changes its padding and truncation.
        """
        tokenizer: Any = self.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        rules = backend.to_str() if backend else sorted(tokenizer.get_vocab().items())
        parts = rules, tokenizer.chat_template, tokenizer.special_tokens_map
        digest = hashlib.sha256(repr(parts).encode())
        return f"{self.fingerprint}-{digest.hexdigest()}"


def require_loaded(loaded: object) -> None:
    """Raise UserError unless it is a `LoadedModel`."""
    if not isinstance(loaded, LoadedModel):
        raise UserError(
            f"expected a LoadedModel, got {type(loaded).__name__}; make one with `prepare_model(model, tokenizer)`"
        )


def require_dense(loaded: LoadedModel) -> None:
    """Raise UserError for a sliced checkpoint."""
    if loaded.record is not None:
        raise UserError(SLICED, name=loaded.name)


def require_dense_name(name: str) -> None:
    """As `require_dense`, before the model is loaded."""
    if is_checkpoint(name):
        raise UserError(SLICED, name=name)


def load_model(
    name: str = DEFAULT,
    dtype: str | torch.dtype = torch.float32,
    device: str = "cpu",
    device_map: Placement | None = None,
    *,
    progress: ProgressOption = True,
) -> LoadedModel:
    """Load a Hub id, a folder in transformers format, a .gguf file, a folder that `save` wrote, or "default".

    The model is in eval mode, its parameters require no gradients, and its layers are canonical (see families.py). With
    a `device_map` it may be larger than memory: "auto" offloads the layers that do not fit, "disk" every layer. `dtype`
    is float32, bfloat16, the name of one of them, or "auto" (see `choose_dtype`). Raises UserError where there is no
    such model, it cannot be sliced, it does not fit, the device is not available, or `dtype` is another type.
    """
    with as_user_error(f"device {device!r} cannot be used here", "try 'cpu'"):
        torch.empty(0, device=device)
    precision: torch.dtype = getattr(torch, choose_dtype(dtype, device))
    if device_map is not None:
        one_of("device map", device_map, PLACEMENTS)
        if is_checkpoint(name):
            raise UserError(f"{name} is a sliced checkpoint, which cannot be offloaded; leave the device map out")
        return load_offloaded(name, precision, device, device_map, progress=progress)
    if is_checkpoint(name):
        model, tokenizer, record = load_checkpoint(name, device, precision)
        return LoadedModel(model, tokenizer, name, f"{record.get('source', name)}, sliced", fingerprint(model), record)
    weights = require_memory(name, precision, device).weights or fetch_weights(name, progress=progress)
    # While loading, transformers sets the default dtype of all threads, which could affect other jobs.
    model, tokenizer = read_weights(weights, torch.float32 if device == "cpu" else precision)
    prepare_tokenizer_(tokenizer, model, name)
    model = _convert_dtype_(model, precision).eval().requires_grad_(False)
    digest = fingerprint(model)
    canonicalise(model)
    return LoadedModel(model.to(device), tokenizer, name, weights.source, digest)


def prepare_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LoadedModel:
    """Prepare a dense model that transformers has loaded. Modifies neither the model nor its tokenizer.

    The result shares all tensors with the model except the fused maps (query, key and value; gate and up), which are
    copies and take about two thirds of the layers' memory again. Do not change the model in place while it is in use.
    Raises UserError unless it is a dense transformers model of a family that can be sliced, unquantised, on one device,
    in float32 or bfloat16.
    """
    if not isinstance(model, PreTrainedModel):
        raise UserError(f"model must be a Hub id, a path or a transformers model, got {type(model).__name__}")
    name = model.config.name_or_path or type(model).__name__
    family_of(model.config)
    layers, devices = model.model.layers, {parameter.device for parameter in model.parameters()}
    if any(isinstance(layer.self_attn, SlicedAttention) for layer in layers):
        raise UserError(f"{name} was converted or sliced before; pass the model as transformers loads it, or its id")
    if getattr(model.config, "quantization_config", None):
        raise UserError(f"{name} is quantised and cannot be sliced; use the unquantised model")
    if len(devices) > 1 or model.device.type == "meta":
        raise UserError(f"{name} is spread over several devices; pass its id or folder, with device_map='auto'")
    if model.dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"the model's dtype must be float32 or bfloat16, got {model.dtype}; convert it with model.to")
    digest, tokenizer_copy = fingerprint(model), copy.deepcopy(tokenizer)
    shared: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    canonical = copy.deepcopy(model, shared | {id(buffer): buffer for buffer in model.buffers()}).eval()
    for module in canonical.modules():  # the caller's hooks must not see forwards of this copy
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    canonical.set_attn_implementation("sdpa")
    # An LM head that was trained on its own is no longer tied, whatever the configuration says.
    canonical.config.tie_word_embeddings = canonical.lm_head.weight is canonical.model.embed_tokens.weight
    prepare_tokenizer_(tokenizer_copy, canonical, name)
    canonicalise(canonical)
    return LoadedModel(canonical, tokenizer_copy, name, f"{name}, as transformers loaded it", digest)


def _convert_dtype_(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Round the parameters only: buffers, such as rotary frequencies, stay float32."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return model


def load_offloaded(
    name: str, dtype: torch.dtype, device: str, device_map: Placement | None = None, *, progress: ProgressOption
) -> LoadedModel:
    """A model whose layers are offloaded as `device_map` says.

    Without a device map all weights but norms stay in their files, and the layers are those of transformers, so that
    the model is of use for `open_layer` and `resident` alone. Its fingerprint is then of the files, which are not read.
    Raises UserError where there is no such model, it cannot be sliced, or is a GGUF file.
    """
    weights = obtain_weights(name, progress=progress)
    if weights.gguf:
        raise UserError(f"{name} is a GGUF file, whose layers are not read one by one; use a folder of safetensors")
    free = available_bytes(device), available_bytes()
    places = place_layers(read_config(weights), dtype, device, device_map or "disk", *free)
    if device_map is None:
        places |= {"model.embed_tokens": "disk", "lm_head": "disk"}
    # In the dtype of the files, transformers only maps them; other weights it would read and convert here.
    model, tokenizer = read_weights(weights, dtype if device_map else _stored_dtype(weights), places)
    prepare_tokenizer_(tokenizer, model, name)
    model = model.eval().requires_grad_(False)
    if device_map is None:
        embedding = _convert_dtype_(model, dtype).model.embed_tokens
        if (scale := getattr(embedding, "scalar_embed_scale", None)) is not None:  # of Gemma; buffers stay float32
            embedding.embed_scale = nn.Buffer(torch.tensor(scale, device=device), persistent=False)
        parts = model.config.to_json_string(use_diff=False), *map(_identity, weight_files(weights.folder))
        digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    else:
        digest = fingerprint(model, _file_digests(weights, dtype))
        canonicalise_offloaded_(model, places, device)
    return LoadedModel(model, tokenizer, name, weights.source, digest)


def fingerprint(model: PreTrainedModel, kept: Mapping[str, str] | None = None) -> str:
    """SHA-256 digests, in hexadecimal, of all tensors and of the configuration, joined by a hyphen.

    All bytes of every parameter and buffer count; where they are does not. `kept` has digests of tensors by name, used
    for offloaded ones instead of reading these. Takes a second for some gigabytes.
    """
    kept = kept or {}

    def digest(named: tuple[str, Tensor]) -> str:
        name, tensor = named
        value = tensor.is_meta and (kept.get(name) or kept.get(name.removeprefix("model.")))
        return f"{name} {value or _tensor_digest(fetch_tensor(model, name, tensor))}\n"

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # hashing needs no interpreter lock
        tensors = "".join(sorted(pool.map(digest, [*model.named_parameters(), *model.named_buffers()])))
    config = model.config.to_dict()
    for field in ("_name_or_path", "architectures", "transformers_version"):
        config.pop(field, None)
    parts = tensors, json.dumps(config, sort_keys=True, default=str)
    return "-".join(hashlib.sha256(part.encode()).hexdigest() for part in parts)


def fingerprint_of(model: PreTrainedModel) -> str:
    """The fingerprint, computed once for the model in a `LoadedModel`."""
    return _fingerprints.get(model) or fingerprint(model)


def _tensor_digest(tensor: Tensor) -> str:
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(values.shape)} {values.dtype} ".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _file_digests(weights: Weights, dtype: torch.dtype) -> dict[str, str]:
    """Digests of all tensors in the weight files, converted to `dtype`; kept in the cache until a file changes."""
    digests: dict[str, str] = {}
    for file in weight_files(weights.folder):
        path = cache_path("digests", ".json", FORMAT, *_identity(file), dtype)
        if not (record := read_record(path)):
            with safe_open(file, framework="pt") as opened:
                names = opened.keys()
                record = {name: _tensor_digest(opened.get_tensor(name).to(dtype)) for name in names}
            write_record(path, record, "digests of the weights")
        digests |= record
    return digests


def _stored_dtype(weights: Weights) -> torch.dtype:
    """bfloat16 if all tensors in the files are, else float32."""
    dtypes = set()
    for file in weight_files(weights.folder):
        with safe_open(file, framework="pt") as opened:
            dtypes |= {opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118  not a dict
    return torch.bfloat16 if dtypes == {"BF16"} else torch.float32


def _identity(file: Path) -> tuple[Path, int, int, int]:
    """What changes with the content of a file."""
    stat = file.stat()
    return file.resolve(), stat.st_size, stat.st_mtime_ns, stat.st_ino


def prepare_tokenizer_(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
    """Set the padding of both, in place. Raises UserError where the model has fewer embeddings than token ids."""
    rows = model.model.embed_tokens.num_embeddings
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if not 0 <= largest < rows:
        raise UserError(
            f"the tokenizer of {name} has token ids up to {largest}, but the model has only {rows} embeddings; put the "
            "tokenizer that belongs to these weights into their folder"
        )
    tokenizer.padding_side = "left"  # generation continues from the right end
    tokenizer.clean_up_tokenization_spaces = False  # decodes tokens unchanged
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
