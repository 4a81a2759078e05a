"""What slicing a model gives and takes, before its weights are downloaded or read: from configuration and headers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from intraslice.calibration.stats import layer_sizes
from intraslice.checkpoints.to_gguf import require_deci_layers
from intraslice.core.config import BUDGETS, CalibrationConfig
from intraslice.core.errors import UserError
from intraslice.loading import require_dense_name
from intraslice.modeling.counts import parameters_of
from intraslice.modeling.families import blocks, canonicalise
from intraslice.modeling.residual import require_no_output_norms
from intraslice.planning.sizes import LayerSizes
from intraslice.pretrained.memory import MemoryEstimate, available_bytes, calibration_bytes, calibration_seconds
from intraslice.pretrained.reader import empty_model, require_match
from intraslice.pretrained.sources import inspect_source

SPARSITIES = (0.2, 0.3, 0.5)
# The most of the KV cache that is removed, in units of the sparsity. Plans for SmolLM2-135M and Qwen2.5-1.5B at these
# sparsities, by three estimators, remove 0.04 to 0.57 of it: where query heads share keys, one that goes leaves them.
# Uniform ratios in runtime shapes can remove more: a group of every layer.
CACHE_REMOVED = 0.6
WHOLE_QUERIES = "narrower queries and keys: the norm of a head needs all of its channels"


@dataclass(frozen=True)
class Size:
    """Size at one sparsity, 0 for the dense model; the cache as (least, most), since the ratios are not known yet."""

    sparsity: float
    parameters: int
    bytes: int
    kv_bytes_per_token: tuple[int, int]


@dataclass(frozen=True)
class ModelCheck:
    """What a dense model is, what slices of it take, and what calibrating and slicing it takes on this machine."""

    model: str
    family: str
    download_bytes: int  # 0 for weights on disk
    layers: int
    layer: LayerSizes  # the first one
    decoder_parameters: int
    dtype: str
    sizes: tuple[Size, ...]  # the dense model's first; bytes are of weights in `dtype`
    calibration_tokens: int
    calibration_seconds: float
    budget_seconds: Mapping[str, float]  # of a calibration by each of the `BUDGETS`
    memory_bytes: int  # for calibrating and slicing, the dense model included
    available_bytes: int
    no_crossmodule: str  # why that method is not possible, empty if it is
    no_gguf: str  # the same for llama.cpp, also in the browser

    def __str__(self) -> str:
        layer, fits = self.layer, self.memory_bytes <= self.available_bytes
        rows = [f"sparsity   parameters   MB in {self.dtype:8}   kB of KV cache per token"]
        for size in self.sizes:
            cache = " - ".join(f"{count / 1024:.1f}" for count in dict.fromkeys(size.kv_bytes_per_token))
            rows.append(f"{size.sparsity:8.0%} {size.parameters / 1e6:10,.1f} M {size.bytes / 1e6:16,.0f}   {cache}")
        budgets = ", ".join(f"{name} {seconds / 60:.1f}" for name, seconds in self.budget_seconds.items())
        limits = WHOLE_QUERIES if layer.whole_queries else "", self.no_crossmodule, self.no_gguf
        return "\n".join([
            f"{self.model}: {self.family}, {self.layers} layers, {layer.heads} heads of width {layer.dim} in "
            f"{layer.kv_heads} groups, {layer.neurons:,} neurons; "
            + (f"{self.download_bytes / 1e6:,.0f} MB to download" if self.download_bytes else "on disk"),
            *rows,
            f"memory: {self.memory_bytes / 2**30:.1f} GiB, {self.available_bytes / 2**30:.1f} GiB is free"
            + ("" if fits else "; too little: see `slice --stream`"),
            f"calibration: {self.calibration_tokens:,} tokens, about {self.calibration_seconds / 60:.1f} min here "
            f"(--budget {budgets})",
            "saved as: transformers folder" + ("" if self.no_gguf else ", GGUF for llama.cpp and the browser"),
            *(f"not possible: {limit}" for limit in limits if limit),
        ])  # fmt: skip


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
    total, decoder = parameters_of(model, "dense").values()
    canonicalise(model)
    layers = [layer_sizes(block) for block in blocks(model)]
    cache = sum(size.cached_values(size.kv_heads, size.dim) for size in layers) * dtype.itemsize
    sizes = []
    for sparsity in (0.0, *SPARSITIES):
        parameters = total - round(sparsity * decoder)
        least = round(cache * (1 - sparsity * CACHE_REMOVED))
        sizes.append(Size(sparsity, parameters, parameters * dtype.itemsize, (least, cache)))
    free = available_bytes(device)
    needed = calibration_bytes(config, calibration.sequences + calibration.samples, calibration.length, dtype)
    calibrations = [calibration, *(budget() for budget in BUDGETS.values())]
    seconds, *of_budgets = calibration_seconds(config, decoder, calibrations, dtype, device)
    return ModelCheck(
        model=name,
        family=config.model_type,
        download_bytes=download_bytes,
        layers=len(layers),
        layer=layers[0],
        decoder_parameters=decoder,
        dtype=str(dtype).removeprefix("torch."),
        sizes=tuple(sizes),
        calibration_tokens=calibration.tokens,
        calibration_seconds=seconds,
        budget_seconds=dict(zip(BUDGETS, of_budgets, strict=True)),
        memory_bytes=MemoryEstimate(total, total * dtype.itemsize, free).needed + needed,
        available_bytes=free,
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
