"""Sliced models as a transformers model type, registered on import: Auto classes open, build, save and push them."""

import copy
import functools
import math
import shutil
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.core.weights import AttentionWeights, HeadNorms, MLPWeights
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import DenseModule, blocks, family_of, head_width, write_layer_
from intraslice.modeling.hidden_states import require_model
from intraslice.modeling.mlp import SlicedMLP
from intraslice.modeling.offload import resident
from intraslice.modeling.residual import BasisEmbedding, BasisNorm, CrossModuleLayer

Shape = dict[str, Any]  # of one layer, as JSON
LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.up_proj", "mlp.down_proj")


def shape_of(layer: DenseModule) -> Shape:
    """The shape of a canonical layer, dense or sliced."""
    attention, mlp, parameters = layer.self_attn, layer.mlp, {name for name, _ in layer.named_parameters()}
    shortcuts = [list(matrix.shape) for matrix in layer.shortcuts] if isinstance(layer, CrossModuleLayer) else []
    return {
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "dim": attention.dim,
        "value_dim": attention.value_dim,
        "kv_head": attention.kv_head.tolist(),
        "frequency": attention.frequency.tolist(),
        "scale": attention.scale,
        "norms": None if attention.norms is None else [attention.norms.epsilon, attention.norms.offset],
        "neurons": mlp.neurons,
        "gated": mlp.gated,
        "activation": mlp.activation,
        "shortcuts": shortcuts,
        "biases": [name for name in LINEARS if f"{name}.bias" in parameters],
    }


def per_layer_config(shapes: Sequence[Shape]) -> dict[str, dict[str, int]]:
    """The layers' sizes as transformers' `per_layer_config`, or nothing where it cannot say what a layer computes.

    It has fields for the numbers of heads and neurons, but not for narrower heads, removed rotary pairs, groups of
    unequal size, shortcut matrices, or layers without a module.
    """
    entries = {}
    for index, shape in enumerate(shapes):
        heads, kv_heads, dim = shape["heads"], shape["kv_heads"], shape["dim"]
        if not (heads and shape["neurons"]) or shape["shortcuts"] or shape["value_dim"] != dim:
            return {}
        group = heads // kv_heads
        has_even_groups = shape["kv_head"] == [head // group for head in range(heads)]
        has_all_pairs = shape["frequency"] == [list(range(dim // 2))] * kv_heads
        if not (has_even_groups and has_all_pairs and math.isclose(shape["scale"], dim**-0.5)):
            return {}
        sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": dim}
        entries[str(index)] = sizes | {"intermediate_size": shape["neurons"]}
    return entries


def shape_layers_(model: PreTrainedModel, shapes: Sequence[Shape]) -> None:
    """Replace the dense layers, in place, by empty modules of these shapes. Raises ValueError for another number."""
    family, hidden = family_of(model.config), model.config.hidden_size
    if len(shapes) != len(model.model.layers):
        raise ValueError(f"expected shapes of {len(model.model.layers)} layers, got {len(shapes)}")
    for index, (layer, shape) in enumerate(zip(model.model.layers, shapes, strict=True)):
        shortcuts = shape["shortcuts"]
        widths = shortcuts or [(hidden, hidden)]  # parallel attention and MLP share one shortcut
        attention = SlicedAttention(_attention(shape, *widths[0]), index)
        mlp = SlicedMLP(_mlp(shape, *widths[-1]))
        if shortcuts:
            norms = [BasisNorm(getattr(layer, name)) for name in (family.attention_norm, family.mlp_norm)]
            # transformers initialises linear maps, but not these.
            matrices = [torch.eye(*sizes) for sizes in shortcuts]
            model.model.layers[index] = CrossModuleLayer(family, attention, mlp, norms, matrices)
        else:
            layer.self_attn, layer.mlp = attention, mlp
    if shapes and shapes[0]["shortcuts"]:
        model.model.embed_tokens = _embedding(model, shapes[0]["shortcuts"][0][0])


def _frequency(shape: Shape) -> Tensor:
    return torch.tensor(shape["frequency"], dtype=torch.long, device="cpu").view(shape["kv_heads"], shape["dim"] // 2)


def _attention(shape: Shape, reads: int, writes: int) -> AttentionWeights:
    heads, kv_heads, dim, value_dim = (shape[name] for name in ("heads", "kv_heads", "dim", "value_dim"))
    biased, norms = "self_attn.qkv_proj" in shape["biases"], None
    if shape["norms"]:  # that do nothing but normalise: transformers initialises linear maps, but not these
        epsilon, offset = shape["norms"]
        norms = HeadNorms(torch.full((dim,), 1 - offset), torch.full((dim,), 1 - offset), epsilon, offset)
    return AttentionWeights(
        query=torch.empty(heads, dim, reads),
        key=torch.empty(kv_heads, dim, reads),
        value=torch.empty(kv_heads, value_dim, reads),
        output=torch.empty(writes, heads, value_dim),
        query_bias=torch.empty(heads, dim) if biased else None,
        key_bias=torch.empty(kv_heads, dim) if biased else None,
        value_bias=torch.empty(kv_heads, value_dim) if biased else None,
        output_bias=torch.empty(writes) if "self_attn.o_proj" in shape["biases"] else None,
        kv_head=torch.tensor(shape["kv_head"], dtype=torch.long, device="cpu"),
        frequency=_frequency(shape),
        scale=shape["scale"],
        norms=norms,
    )


def _mlp(shape: Shape, reads: int, writes: int) -> MLPWeights:
    neurons, gated, biases = shape["neurons"], shape["gated"], shape["biases"]
    biased = ("mlp.gate_up_proj" if gated else "mlp.up_proj") in biases
    return MLPWeights(
        gate=torch.empty(neurons, reads) if gated else None,
        up=torch.empty(neurons, reads),
        down=torch.empty(writes, neurons),
        gate_bias=torch.empty(neurons) if gated and biased else None,
        up_bias=torch.empty(neurons) if biased else None,
        down_bias=torch.empty(writes) if "mlp.down_proj" in biases else None,
        activation=shape["activation"],
    )


def _embedding(model: PreTrainedModel, width: int) -> nn.Embedding:
    """The embedding in the first basis, which is fused into the table unless the head shares the table."""
    table, hidden = model.model.embed_tokens, model.config.hidden_size
    if model.config.tie_word_embeddings:
        return BasisEmbedding(nn.Parameter(table.weight, False), torch.eye(hidden, width), table.padding_idx)
    return nn.Embedding(table.num_embeddings, width, table.padding_idx)


RECORD = "intraslice.json"
WEIGHTS = "model.safetensors"
REMOTE_CODE = "modeling_intraslice.py"
AUTO_MAP = {
    "AutoConfig": "modeling_intraslice.IntraSliceConfig",
    "AutoModelForCausalLM": "modeling_intraslice.IntraSliceForCausalLM",
}
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")
EXCLUDED_FIELDS = ("_name_or_path", "dtype")  # of the dense configuration: a local path, and the dtype of the weights


class IntraSliceConfig(PreTrainedConfig):
    """The configuration of the dense model, the shape of every layer, and the record of how it was sliced."""

    model_type = "intraslice"

    def __init__(
        self,
        dense: dict[str, Any] | None = None,
        layers: list[Shape] | None = None,
        record: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        record = options.pop("made", record)  # in folders of older versions, which also have `asked`
        if record and "asked" in record:
            record = {"requested" if name == "asked" else name: value for name, value in record.items()}
        self.dense, self.layers, self.record = dense or {}, layers or [], record
        options.pop("transformers", None)  # `to_dict` makes it from the layers
        super().__init__(**options)

    @classmethod
    def of(cls, model: PreTrainedModel, record: dict[str, Any] | None, shapes: list[Shape] | None = None) -> Self:
        """The configuration of a model with layers of these shapes, by default its own. `record` must be JSON."""
        dense = {name: value for name, value in model.config.to_dict().items() if name not in EXCLUDED_FIELDS}
        layers = shapes or [shape_of(layer) for layer in model.model.layers]
        return cls(dense=dense, layers=layers, record=record, dtype=model.dtype)

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with transformers' own `per_layer_config` beside `layers`.

        It is in an object of its own: at the top level, transformers fails to open even the tokenizer of the folder.
        """
        entries = per_layer_config(self.layers)
        return super().to_dict() | ({"transformers": {"per_layer_config": entries}} if entries else {})

    def dense_config(self, **changes: Any) -> PreTrainedConfig:
        """The configuration of the dense model, with some values changed."""
        return AutoConfig.for_model(**(self.dense | changes))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """The configuration in which transformers looks up sizes and special tokens."""
        return self.dense_config() if self.dense else self

    def save_pretrained(self, save_directory: str | PathLike[str], push_to_hub: bool = False, **options: Any) -> None:
        """Write config.json, and the code that opens the folder with `trust_remote_code`."""
        self.auto_map = AUTO_MAP
        super().save_pretrained(save_directory, push_to_hub, **options)
        shutil.copyfile(Path(__file__).with_name(REMOTE_CODE), Path(save_directory) / REMOTE_CODE)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Do nothing: transformers would copy this file into every folder that it saves."""


# The other base, the class of a family, is only known when a model is opened (`_class_of`).
if TYPE_CHECKING:
    _Family = PreTrainedModel
else:
    _Family = object


class IntraSliceForCausalLM(_Family):
    """The causal language model class of a family, with sliced layers. `record` says how it was sliced, if known.

    `config` is the configuration of the dense model. `save_pretrained` writes an `IntraSliceConfig` of the layers.
    """

    config_class = IntraSliceConfig
    config: PreTrainedConfig
    record: dict[str, Any] | None = None
    # The layers use torch's attention kernel at any shape.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_attention_backend = False

    def __init__(self, config: PreTrainedConfig, layers: list[Shape]) -> None:
        super().__init__(config)
        shape_layers_(self, layers)
        self.requires_grad_(True)
        self.init_weights()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[str] | None,
        *model_args: Any,
        config: PreTrainedConfig | str | PathLike[str] | None = None,
        **options: Any,
    ) -> Any:
        """Load a sliced model from a folder or the Hub, with all options of transformers: `device_map`, `dtype` ..."""
        hub: dict[str, Any] = {key: options[key] for key in HUB_OPTIONS if options.get(key) is not None}
        name: Any = pretrained_model_name_or_path
        if not isinstance(config, IntraSliceConfig):
            source: Any = config or name
            config = IntraSliceConfig.from_pretrained(source, **hub)
        changes = {key: options.pop(key) for key in options.keys() & config.dense.keys()}
        dense = config.dense_config(attn_implementation=config._attn_implementation, **changes)
        opened = super(IntraSliceForCausalLM, _sliced_class(dense)).from_pretrained(
            name, *model_args, config=dense, layers=config.layers, **options
        )
        model = opened[0] if isinstance(opened, tuple) else opened  # with `output_loading_info`
        for layer, shape in zip(model.model.layers, config.layers, strict=True):
            if any(matrix.is_meta for matrix in getattr(layer, "shortcuts", ())):
                raise UserError(
                    "a cross-module model cannot be offloaded to disk or CPU memory, because its shortcut matrices "
                    "must be on the device that runs them; use a device map without offloading, or leave it out"
                )
            # Of modules that were built on the meta device.
            layer.self_attn.fill_layout_(torch.tensor(shape["kv_head"], dtype=torch.long), _frequency(shape))
        model.record = config.record
        return opened

    @classmethod
    def _from_config(cls, config: IntraSliceConfig, **options: Any) -> PreTrainedModel:
        """A model of these shapes with random weights."""
        dense, dtype = config.dense_config(), options.pop("dtype", config.dtype)
        model = super(IntraSliceForCausalLM, _sliced_class(dense))._from_config(
            dense, layers=config.layers, dtype=dtype, **options
        )
        model.record = config.record
        return model

    def save_pretrained(self, save_directory: str | PathLike[str], *arguments: Any, **options: Any) -> None:
        """Save as transformers does, with a configuration of the present layers."""
        dense, self.config = self.config, IntraSliceConfig.of(self, self.record)
        try:
            super().save_pretrained(save_directory, *arguments, **options)
        finally:
            self.config = dense

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModelForCausalLM") -> None:
        """Do nothing, as for the configuration."""

    def _get_static_cache_init_shape(self) -> None:
        """None, as layers differ: a static cache takes its shapes from the first keys and values instead."""


@functools.cache
def _class_of(dense: type[PreTrainedModel]) -> Any:
    # The Auto classes look the class up by this name.
    return type(IntraSliceForCausalLM.__name__, (IntraSliceForCausalLM, dense), {"__module__": __name__})


def _sliced_class(config: PreTrainedConfig) -> Any:
    """The class of sliced models for a dense configuration. Raises UserError for a family that cannot be sliced."""
    family_of(config)
    return _class_of(transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


AutoConfig.register(IntraSliceConfig.model_type, IntraSliceConfig, exist_ok=True)
AutoModelForCausalLM.register(IntraSliceConfig, IntraSliceForCausalLM, exist_ok=True)


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """A stock transformers model that computes the same function; its tensors are copies.

    transformers allows other head counts and MLP widths if they are the same in all layers, but neither narrower heads
    (its rotary frequencies and softmax scale follow from the head width) nor groups of unequal size.

    Raises UserError, naming the layer, if layers have different shapes or heads are narrower.
    """
    require_model(model)
    if isinstance(model.model.layers[0], CrossModuleLayer):
        raise UserError(
            "a cross-module model has shortcut matrices, which transformers' classes do not support; "
            "save the IntraSlice checkpoint instead"
        )
    layers, config = blocks(model), copy.deepcopy(model.config)
    first, dim, family = layers[0], head_width(config), family_of(config)
    for index, block in enumerate(layers):
        attention, sizes = block.attention, (block.attention.heads, block.attention.kv_heads, block.mlp.neurons)
        is_narrow = (attention.dim, attention.value_dim) != (dim, dim)
        if is_narrow or not attention.even_groups:
            narrow = f"heads of {attention.value_dim} channels instead of {dim}"
            unsupported = narrow if is_narrow else "groups of unequal size"
            raise UserError(
                f"layer {index} has {unsupported}, which transformers does not support; save the IntraSlice checkpoint "
                "instead, or slice only the MLPs"
            )
        if sizes != (first.attention.heads, first.attention.kv_heads, first.mlp.neurons):
            raise UserError(
                f"layer {index} has a different shape from layer 0, and transformers' model classes require the same "
                "shape in all layers; use the uniform estimator, or save the IntraSlice checkpoint instead"
            )
    config.head_dim = dim
    config.num_attention_heads, config.num_key_value_heads = first.attention.heads, first.attention.kv_heads
    config.intermediate_size = first.mlp.neurons
    plain = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    for layer, block in zip(plain.model.layers, layers, strict=True):
        with resident(block.attention), resident(block.mlp):
            write_layer_(layer, block, family)
    tensors = model.state_dict().items()
    outside = {name: tensor for name, tensor in tensors if ".self_attn." not in name and ".mlp." not in name}
    plain.load_state_dict(outside, strict=False)
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.eval().requires_grad_(False)
