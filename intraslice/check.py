"""What slicing a model gives and takes, before its weights are downloaded or read: from configuration and headers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from intraslice.calibration.stats import layer_sizes
from intraslice.checkpoints.to_gguf import require_deci_layers
from intraslice.core.config import CalibrationConfig
from intraslice.core.errors import UserError
from intraslice.loading import require_dense_name
from intraslice.modeling.counts import parameters_of
from intraslice.modeling.families import blocks, canonicalise, head_width
from intraslice.modeling.residual import require_no_output_norms
from intraslice.pretrained.memory import MemoryEstimate, available_bytes, calibration_bytes, calibration_seconds
from intraslice.pretrained.reader import empty_model, require_match
from intraslice.pretrained.sources import inspect_source

SPARSITIES = (0.2, 0.3, 0.5)
# The fraction of the KV cache that is removed, in units of the sparsity: the least and the most of the default
# estimator's plans at these sparsities for SmolLM2, Qwen2.5 and Gemma 3 are TODO.
CACHE_REMOVED = (0.3, 1.4)
WHOLE_QUERIES = "narrower queries and keys: the norm of a head needs all of its channels"


@dataclass(frozen=True)
class SlicedSize:
    """Expected size at one sparsity; the cache as (least, most), since the ratios are not known yet."""

    sparsity: float
    parameters: int
    bytes: int
    kv_bytes_per_token: tuple[int, int]


@dataclass(frozen=True)
class ModelCheck:
    """A dense model's shape and size, what slices of it take, and what a calibration on this machine takes.

    Attributes:
        download_bytes: 0 for weights on disk.
        decoder_parameters: those of the layers, to which sparsity refers.
        bytes: of the dense weights, in `dtype`.
        memory_bytes: for calibrating and slicing, with the dense model in memory.
        whole_queries: whether queries and keys keep their width, since the norm of a head needs all of its channels.
        no_crossmodule: why the method crossmodule cannot slice the model; empty if it can.
        no_gguf: why llama.cpp, also in the browser, cannot run slices; empty if it can.
    """

    model: str
    family: str
    download_bytes: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    neurons: int
    parameters: int
    decoder_parameters: int
    dtype: str
    bytes: int
    kv_bytes_per_token: int
    sliced: tuple[SlicedSize, ...]
    calibration_tokens: int
    calibration_seconds: float
    memory_bytes: int
    available_bytes: int
    whole_queries: bool
    no_crossmodule: str
    no_gguf: str

    def __str__(self) -> str:
        where = f"{self.download_bytes / 1e6:,.0f} MB to download" if self.download_bytes else "on disk"
        rows = [(0.0, self.parameters, self.bytes, f"{self.kv_bytes_per_token / 1024:.1f}")]
        for size in self.sliced:
            cache = " - ".join(f"{count / 1024:.1f}" for count in size.kv_bytes_per_token)
            rows.append((size.sparsity, size.parameters, size.bytes, cache))
        lines = [
            f"{self.model}: {self.family}, {self.layers} layers, {self.heads} heads of width {self.head_width} in "
            f"{self.kv_heads} groups, {self.neurons:,} neurons; {where}",
            f"sparsity   parameters   MB in {self.dtype:8}   kB of KV cache per token",
            *(f"{s:8.0%}   {count / 1e6:8,.1f} M   {size / 1e6:14,.0f}   {cache}" for s, count, size, cache in rows),
            f"memory: {self.memory_bytes / 2**30:.1f} GiB, {self.available_bytes / 2**30:.1f} GiB is free"
            f"{'' if self.memory_bytes <= self.available_bytes else ' (too little: see `slice --stream`)'}",
            f"calibration: {self.calibration_tokens:,} tokens, about {self.calibration_seconds / 60:.1f} min here",
            f"saved as: transformers folder{'' if self.no_gguf else ', GGUF for llama.cpp and the browser'}",
        ]
        limits = WHOLE_QUERIES if self.whole_queries else "", self.no_crossmodule, self.no_gguf
        return "\n".join([*lines, *(f"not possible: {limit}" for limit in limits if limit)])


def check_model(
    name: str, calibration: CalibrationConfig, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> ModelCheck:
    """Check a Hub id, a folder, a .gguf file, or "default". Measures this machine's speed for about a second.

    Raises UserError where there is no such model, it cannot be sliced, or its headers do not match its configuration.
    """
    require_dense_name(name)
    config, weights, download_bytes = inspect_source(name)
    if weights is not None:
        require_match(config, weights)
    model = empty_model(config)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # with its frequencies, not on the meta device
    counts = parameters_of(model, "dense")
    total, decoder = counts["dense_total"], counts["dense_decoder"]
    canonicalise(model)
    sizes = [layer_sizes(block) for block in blocks(model)]
    cache = sum(size.cached_values(size.kv_heads, size.dim) for size in sizes) * dtype.itemsize
    expected = []
    for sparsity in SPARSITIES:
        parameters = total - round(sparsity * decoder)
        least, most = (max(0, round(cache * (1 - sparsity * removed))) for removed in reversed(CACHE_REMOVED))
        expected.append(SlicedSize(sparsity, parameters, parameters * dtype.itemsize, (least, most)))
    free = available_bytes(device)
    needed = calibration_bytes(config, calibration.sequences, calibration.length, dtype)
    return ModelCheck(
        model=name,
        family=config.model_type,
        download_bytes=download_bytes,
        layers=len(sizes),
        heads=sizes[0].heads,
        kv_heads=sizes[0].kv_heads,
        head_width=head_width(config),
        neurons=sizes[0].neurons,
        parameters=total,
        decoder_parameters=decoder,
        dtype=str(dtype).removeprefix("torch."),
        bytes=total * dtype.itemsize,
        kv_bytes_per_token=cache,
        sliced=tuple(expected),
        calibration_tokens=calibration.sequences * calibration.length,
        calibration_seconds=calibration_seconds(config, decoder, calibration, dtype, device),
        memory_bytes=MemoryEstimate(total, total * dtype.itemsize, free).needed + needed,
        available_bytes=free,
        whole_queries=sizes[0].whole_queries,
        no_crossmodule=_refusal(lambda: require_no_output_norms(blocks(model), "crossmodule")),
        no_gguf=_refusal(lambda: require_deci_layers(model)),
    )


def _refusal(require: Callable[[], object]) -> str:
    """Why a requirement is not met, or an empty text."""
    try:
        require()
    except UserError as error:
        return str(error)
    return ""
