"""Models larger than memory, through accelerate: weights are offloaded to disk or CPU memory until they are used.

Only the linear maps of the canonical attention and MLP are offloaded. accelerate's hooks fetch them one by one in every
forward; `resident` fetches those of one module once and holds them. All computing is on one device.
"""

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args
from uuid import uuid4

import torch
from accelerate.hooks import AlignDevicesHook, SequentialHook, add_hook_to_module, remove_hook_from_module
from accelerate.utils import OffloadedWeightsLoader, offload_state_dict
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from intraslice.core.cache import cache_folder, temporary_folder
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import Block, DenseModule, block_of, canonicalise_layer_, family_of

Placement = Literal["auto", "disk"]  # auto: layers that fit are in memory; disk: no layer is
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)


def place_layers(
    config: PreTrainedConfig, dtype: torch.dtype, device: str, placement: Placement, device_bytes: int, cpu_bytes: int
) -> dict[str, str]:
    """accelerate's device map, from the free bytes of the device and of the CPU.

    Layers are on `device` while the model fills less than half of `device_bytes`, then in CPU memory while they fill
    less than half of `cpu_bytes`, then on disk. Everything else, with the layers' norms, is on `device`.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    places = {name: device for name, _ in model.named_children() if name != "model"}
    places |= {f"model.{name}": device for name, _ in model.model.named_children() if name != "layers"}
    layers, parameters = model.model.layers.parameters(), model.parameters()
    free_bytes = {device: device_bytes / 2 - sum(p.nbytes for p in parameters) + sum(p.nbytes for p in layers)}
    if device != "cpu":
        free_bytes["cpu"] = cpu_bytes / 2
    for index, layer in enumerate(model.model.layers):
        needed = sum(p.nbytes for p in layer.parameters())
        fitting = [place for place, nbytes in free_bytes.items() if nbytes >= needed and placement == "auto"]
        place = fitting[0] if fitting else "disk"
        names = {name: place if name in ("self_attn", "mlp") else device for name, _ in layer.named_children()}
        places |= {f"model.layers.{index}.{name}": place for name, place in names.items()}
        if fitting:
            free_bytes[place] -= needed
    return places


def _hook(module: nn.Module) -> Any:
    """accelerate's `AlignDevicesHook` that fetches the module's tensors, or None if they are not offloaded."""
    hook = getattr(module, "_hf_hook", None)
    for candidate in hook.hooks if isinstance(hook, SequentialHook) else [hook]:
        if isinstance(candidate, AlignDevicesHook) and candidate.offload:
            return candidate
    return None


def is_offloaded(model: nn.Module) -> bool:
    """Whether any weight of the model is offloaded."""
    return any(_hook(module) for module in model.modules())


def fetch_tensor(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The values of the model's parameter or buffer `name`, fetched if it is offloaded."""
    if not tensor.is_meta:
        return tensor
    owner, _, attribute = name.rpartition(".")
    return _values(model.get_submodule(owner))[attribute]


def _values(module: nn.Module) -> dict[str, nn.Parameter]:
    """The values of the module's offloaded parameters, without those of its submodules."""
    hook = _hook(module)
    return {
        name: nn.Parameter(hook.weights_map[name].to(hook.execution_device, parameter.dtype), requires_grad=False)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.is_meta
    }


@contextmanager
def resident(module: nn.Module) -> Iterator[None]:
    """Hold the module's weights in memory inside the context. Does nothing for a module that is not offloaded.

    Several jobs may hold the same module at the same time: the last one to leave offloads it again.
    """
    offloaded = [part for part in module.modules() if _hook(part)]
    for part in offloaded:
        state = vars(part)
        holders = state.get("_holders", 0)
        if not holders:
            state["_offloaded_state"] = dict(part.named_parameters(recurse=False)), part.forward
            for name, value in _values(part).items():
                setattr(part, name, value)
            part.forward = state["_old_forward"]
        state["_holders"] = holders + 1
    try:
        yield
    finally:
        for part in offloaded:
            state = vars(part)
            state["_holders"] -= 1
            if state["_holders"] == 0:
                parameters, part.forward = state.pop("_offloaded_state")
                del state["_holders"]
                for name, parameter in parameters.items():
                    setattr(part, name, parameter)


@contextmanager
def open_layer(model: PreTrainedModel, index: int) -> Iterator[tuple[DenseModule, Block]]:
    """One layer, canonical, with its weights in memory inside the context."""
    layer = model.model.layers[index]
    stored = layer.self_attn, layer.mlp
    try:
        if not isinstance(layer.self_attn, SlicedAttention):
            with resident(layer):
                canonicalise_layer_(model, index)
        with resident(layer):
            yield layer, block_of(layer, family_of(model.config))
    finally:
        layer.self_attn, layer.mlp = stored


def offload_(module: nn.Module, device: str | torch.device, on_disk: bool) -> None:
    """Offload the weights of the module's linear maps to disk or CPU memory, in place; they are used on `device`."""
    for linear in module.modules():
        if isinstance(linear, nn.Linear):
            weights: Any = {name: value.cpu() for name, value in linear.state_dict().items()}
            if on_disk:
                folder = _offload_folder(cache_folder()) / uuid4().hex
                offload_state_dict(folder, weights)
                weights = OffloadedWeightsLoader(save_folder=folder)
            add_hook_to_module(linear, AlignDevicesHook(device, offload=True, weights_map=weights))


def offload_like_(module: nn.Module, dense: nn.Module) -> None:
    """Offload a sliced module's weights to where those of its dense module are."""
    hook = next(filter(None, map(_hook, dense.modules())), None)
    if hook is not None and module is not dense:
        offload_(module, hook.execution_device, isinstance(hook.weights_map, OffloadedWeightsLoader))


@cache
def _offload_folder(_: Path) -> Path:
    """The folder of this process for offloaded weights in a cache folder.

    It is removed when the process ends, or by the next process if it is killed.
    """
    exit_stack = ExitStack()
    atexit.register(exit_stack.close)
    return exit_stack.enter_context(temporary_folder(required=True))


def canonicalise_offloaded_(model: PreTrainedModel, places: dict[str, str], device: str) -> None:
    """Canonicalise, layer by layer, a model that transformers loaded with the device map `places`."""
    for index, layer in enumerate(model.model.layers):
        place = places[f"model.layers.{index}.self_attn"]
        with resident(layer):
            canonicalise_layer_(model, index)
        if place != device:
            offload_(layer, device, place == "disk")
    for part in model.modules():
        if not _hook(part):
            remove_hook_from_module(part)
    model.__dict__.pop("hf_device_map", None)  # all computing is on one device, so generation must not see a map
