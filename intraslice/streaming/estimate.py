"""Memory, disk and time of slicing one layer at a time, from the model's configuration alone, before any work.

The time follows from counted floating-point operations and from the speed of four short measurements on this machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedConfig

from intraslice.calibration.driver import LOSS_TOKENS, TOKENS_PER_BATCH, sample_tokens
from intraslice.core.linalg import BLOCK, add_lower_moment_, cholesky
from intraslice.modeling.families import head_width

PROCESS = 420 * 2**20  # bytes of the interpreter, torch, transformers and the tokenizer, without mapped files
STARTUP = 8.0  # seconds for imports, tokenizer and text
COPY_SPEED = 2.5e9  # bytes per second, between disk and memory as well
MEASURED_WIDTH = 4096  # largest width at which speeds are measured
REPEATS = 3
PARTIAL_SPEED = 0.55  # of a linear map: a layer's attention, norms, activations and conversions included


@dataclass(frozen=True)
class StreamSizes:
    """Counts of one run: L layers, N tokens in B sequences of T tokens, D channels of hidden states, V vocabulary."""

    layers: int
    hidden: int
    channels: int  # of all query heads
    neurons: int
    vocabulary: int
    layer_parameters: int
    outer_parameters: int  # embeddings, final norm and head
    sequences: int
    length: int
    value_bytes: int  # of a weight

    @property
    def tokens(self) -> int:
        """Calibration tokens."""
        return self.sequences * self.length

    @property
    def state_bytes(self) -> int:
        """The hidden states of all tokens between two layers."""
        return self.tokens * self.hidden * self.value_bytes

    @property
    def moment_values(self) -> int:
        """Values of the moments of one layer."""
        return self.channels**2 + self.neurons**2

    @property
    def journal_bytes(self) -> int:
        """Most bytes of the journal: packed moments and mask gradients of all layers, and their hidden states."""
        widths = self.channels + self.neurons
        layer = 2 * (self.moment_values + widths) + 4 * (self.sequences + 16) * widths + 2**16
        return self.layers * layer + (self.layers + 4) * self.state_bytes


def stream_sizes(config: PreTrainedConfig, sequences: int, length: int, dtype: torch.dtype) -> StreamSizes:
    """The counts of a run, from the model's configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    layers = sum(parameter.numel() for parameter in model.model.layers.parameters())
    return StreamSizes(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        channels=config.num_attention_heads * head_width(config),
        neurons=config.intermediate_size,
        vocabulary=config.vocab_size,
        layer_parameters=layers // config.num_hidden_layers,
        outer_parameters=sum(parameter.numel() for parameter in model.parameters()) - layers,
        sequences=sequences,
        length=length,
        value_bytes=dtype.itemsize,
    )


@dataclass(frozen=True)
class Speeds:
    """Speeds of this machine, in floating-point operations per second, except `sampling`."""

    linear: float  # linear maps of one batch, in the model's dtype, with a third of them in the backward pass
    moment: float  # sums of second moments, in float32
    solve: float  # Cholesky factors, in float32
    sampling: float  # probabilities per second: softmax, sampled target, gradient of the logits


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


def estimate_stream(sizes: StreamSizes, sparsity: float, speeds: Speeds) -> StreamEstimate:
    """Memory, disk and time of a run. Pure: the speeds are the only measured numbers."""
    parameters = sizes.layers * sizes.layer_parameters
    sliced = (parameters * (1 - sparsity) + sizes.outer_parameters) * sizes.value_bytes
    # The hidden states of all layers are gone before the first sliced layer is written.
    disk = max(sizes.journal_bytes, sizes.journal_bytes - sizes.layers * sizes.state_bytes + sliced)
    return StreamEstimate(_memory(sizes), int(disk), _seconds(sizes, sparsity, speeds))


def _memory(sizes: StreamSizes) -> int:
    moments, layer = 4 * sizes.moment_values, sizes.layer_parameters * sizes.value_bytes
    logits = LOSS_TOKENS * sizes.vocabulary * (12 + 2 * sizes.value_bytes)
    forward = 3 * moments // 2 + layer + 2 * sizes.state_bytes  # the moments are packed before they are written
    slicing = 4 * moments + 3 * layer // 2  # the moment, a damped copy, and that one reordered before its factor
    return PROCESS + max(forward, slicing, logits + 2 * sizes.state_bytes)


def _seconds(sizes: StreamSizes, sparsity: float, speeds: Speeds) -> float:
    tokens = sizes.tokens
    # Forward, forward again and backward. The head has no second forward pass.
    layers = 6 * sizes.layers * sizes.layer_parameters * tokens / (PARTIAL_SPEED * speeds.linear)
    head = tokens * sizes.vocabulary * (4 * sizes.hidden / speeds.linear + 1 / speeds.sampling)
    moments = sum(width * (width + BLOCK) for width in (sizes.channels, sizes.neurons))
    kept = (1 - sparsity) * sizes.neurons
    solves = sizes.neurons**3 / 3 + 2 * kept * sizes.neurons * sizes.hidden + kept**2 * sizes.hidden
    solves += sizes.channels**3 / 3 + 3 * sizes.channels**2 * sizes.hidden
    # Weights are read in three sweeps and for the plan; moments are cleared, packed, written, read and unpacked.
    copied = 4 * sizes.layer_parameters * sizes.value_bytes + 16 * sizes.moment_values
    layer = tokens * moments / speeds.moment + solves / speeds.solve + copied / COPY_SPEED
    return STARTUP + layers + head + sizes.layers * layer


def measure_speeds(sizes: StreamSizes, dtype: torch.dtype, device: str = "cpu") -> Speeds:
    """Measure this machine with random matrices of the model's widths, up to a bound; takes about a second."""
    hidden, neurons = min(sizes.hidden, MEASURED_WIDTH), min(sizes.neurons, MEASURED_WIDTH)
    rows = max(1, TOKENS_PER_BATCH // sizes.length) * sizes.length
    rows = min(rows, MEASURED_WIDTH)
    states, weight = (
        torch.randn(rows, hidden, device=device).to(dtype),
        torch.randn(neurons, hidden, device=device).to(dtype),
    )
    inner = functional.linear(states, weight)
    total, values = torch.zeros(neurons, neurons, device=device), inner.float()
    system = values.T @ values + rows * torch.eye(neurons, device=device)
    logits = torch.randn(LOSS_TOKENS, min(sizes.vocabulary, 2**16), device=device).to(dtype)

    def pass_linear() -> None:
        functional.linear(states, weight)
        functional.linear(states, weight)
        inner @ weight

    def sample() -> Tensor:
        probabilities = logits.softmax(-1, dtype=torch.float32)
        targets = sample_tokens(probabilities, torch.Generator(device).manual_seed(0))
        probabilities[torch.arange(LOSS_TOKENS, device=device), targets] -= 1
        return probabilities.to(dtype)

    return Speeds(
        linear=6 * rows * hidden * neurons / _fastest(pass_linear, device),
        moment=rows * neurons * (neurons + BLOCK) / _fastest(lambda: add_lower_moment_(total, inner), device),
        solve=neurons**3 / 3 / _fastest(lambda: cholesky(system), device),
        sampling=logits.numel() / _fastest(sample, device),
    )


def _fastest(work: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of a few calls. On a CPU its own time counts: other programs may run meanwhile."""
    seconds = []
    for _ in range(REPEATS):
        start = _clock(device)
        work()
        seconds.append(_clock(device) - start)
    return max(min(seconds), 1e-9)


def _clock(device: str) -> float:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() / torch.get_num_threads()
