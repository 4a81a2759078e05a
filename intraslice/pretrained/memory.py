"""Estimates whether a model and its calibration fit into memory, before the model is loaded.

The size of the model comes from the headers of its files, that of a calibration from the shapes of the tensors it holds
at once. On SmolLM2-135M, with windows of 256 to 2,048 tokens in float32 and bfloat16, the measured peak is 0.85 to 0.92
of the estimate.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch.nn import functional
from transformers import PreTrainedConfig

from intraslice.core.checks import from_environment
from intraslice.core.config import CalibrationConfig
from intraslice.core.errors import Message, NoRoomError
from intraslice.core.linalg import BLOCK, add_lower_moment_
from intraslice.modeling.counts import parameters_of
from intraslice.modeling.families import head_width
from intraslice.modeling.hidden_states import require_length
from intraslice.pretrained.reader import Weights, empty_model, tensor_shapes
from intraslice.pretrained.sources import DEFAULT, find_weights, hub_model

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
    """`bytes` of the dense weights in the requested dtype, those `available` now, and the `weights` if on disk."""

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
    if (weights := find_weights(name)) is not None:
        parameters = sum(map(math.prod, tensor_shapes(weights).values()))
    else:
        parameters = DEFAULT_PARAMETERS if name == DEFAULT else hub_model(name).parameters
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
        sizes = {"sequences": sequences, "length": length}
        what = Message("calibrating on {sequences:,} x {length:,} tokens, in addition to the model,", **sizes)
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
    cgroup = Path("/sys/fs/cgroup")
    if (limit := cgroup / "memory.max").exists() and (bound := limit.read_text().strip()) != "max":
        pages = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        in_use = int((cgroup / "memory.current").read_text()) - int(pages["inactive_file"])
        available = min(available, max(0, int(bound) - in_use))
    max_bytes = from_environment(MEMORY_VARIABLE, -1, f"a whole number of bytes, such as {2**33}")
    if max_bytes >= 0:
        available = min(available, max(0, max_bytes - psutil.Process().memory_info().rss))
    return available


# What slicing one layer at a time needs: memory and disk, by the model's configuration, and time on this machine.

PROCESS = 420 * 2**20  # bytes of the interpreter, torch, transformers and the tokenizer, without mapped files
STARTUP = 8.0  # seconds for imports, tokenizer and text
COPY_SPEED = 2.5e9  # bytes per second, between disk and memory as well
SAMPLING_SPEED = 1e8  # probabilities per second: softmax, sampled target, gradient of the logits
MEASURED_WIDTH = 4096  # largest width at which speeds are measured
PARTIAL_SPEED = 0.55  # of a linear map: a layer's attention, norms, activations and conversions included


@dataclass(frozen=True)
class StreamEstimate:
    """Anonymous memory of the process, bytes of journal and sliced folder, and seconds; the most at any time."""

    memory_bytes: int
    disk_bytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"estimate: {self.memory_bytes / 2**30:.1f} GiB of memory, {self.disk_bytes / 1e9:.1f} GB of disk, "
            f"{max(1, round(self.seconds / 60)):,} min on this machine"
        )


def journal_bytes(config: PreTrainedConfig, calibration: CalibrationConfig, dtype: torch.dtype) -> int:
    """Most bytes of the journal: packed moments and mask gradients of all layers, and their hidden states.

    Raises UserError for sequences longer than the model's context.
    """
    require_length(calibration.length, config)
    layers, hidden, channels, _, neurons = _sizes(config)
    widths = channels, neurons
    layer = sum(2 * (width**2 + width) + 4 * (calibration.sequences + 16) * width for width in widths) + 2**16
    states = calibration.sequences * calibration.length * hidden * dtype.itemsize
    return layers * layer + (layers + 4) * states


def estimate_stream(
    config: PreTrainedConfig, calibration: CalibrationConfig, dtype: torch.dtype, sparsity: float, device: str = "cpu"
) -> StreamEstimate:
    """Memory, disk and time of a run; measures the speed of this machine for about a second."""
    total, parameters = parameters_of(empty_model(config), "dense").values()
    tokens, (layers, hidden, channels, _, neurons) = calibration.sequences * calibration.length, _sizes(config)
    states, layer = tokens * hidden * dtype.itemsize, parameters // layers * dtype.itemsize
    moments = 4 * (channels**2 + neurons**2)

    logits = LOSS_TOKENS * config.vocab_size * (12 + 2 * dtype.itemsize)
    forward = 3 * moments // 2 + layer + 2 * states  # the moments are packed before they are written
    slicing = 4 * moments + 3 * layer // 2  # the moment, a damped copy, and that one reordered before its factor
    memory = PROCESS + max(forward, slicing, logits + 2 * states)

    sliced = int((total - parameters * sparsity) * dtype.itemsize)
    # The hidden states of all layers are gone before the first sliced layer is written.
    disk = journal_bytes(config, calibration, dtype) + max(0, sliced - layers * states)

    linear, single = _speeds(hidden, neurons, dtype, device)
    passes = _pass_seconds(config, parameters, tokens, linear)  # forward, forward again and backward
    sums = tokens * sum(width * (width + BLOCK) for width in (channels, neurons))
    kept = (1 - sparsity) * neurons
    solves = neurons**3 / 3 + 2 * kept * neurons * hidden + kept**2 * hidden
    solves += channels**3 / 3 + 3 * channels**2 * hidden
    # Weights are read in three sweeps and for the plan; moments are cleared, packed, written, read and unpacked.
    copied = 4 * layer + 4 * moments
    seconds = STARTUP + passes + layers * ((sums + solves) / single + copied / COPY_SPEED)
    return StreamEstimate(memory, disk, seconds)


def calibration_seconds(
    config: PreTrainedConfig, parameters: int, calibrations: list[CalibrationConfig], dtype: torch.dtype, device: str
) -> list[float]:
    """Seconds of each calibration of the whole model, whose layers have so many `parameters`; measures speeds once."""
    layers, hidden, channels, _, neurons = _sizes(config)
    linear, single = _speeds(hidden, neurons, dtype, device)
    sums = layers * sum(width * (width + BLOCK) for width in (hidden, hidden, hidden, channels, neurons))
    seconds = []
    for calibration in calibrations:
        # The backward pass, with the gradients of all masks, takes as long as two forward passes. Sampling a token
        # takes about as long as calibrating on it (1.5 times on SmolLM2-135M).
        tokens, sampled = calibration.tokens, calibration.samples * calibration.length
        passes = _pass_seconds(config, parameters, tokens + sampled, linear)
        seconds.append(STARTUP + passes + tokens * sums / single)
    return seconds


def _pass_seconds(config: PreTrainedConfig, parameters: int, tokens: int, speed: float) -> float:
    """Seconds of three passes through the layers, and of one forward and one backward pass through the head."""
    head = tokens * config.vocab_size * (4 * config.hidden_size / speed + 1 / SAMPLING_SPEED)
    return 6 * parameters * tokens / (PARTIAL_SPEED * speed) + head


def _speeds(hidden: int, neurons: int, dtype: torch.dtype, device: str) -> list[float]:
    """Floating-point operations per second of linear maps, and of moments in float32: the fastest of a few calls."""
    on_gpu = torch.device(device).type == "cuda"
    # On a CPU this thread's own time counts: other threads and programs may run meanwhile.
    clock = time.perf_counter if on_gpu else time.thread_time
    rows, width, height = TOKENS_PER_BATCH, min(hidden, MEASURED_WIDTH), min(neurons, MEASURED_WIDTH)
    states, weight = (torch.randn(size, width, device=device).to(dtype) for size in (rows, height))
    inner, total = functional.linear(states, weight), torch.zeros(height, height, device=device)
    works: tuple[tuple[int, Callable[[], object]], ...] = (
        (2 * rows * width * height, lambda: functional.linear(states, weight)),
        (rows * height * (height + BLOCK), lambda: add_lower_moment_(total, inner)),
    )
    speeds = []
    for operations, work in works:
        seconds = []
        for _ in range(3):
            start = clock()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            seconds.append(clock() - start)
        speeds.append(operations / max(min(seconds), 1e-9))
    return speeds
