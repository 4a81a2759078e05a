"""A sliced model as a folder: safetensors, JSON and tokenizer, reopened without the dense model. Nothing is unpickled.

`intraslice.json` says how every layer is shaped and how the model was made; its SHA-256 covers that and the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from intraslice.errors import UserError
from intraslice.layer_weights import AttentionWeights, MLPWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.crossmodule_layers import BasisEmbedding, BasisNorm, CrossModuleLayer
from intraslice.modeling.families import Family, family_of
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import fetched
from intraslice.pretrained.reader import quiet_transformers

FORMAT = 2
RECORD = "intraslice.json"
WEIGHTS = "model.safetensors"
AUTO_CLASS = "modeling_intraslice.py"
# For transformers: the folder is read by its own class, or not at all.
CONFIG = {
    "model_type": "intraslice",
    "auto_map": {
        "AutoConfig": "modeling_intraslice.IntraSliceConfig",
        "AutoModelForCausalLM": "modeling_intraslice.IntraSliceForCausalLM",
    },
}


def is_checkpoint(folder: str | Path) -> bool:
    """Whether the folder holds a model that `save` wrote."""
    return (Path(folder).expanduser() / RECORD).is_file()


def require_free(folder: Path) -> None:
    """Raise UserError when `folder` is there already: a checkpoint never overwrites anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder, or remove that one first")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, made: dict[str, Any]) -> None:
    """Write a sliced model. `made` (source, plan, protocol ...) is kept as it is, so it must be JSON.

    The folder appears whole or not at all. Raises UserError when it exists, or when the disk is full.
    """
    folder = Path(folder).expanduser()
    require_free(folder)
    tensors = {name: fetched(model, name, tensor).contiguous().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    layers = [_layer_record(layer) for layer in model.model.layers]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            draft = Path(scratch) / folder.name
            draft.mkdir()
            save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
            model.generation_config.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
            shutil.copyfile(Path(__file__).with_name("auto_class.py"), draft / AUTO_CLASS)
            record = {"format": FORMAT, "config": model.config.to_dict(), "layers": layers, "made": made}
            record["sha256"] = _digest(draft / WEIGHTS, record)
            (draft / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            # Not the dense model's config.json: transformers would fill its layers with random numbers and only warn.
            (draft / "config.json").write_text(json.dumps(CONFIG, indent=1), encoding="utf-8")
            if folder.exists():
                folder.rmdir()
            os.replace(draft, folder)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise UserError(
            f"cannot write {size / 1e6:.0f} MB to {folder}: {error}; nothing was kept, free some space"
        ) from error


def load(
    folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Reopen what `save` wrote: the model (with `generate()`), its tokenizer, and how it was made.

    Raises UserError when a file is missing, truncated, or not the one that was saved.
    """
    folder = Path(folder).expanduser()
    record = _read_record(folder)
    weights = folder / WEIGHTS
    if not weights.is_file() or _digest(weights, record) != record["sha256"]:
        raise UserError(f"{WEIGHTS} or {RECORD} in {folder} is not what was saved there; copy the folder again")
    try:
        tensors = load_file(weights)
        config = AutoConfig.for_model(**record["config"])
        family_of(config)
        model = _rebuild(config, tensors, record["layers"])
        model.generation_config = GenerationConfig.from_pretrained(folder)
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} is not a whole sliced checkpoint ({reason}); copy the folder again") from error
    tokenizer.padding_side = "left"
    return model.to(device=device, dtype=dtype), tokenizer, record["made"]


def _layer_record(layer: nn.Module) -> dict[str, Any]:
    attention, mlp = layer.self_attn, layer.mlp
    shortcuts = [list(matrix.shape) for matrix in layer.shortcuts] if isinstance(layer, CrossModuleLayer) else []
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "dim": attention.dim,
        "value_dim": attention.value_dim,
        "kv_head": attention.kv_head.tolist(),
        "frequency": attention.frequency.tolist(),
        "scale": attention.scale,
        "neurons": mlp.neurons,
        "gated": mlp.gated,
        "activation": mlp.activation,
        "shortcuts": shortcuts,
    }


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        version = record["format"]
        missing = {"sha256", "config", "layers", "made"} - record.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} has no readable {RECORD} ({error}); name a folder that slicing wrote") from error
    if version != FORMAT or missing:
        raise UserError(
            f"{folder / RECORD} is of format {version!r}, this version reads {FORMAT}; slice the model again"
        )
    return record


def _rebuild(config: PreTrainedConfig, tensors: dict[str, Tensor], layers: list[dict[str, Any]]) -> PreTrainedModel:
    """The model around its own tensors: no weight is initialised, none but the sliced ones are ever in memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", trust_remote_code=False)
    if len(layers) != len(model.model.layers):
        raise ValueError(f"{len(layers)} layers are described and {len(model.model.layers)} are wanted")
    for index, (layer, shape) in enumerate(zip(model.model.layers, layers, strict=True)):
        prefix = f"model.layers.{index}."
        layer_tensors = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
        layer.self_attn = SlicedAttention(_attention_weights(layer_tensors, shape), index)
        layer.mlp = SlicedMLP(_mlp_weights(layer_tensors, shape))
        if shape.get("shortcuts"):
            matrices = [layer_tensors[f"shortcuts.{number}"] for number in range(len(shape["shortcuts"]))]
            model.model.layers[index] = _cross_layer(layer, matrices, family_of(config))
    if any(shape.get("shortcuts") for shape in layers):
        model.model.embed_tokens = _cross_embedding(tensors, config.pad_token_id)
    absent, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if unexpected or set(absent) - tied:
        raise ValueError(f"tensors do not fit: {sorted({*absent, *unexpected} - tied)[0]}")
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)  # its tables are computed, not stored
    model.tie_weights()
    return model.eval().requires_grad_(False)


def _cross_layer(layer: nn.Module, shortcuts: list[Tensor], family: Family) -> CrossModuleLayer:
    norms = [BasisNorm.of(getattr(layer, name)) for name in (family.attention_norm, family.mlp_norm)]
    return CrossModuleLayer(family, layer.self_attn, layer.mlp, norms, shortcuts)


def _cross_embedding(tensors: dict[str, Tensor], padding: int | None) -> nn.Embedding:
    table, basis = tensors["model.embed_tokens.weight"], tensors.get("model.embed_tokens.basis")
    if basis is None:
        return nn.Embedding.from_pretrained(table, padding_idx=padding)
    return BasisEmbedding(nn.Parameter(table, requires_grad=False), basis, padding)


def _attention_weights(tensors: dict[str, Tensor], shape: dict[str, Any]) -> AttentionWeights:
    heads, kv_heads, dim, value_dim = (shape[name] for name in ("heads", "kv_heads", "dim", "value_dim"))
    sizes = [heads * dim, kv_heads * dim, kv_heads * value_dim]
    counts = [(heads, dim), (kv_heads, dim), (kv_heads, value_dim)]

    def parts(name: str) -> list[Tensor | None]:
        if name not in tensors:
            return [None, None, None]
        return [part.unflatten(0, count) for part, count in zip(tensors[name].split(sizes), counts, strict=True)]

    query, key, value = parts("self_attn.qkv_proj.weight")
    query_bias, key_bias, value_bias = parts("self_attn.qkv_proj.bias")
    return AttentionWeights(
        query=query,
        key=key,
        value=value,
        output=tensors["self_attn.o_proj.weight"].unflatten(1, (heads, value_dim)),
        query_bias=query_bias,
        key_bias=key_bias,
        value_bias=value_bias,
        output_bias=tensors.get("self_attn.o_proj.bias"),
        kv_head=torch.tensor(shape["kv_head"]),
        frequency=torch.tensor(shape["frequency"]),
        scale=shape["scale"],
    )


def _mlp_weights(tensors: dict[str, Tensor], shape: dict[str, Any]) -> MLPWeights:
    rows = "mlp.gate_up_proj" if shape["gated"] else "mlp.up_proj"
    weight, bias = tensors[f"{rows}.weight"], tensors.get(f"{rows}.bias")
    neurons = shape["neurons"]
    gate, up = weight.split(neurons) if shape["gated"] else (None, *weight.split(neurons))
    gate_bias, up_bias = bias.split(neurons) if shape["gated"] and bias is not None else (None, bias)
    down, down_bias = tensors["mlp.down_proj.weight"], tensors.get("mlp.down_proj.bias")
    return MLPWeights(gate, up, down, gate_bias, up_bias, down_bias, shape["activation"])


def _digest(weights: Path, record: dict[str, Any]) -> str:
    """SHA-256 of the weights and of all else that the record says: one head map edited makes another model."""
    with weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    rest = {name: value for name, value in json.loads(json.dumps(record)).items() if name != "sha256"}
    digest.update(json.dumps(rest, sort_keys=True).encode())
    return digest.hexdigest()
