"""A dense model whose weights stay in their safetensors files, except those of the part that is in use."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.modeling.families import Block, DenseModule, block_of, canonicalise_layer_, family_of
from intraslice.pretrained.headers import safetensors_shapes
from intraslice.pretrained.reader import Weights, quiet_transformers, read_config, require_match, weight_files


@dataclass(frozen=True)
class StreamedModel:
    """`model` is on the meta device; `layer` and `outer_weights` fill a part of it while they are open.

    A tensor that has the model's dtype is not copied but mapped from its file, so it takes no memory of the process.
    """

    model: PreTrainedModel
    device: str
    files: dict[str, Path]  # of each tensor, by its name in the model

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.model.model.layers)

    @property
    def outer_names(self) -> list[str]:
        """Names of the tensors outside the layers: embeddings, final norm and head, unless it shares the embeddings."""
        return [name for name in self.files if not name.startswith("model.layers.")]

    @contextmanager
    def layer(self, index: int) -> Iterator[tuple[DenseModule, Block]]:
        """One layer with its weights, canonical."""
        layers = self.model.model.layers
        empty, layer = layers[index], copy.deepcopy(layers[index])
        prefix = f"model.layers.{index}."
        tensors = self.read(prefix + name for name in layer.state_dict())
        layer.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items()}, assign=True)
        layers[index] = layer.requires_grad_(False)
        del tensors  # canonicalising copies some of them
        try:
            canonicalise_layer_(self.model, index)
            yield layer, block_of(layer, family_of(self.model.config))
        finally:
            layers[index] = empty

    @contextmanager
    def outer_weights(self) -> Iterator[None]:
        """The weights outside the layers: embeddings, final norm and head."""
        empty: dict[tuple[nn.Module, str], nn.Parameter] = {}
        for name, tensor in self.read(self.outer_names).items():
            self._replace(name, nn.Parameter(tensor, requires_grad=False), empty)
        if self.model.config.tie_word_embeddings:
            self._replace("lm_head.weight", self.model.model.embed_tokens.weight, empty)
        try:
            yield
        finally:
            for (owner, attribute), parameter in empty.items():
                setattr(owner, attribute, parameter)

    def _replace(self, name: str, parameter: nn.Parameter, empty: dict[tuple[nn.Module, str], nn.Parameter]) -> None:
        """Set a parameter of the model, and add the one that it replaces to `empty`."""
        path, _, attribute = name.rpartition(".")
        owner = self.model.get_submodule(path)
        empty[owner, attribute] = getattr(owner, attribute)
        setattr(owner, attribute, parameter)

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors by name, in the model's dtype, on the device."""
        tensors = {}
        for name in names:
            with safe_open(self.files[name], framework="pt") as file:
                stored = name if name in file.keys() else name.removeprefix("model.")  # noqa: SIM118  not a dict
                tensors[name] = file.get_tensor(stored).to(self.device, self.model.dtype)
        return tensors


def open_model(weights: Weights, dtype: torch.dtype, device: str) -> StreamedModel:
    """Open a dense model in safetensors files without reading its weights.

    Raises UserError for a GGUF file, or files that are missing, invalid or no model that can be sliced.
    """
    if weights.gguf:
        raise UserError(
            f"{weights.display_name} is a GGUF file, which is not read layer by layer; use a folder of safetensors"
        )
    config = read_config(weights)
    require_match(config, weights)
    with torch.device("meta"), quiet_transformers():
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
        )
    model = model.to(dtype).eval().requires_grad_(False)
    model.config.dtype = dtype
    _fill_buffers_(model, device)
    if (weights.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(weights.folder)
    files = {name: file for file in weight_files(weights.folder) for name in safetensors_shapes(file)}
    names = [name for name in model.state_dict() if name != "lm_head.weight" or not config.tie_word_embeddings]
    return StreamedModel(model, device, {name: files.get(name) or files[name.removeprefix("model.")] for name in names})


def _fill_buffers_(model: PreTrainedModel, device: str) -> None:
    """Compute, in place, what no file holds: rotary frequencies, and the scale of Gemma's embeddings.

    Raises UserError for a model with other buffers.
    """
    inner = model.model
    inner.rotary_emb = type(inner.rotary_emb)(config=model.config).to(device)
    if (scale := getattr(inner.embed_tokens, "scalar_embed_scale", None)) is not None:
        inner.embed_tokens.embed_scale = nn.Buffer(torch.tensor(scale, device=device), persistent=False)
    if empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise UserError(
            f"{model.config.model_type} models have the buffer {empty[0]}, which cannot be read layer by layer; leave "
            "--stream out"
        )
