"""Sliced models as a transformers model type, which its Auto classes open, build, save and push.

Importing this module registers the model type. The class of a family is imported when one of its models is opened.
"""

from __future__ import annotations

import functools
import shutil
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from intraslice.checkpoints.shapes import Shape, fill_buffers_, per_layer_config, shape_layers_, shape_of
from intraslice.core.errors import UserError
from intraslice.modeling.families import family_of

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
    def of(cls, model: PreTrainedModel, record: dict[str, Any] | None) -> IntraSliceConfig:
        """The configuration of the model in its present state. `record` is saved unchanged, so it must be JSON."""
        return cls.with_shapes(model, [shape_of(layer) for layer in model.model.layers], record)

    @classmethod
    def with_shapes(
        cls, model: PreTrainedModel, shapes: list[Shape], record: dict[str, Any] | None
    ) -> IntraSliceConfig:
        """The configuration of a dense model whose layers have these shapes once they are sliced."""
        dense = {name: value for name, value in model.config.to_dict().items() if name not in EXCLUDED_FIELDS}
        return cls(dense=dense, layers=shapes, record=record, dtype=model.dtype)

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
        fill_buffers_(model, config.layers)
        _require_shortcuts_on_device(model)
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
    """The class of sliced models for a dense configuration: it inherits from `IntraSliceForCausalLM` and the family's.

    Raises UserError for a family that cannot be sliced.
    """
    family_of(config)
    return _class_of(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def _require_shortcuts_on_device(model: PreTrainedModel) -> None:
    if any(matrix.is_meta for layer in model.model.layers for matrix in getattr(layer, "shortcuts", ())):
        raise UserError(
            "a cross-module model cannot be offloaded to disk or CPU memory, because its shortcut matrices must be on "
            "the device that runs them; use a device map without offloading, or leave it out"
        )


AutoConfig.register(IntraSliceConfig.model_type, IntraSliceConfig, exist_ok=True)
AutoModelForCausalLM.register(IntraSliceConfig, IntraSliceForCausalLM, exist_ok=True)
