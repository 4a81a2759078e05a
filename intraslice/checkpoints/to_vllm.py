"""Writes a model with sliced MLPs as a folder for vLLM, whose `nemotron_nas` has an MLP width for each layer.

Its heads are the same in all layers, so slices with fewer or narrower heads are not supported.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from intraslice.checkpoints import configuration_nas
from intraslice.checkpoints.auto_class import IntraSliceConfig
from intraslice.checkpoints.configuration_nas import NemotronNASConfig
from intraslice.checkpoints.format import new_folder, require_free, write_parts
from intraslice.checkpoints.gguf_tensors import SAVE_AS_FOLDER
from intraslice.checkpoints.model_card import DenseHeads, model_card, only_mlps
from intraslice.core.errors import UserError
from intraslice.modeling.families import Pair, blocks, linear_maps
from intraslice.modeling.offload import resident

NAS = "vLLM's `nemotron_nas` architecture"
ARCHITECTURE = "DeciLMForCausalLM"  # vLLM's name for nemotron_nas
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_ROTARY = ("default", "linear", "llama3")  # frequencies do not depend on the length of the text
_LLAMA = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "_name_or_path"}


def require_nas(config: IntraSliceConfig) -> None:
    """Raise UserError if vLLM's `nemotron_nas` does not support the model."""
    dense, layers = config.dense, config.layers
    model_type = dense["model_type"]
    if any(layer["shortcuts"] for layer in layers):
        raise UserError(f"a cross-module model has shortcut matrices, which vLLM does not support; {SAVE_AS_FOLDER}")
    if any(layer.get("norms") for layer in layers):
        raise UserError(
            f"a {model_type} model has norms on queries and keys, which {NAS} does not have; {SAVE_AS_FOLDER}"
        )
    if not all(layer["gated"] and layer["activation"] == "silu" for layer in layers):
        raise UserError(f"{NAS} requires gated MLPs with silu, which {model_type} models do not have; {SAVE_AS_FOLDER}")
    if not only_mlps(config):
        raise UserError(
            f"{NAS} requires the same heads in every layer, and here some are removed or narrowed; "
            f"{SAVE_AS_FOLDER}, or slice only the MLPs, with the attention of every layer locked at 0"
        )
    if any(not layer["neurons"] and "mlp.down_proj" in layer["biases"] for layer in layers):
        raise UserError(f"{NAS} does not keep the output bias of a removed MLP; {SAVE_AS_FOLDER}")
    window = dense.get("sliding_window") if dense.get("use_sliding_window", True) else None
    if window and window < dense["max_position_embeddings"]:
        raise UserError(
            f"this {model_type} model has a sliding attention window of {window} tokens, which {NAS} "
            f"does not support; {SAVE_AS_FOLDER}"
        )
    heads, rotary = DenseHeads.of(dense), (dense.get("rope_parameters") or {}).get("rope_type", "default")
    pairs = list(range(heads.width // 2))
    if rotary not in _ROTARY or any(row != pairs for layer in layers for row in layer["frequency"]):
        raise UserError(
            f"{NAS} applies rotary position embeddings to all channels of queries and keys in every layer, and this "
            f"{model_type} model does not; {SAVE_AS_FOLDER}"
        )


def to_vllm(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, made: dict[str, Any] | None
) -> None:
    """Write a canonical model, sliced or dense, that vLLM opens with `trust_remote_code`; `made` goes into its card.

    The folder is created atomically. Raises UserError as `require_nas` does, and if the folder exists or the disk is
    full.
    """
    folder = Path(folder).expanduser()
    require_free(folder)
    sliced = IntraSliceConfig.of(model, made)
    require_nas(sliced)
    config = nas_config(sliced)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _tensors(model, config).items()}
    with new_folder(folder, tensors) as temporary:
        write_parts(temporary, model, tokenizer, config, model_card(sliced, folder.name, "vllm"))
        shutil.copy(configuration_nas.__file__, temporary)


def nas_config(config: IntraSliceConfig) -> NemotronNASConfig:
    """The configuration for vLLM of a model that `require_nas` accepts."""
    heads = DenseHeads.of(config.dense)
    biased = {name.split(".")[0] for layer in config.layers for name in layer["biases"]}
    attention = {"n_heads_in_group": heads.queries // heads.groups, "no_op": False, "replace_with_linear": False}
    mlps = [
        {"intermediate_size": layer["neurons"], "no_op": not layer["neurons"], "replace_with_linear": False}
        for layer in config.layers
    ]
    llama = {name: value for name, value in config.dense.items() if name in _LLAMA} | {
        "head_dim": heads.width,
        "num_key_value_heads": heads.groups,
        "hidden_act": "silu",
        "attention_bias": "self_attn" in biased,
        "mlp_bias": "mlp" in biased,
        "intermediate_size": max(layer["neurons"] for layer in config.layers),
        "dtype": config.dtype,
    }
    return NemotronNASConfig(
        block_configs=[{"attention": attention, "ffn": mlp} for mlp in mlps],
        architectures=[ARCHITECTURE],
        auto_map={"AutoConfig": f"{configuration_nas.__name__.rpartition('.')[2]}.{NemotronNASConfig.__name__}"},
        **llama,
    )


def _tensors(model: PreTrainedModel, config: NemotronNASConfig) -> dict[str, Tensor]:
    """All weights under the names of transformers' Llama, without a tied head."""
    tensors = {"model.embed_tokens.weight": model.model.embed_tokens.weight}
    for index, block in enumerate(blocks(model)):
        layer = f"model.layers.{index}"
        with resident(block.attention), resident(block.mlp):
            maps = linear_maps(block)
        tensors[f"{layer}.input_layernorm.weight"] = block.attention_norm.weight
        tensors |= _linears(f"{layer}.self_attn", maps, ATTENTION, config.attention_bias)
        if block.mlp.neurons:
            tensors[f"{layer}.post_attention_layernorm.weight"] = block.mlp_norm.weight
            tensors |= _linears(f"{layer}.mlp", maps, MLP, config.mlp_bias)
    tensors["model.norm.weight"] = model.model.norm.weight
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = model.lm_head.weight
    return tensors


def _linears(module: str, maps: dict[str, Pair], names: tuple[str, ...], biased: bool) -> dict[str, Tensor]:
    """Weights of a module's linear maps, and if `biased` the biases of all of them, zeros for maps without one."""
    tensors = {}
    for name in names:
        weight, bias = maps[name]
        tensors[f"{module}.{name}.weight"] = weight
        if biased:
            tensors[f"{module}.{name}.bias"] = weight.new_zeros(len(weight)) if bias is None else bias
    return tensors
