"""Estimates whether a model and its calibration fit into memory, before the model is loaded.

The size of the model comes from the headers of its files, that of a calibration from the shapes of the tensors it holds
at once. On SmolLM2-135M, with windows of 256 to 2,048 tokens in float32 and bfloat16, the measured peak is 0.85 to 0.92
of the estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedConfig

from intraslice.core.checks import from_environment
from intraslice.core.errors import Message, NoRoomError
from intraslice.modeling.families import head_width
from intraslice.modeling.hidden_states import require_length
from intraslice.pretrained.hub import hub_is_reachable, model_on_hub
from intraslice.pretrained.reader import Weights, tensor_shapes
from intraslice.pretrained.sources import DEFAULT, find_weights, unreachable_error

MEMORY_VARIABLE = "INTRASLICE_MAX_MEMORY"
DEFAULT_PARAMETERS = 134_515_008
# Moments, the activations of one layer and the interpreter, in addition to the weights.
OVERHEAD = 256 * 2**20
# Of a calibration; a batch has at least one sequence. The first bounds the activations of all layers for the backward
# pass, which need most of the memory, the second the logits that are in memory at a time.
TOKENS_PER_BATCH, LOSS_TOKENS = 512, 128
MARGIN = 1.1  # for memory that allocators cache


@dataclass(frozen=True)
class MemoryEstimate:
    """`bytes` of the dense weights in the requested dtype, and the bytes `available` on the device now.

    `weights` are the files on disk that were counted; None if they have yet to be downloaded.
    """

    parameters: int
    bytes: int
    available: int
    weights: Weights | None = None

    @property
    def needed(self) -> int:
        """Bytes needed to slice: the dense model, a sliced copy of at most its size, and intermediate results."""
        return 2 * self.bytes + OVERHEAD


def estimate_memory(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> MemoryEstimate:
    """The estimate, without loading. Raises UserError if there is no such model in safetensors or GGUF."""
    weights = find_weights(name)
    if weights is not None:
        parameters = sum(map(math.prod, tensor_shapes(weights).values()))
    elif name == DEFAULT:
        parameters = DEFAULT_PARAMETERS
    elif hub_is_reachable():
        parameters = model_on_hub(name).parameters
    else:
        raise unreachable_error(name)
    return MemoryEstimate(parameters, parameters * dtype.itemsize, available_bytes(device), weights)


def require_memory(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> MemoryEstimate:
    """The memory estimate. Raises UserError, with both numbers, if the model and its sliced copy do not fit."""
    estimate = estimate_memory(name, dtype, device)
    if estimate.needed > estimate.available:
        size = {"name": name, "millions": estimate.parameters / 1e6, "dtype": str(dtype).split(".")[-1]}
        what = Message("{name} has {millions:,.0f} M parameters; slicing it in {dtype}", **size)
        remedy = Message("use a smaller model" if dtype.itemsize <= 2 else "use bfloat16 or a smaller model")
        raise no_room(what, estimate.needed, estimate.available, device, remedy)
    return estimate


def no_room(what: Message, needed: int, free: int, device: object, remedy: Message) -> NoRoomError:
    """The error for what needs more bytes than are free."""
    message = "{what} needs {needed:.1f} GiB, but only {free:.1f} GiB is free on {device}; {remedy}"
    values = {"needed": needed / 2**30, "free": free / 2**30, "device": str(device)}
    return NoRoomError(message, what=what, remedy=remedy, **values)


def calibration_bytes(
    config: PreTrainedConfig, sequences: int, length: int, dtype: torch.dtype, copies: int = 1
) -> int:
    """Bytes needed to calibrate on windows of `length` tokens and to slice on all of them, without the dense model.

    `copies` is the number of copies of the moments; a caller that shows intermediate results holds two.
    """
    layers, hidden, channels, kv_channels, neurons = _sizes(config)
    moments = 4 * layers * (3 * hidden**2 + channels**2 + neurons**2 + sequences * (channels + neurons))
    backward = max(1, TOKENS_PER_BATCH // length) * length * backward_bytes_per_token(config, dtype)
    calibrating = backward + 6 * 4 * LOSS_TOKENS * config.vocab_size
    states = sequences * length * (neurons + 4 * hidden) * dtype.itemsize
    sliced = layers * hidden * (2 * channels + 2 * kv_channels + 3 * neurons) * dtype.itemsize
    return int(MARGIN * (copies * moments + max(calibrating, states + sliced)))


def require_calibration_memory(
    config: PreTrainedConfig, sequences: int, length: int, dtype: torch.dtype, device: str = "cpu", copies: int = 1
) -> int:
    """The needed bytes, once the model is loaded. Raises UserError, with a size that fits, or for a long `length`."""
    require_length(length, config)
    needed, free = calibration_bytes(config, sequences, length, dtype, copies), available_bytes(device)
    if needed > free:
        fits = (shorter for shorter in (length >> step for step in range(1, length.bit_length())) if shorter >= 2)
        shorter = next((n for n in fits if calibration_bytes(config, sequences, n, dtype, copies) <= free), None)
        what = Message(
            "calibrating on {sequences:,} x {length:,} tokens, in addition to the model,",
            sequences=sequences,
            length=length,
        )
        other = Message("use fewer sequences or a smaller model")
        remedy = Message("use a length of {length:,} or less", length=shorter) if shorter else other
        raise no_room(what, needed, free, device, remedy)
    return needed


def backward_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Activations of all layers that a backward pass needs, and gradients of one. Norms are computed in float32."""
    layers, hidden, channels, kv_channels, neurons = _sizes(config)
    values = 3 * hidden + 6 * channels + 2 * kv_channels + 4 * neurons
    return (layers + 1) * (values * dtype.itemsize + 2 * hidden * (4 - min(dtype.itemsize, 4)))


def _sizes(config: PreTrainedConfig) -> tuple[int, int, int, int, int]:
    """Layers, hidden size, channels of all query heads, channels of all key/value heads, neurons."""
    dim = head_width(config)
    heads = config.num_attention_heads
    channels, kv_channels = heads * dim, (getattr(config, "num_key_value_heads", None) or heads) * dim
    return config.num_hidden_layers, config.hidden_size, channels, kv_channels, config.intermediate_size


def available_bytes(device: str = "cpu") -> int:
    """Bytes that can be allocated now: on the GPU, or on the machine or in the container that limits it.

    The environment variable `MEMORY_VARIABLE` bounds the memory of this process. Raises UserError if it is not a whole
    number.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    limit, used, reclaimable = (
        Path("/sys/fs/cgroup") / file for file in ("memory.max", "memory.current", "memory.stat")
    )
    if limit.exists() and (bound := limit.read_text().strip()) != "max":
        pages = dict(line.split() for line in reclaimable.read_text().splitlines())
        in_use = int(used.read_text()) - int(pages["inactive_file"])
        available = min(available, max(0, int(bound) - in_use))
    max_bytes = from_environment(MEMORY_VARIABLE, -1, f"a whole number of bytes, such as {2**33}")
    if max_bytes >= 0:
        available = min(available, max(0, max_bytes - psutil.Process().memory_info().rss))
    return available
