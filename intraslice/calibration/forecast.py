"""What slicing one layer at a time needs: memory and disk, by the model's configuration, and time on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedConfig

from intraslice.core.config import CalibrationConfig
from intraslice.core.linalg import BLOCK, add_lower_moment_
from intraslice.modeling.families import head_width
from intraslice.pretrained.memory import LOSS_TOKENS, TOKENS_PER_BATCH

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
    """Most bytes of the journal: packed moments and mask gradients of all layers, and their hidden states."""
    layers = config.num_hidden_layers
    widths = config.num_attention_heads * head_width(config), config.intermediate_size
    layer = sum(2 * (width**2 + width) + 4 * (calibration.sequences + 16) * width for width in widths) + 2**16
    states = calibration.sequences * calibration.length * config.hidden_size * dtype.itemsize
    return layers * layer + (layers + 4) * states


def estimate_stream(
    config: PreTrainedConfig, calibration: CalibrationConfig, dtype: torch.dtype, sparsity: float, device: str = "cpu"
) -> StreamEstimate:
    """Memory, disk and time of a run; measures the speed of this machine for about a second."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    parameters = sum(parameter.numel() for parameter in model.model.layers.parameters())
    outer = sum(parameter.numel() for parameter in model.parameters()) - parameters
    tokens, layers, hidden = calibration.sequences * calibration.length, config.num_hidden_layers, config.hidden_size
    channels, neurons = config.num_attention_heads * head_width(config), config.intermediate_size
    states, layer = tokens * hidden * dtype.itemsize, parameters // layers * dtype.itemsize
    moments = 4 * (channels**2 + neurons**2)

    logits = LOSS_TOKENS * config.vocab_size * (12 + 2 * dtype.itemsize)
    forward = 3 * moments // 2 + layer + 2 * states  # the moments are packed before they are written
    slicing = 4 * moments + 3 * layer // 2  # the moment, a damped copy, and that one reordered before its factor
    memory = PROCESS + max(forward, slicing, logits + 2 * states)

    sliced = int((parameters * (1 - sparsity) + outer) * dtype.itemsize)
    # The hidden states of all layers are gone before the first sliced layer is written.
    disk = journal_bytes(config, calibration, dtype) + max(0, sliced - layers * states)

    linear, single = _speeds(hidden, neurons, dtype, device)
    # Forward, forward again and backward. The head has no second forward pass.
    passes = 6 * parameters * tokens / (PARTIAL_SPEED * linear)
    head = tokens * config.vocab_size * (4 * hidden / linear + 1 / SAMPLING_SPEED)
    sums = tokens * sum(width * (width + BLOCK) for width in (channels, neurons))
    kept = (1 - sparsity) * neurons
    solves = neurons**3 / 3 + 2 * kept * neurons * hidden + kept**2 * hidden
    solves += channels**3 / 3 + 3 * channels**2 * hidden
    # Weights are read in three sweeps and for the plan; moments are cleared, packed, written, read and unpacked.
    copied = 4 * layer + 4 * moments
    seconds = STARTUP + passes + head + layers * ((sums + solves) / single + copied / COPY_SPEED)
    return StreamEstimate(memory, disk, seconds)


def _speeds(hidden: int, neurons: int, dtype: torch.dtype, device: str) -> list[float]:
    """Floating-point operations per second of linear maps, and of moments in float32: the fastest of a few calls."""
    on_gpu = torch.device(device).type == "cuda"
    # On a CPU its own time counts: other programs may run meanwhile.
    clock, threads = (time.perf_counter, 1) if on_gpu else (time.process_time, torch.get_num_threads())
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
            seconds.append((clock() - start) / threads)
        speeds.append(operations / max(min(seconds), 1e-9))
    return speeds
