"""From tokens to `CalibrationStats`: mask gradients and second moments of the dense model, in one streamed pass.

No activation outlives its batch; what stays is one gradient a sequence and one moment a module. Kept on disk under the
model's fingerprint, the tokens and this file's version, so other weights or other text never reuse a stale file.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.attention import channel_scores, head_energies, head_table
from intraslice.config import Progress, cache_folder
from intraslice.families import Block, blocks
from intraslice.linalg import NumericalError, add_moment_
from intraslice.models import LoadedModel
from intraslice.ratios import (
    LayerProfile,
    LayerSizes,
    Profile,
    fisher_head_importance,
    group_gradients,
    neuron_importance,
    pca_importance,
)

log = logging.getLogger(__name__)

FORMAT = "1"
TOKENS_A_BATCH = 1024
LOGIT_TOKENS = 512


@dataclass
class LayerStats:
    """Sums over the calibration tokens of one dense layer. C = heads * dim channels, I neurons, B sequences."""

    attention_moment: Float[Tensor, "C C"]  # X^T X of what enters o_proj
    attention_sum: Float[Tensor, " C"]
    channel_products: Float[Tensor, "heads dim"]  # sum of |q_j k_j| after the rotary embedding
    mlp_moment: Float[Tensor, "I I"]  # A^T A of what enters down_proj
    mlp_sum: Float[Tensor, " I"]
    attention_gradients: Float[Tensor, "B C"]
    mlp_gradients: Float[Tensor, "B I"]


@dataclass
class CalibrationStats:
    """What one calibration leaves behind. `tokens` is how many it saw."""

    layers: list[LayerStats]
    tokens: int
    sizes: tuple[LayerSizes, ...]
    outputs: list[Float[Tensor, "hidden heads dim"]]  # the dense output maps, by reference
    kv_heads: list[tuple[int, ...]]
    other_parameters: int
    bytes_per_value: int

    @cached_property
    def profile(self) -> Profile:
        """What the ratio estimator reads of it."""
        layers = []
        for stats, sizes, output, kv_head in zip(self.layers, self.sizes, self.outputs, self.kv_heads, strict=True):
            scores = channel_scores(stats.attention_moment, output.float())
            attention = group_gradients(stats.attention_gradients)
            layers.append(
                LayerProfile(
                    sizes=sizes,
                    table=head_table(head_energies(stats.attention_moment, scores), scores),
                    kv_head=kv_head,
                    fisher_heads=fisher_head_importance(attention, sizes.heads),
                    pca_channels=pca_importance(attention, stats.attention_moment, sizes.heads),
                    neurons=neuron_importance(group_gradients(stats.mlp_gradients)),
                )
            )
        return Profile(tuple(layers), self.other_parameters, self.bytes_per_value)


def layer_sizes(block: Block) -> LayerSizes:
    """Sizes of one layer, read off its tensors."""
    attention, mlp = block.attention, block.mlp
    norms = {block.attention_norm, block.mlp_norm}
    output_biases = [b for b in (attention.o_proj.bias, mlp.down_proj.bias) if b is not None]
    return LayerSizes(
        hidden=attention.o_proj.out_features,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        dim=attention.dim,
        neurons=mlp.neurons,
        gated=mlp.gated,
        attention_bias=attention.qkv_proj.bias is not None,
        mlp_bias=mlp.weights().up_bias is not None,
        fixed=sum(p.numel() for norm in norms for p in norm.parameters()) + sum(b.numel() for b in output_biases),
    )


@contextmanager
def _hooks(handles: list) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(block: Block, stats: LayerStats, masks: tuple[Tensor, Tensor]) -> list:
    """Hooks that add one layer's moments as tokens pass, and multiply the masks in, so that they get gradients."""

    def at_output_map(mask: Tensor, moment: Tensor, total: Tensor):
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            rows = inputs[0].detach()
            add_moment_(moment, rows)
            total.add_(rows.flatten(0, 1).float().sum(0))
            return (inputs[0] * mask[:, None],)

        return hook

    def at_queries(attention: nn.Module, inputs: tuple, named: dict) -> None:
        with torch.no_grad():
            query, key, _ = attention.project(named["hidden_states"].detach(), named["position_embeddings"])
            stats.channel_products.add_(channel_products(query, key, attention.kv_head))

    return [
        block.attention.register_forward_pre_hook(at_queries, with_kwargs=True),
        block.attention.o_proj.register_forward_pre_hook(
            at_output_map(masks[0], stats.attention_moment, stats.attention_sum)
        ),
        block.mlp.down_proj.register_forward_pre_hook(at_output_map(masks[1], stats.mlp_moment, stats.mlp_sum)),
    ]


def channel_products(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch kv_heads tokens dim"],
    kv_head: Int[Tensor, " heads"],
) -> Float[Tensor, "heads dim"]:
    """Sum over tokens of `|q_j k_j|`, each query head against the key head it reads."""
    products = torch.einsum("bhtd,bhtd->hd", query.float().abs(), key.float().abs()[:, kv_head])
    return products


def _empty_stats(block: Block, sequences: int) -> LayerStats:
    attention, mlp = block.attention, block.mlp
    device = attention.o_proj.weight.device
    channels = attention.heads * attention.value_dim

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float32, device=device)

    return LayerStats(
        attention_moment=zeros(channels, channels),
        attention_sum=zeros(channels),
        channel_products=zeros(attention.heads, attention.dim),
        mlp_moment=zeros(mlp.neurons, mlp.neurons),
        mlp_sum=zeros(mlp.neurons),
        attention_gradients=zeros(sequences, channels),
        mlp_gradients=zeros(sequences, mlp.neurons),
    )


def _backward(model: PreTrainedModel, batch: Int[Tensor, "sequences length"]) -> None:
    """Gradients of the sum over sequences of the mean next-token loss; logits exist for a few tokens at a time."""
    with torch.enable_grad():
        hidden = model.model(input_ids=batch, use_cache=False).last_hidden_state
        leaf = hidden.detach().requires_grad_()
        targets = batch[:, 1:].reshape(-1)
        rows = leaf[:, :-1].flatten(0, 1)
        length = batch.shape[1] - 1
        for part, wanted in zip(rows.split(LOGIT_TOKENS), targets.split(LOGIT_TOKENS), strict=True):
            loss = nn.functional.cross_entropy(model.lm_head(part).float(), wanted, reduction="sum") / length
            loss.backward(retain_graph=True)
        hidden.backward(leaf.grad)


def calibrate(
    loaded: LoadedModel, tokens: Int[Tensor, "sequences length"]
) -> Generator[Progress, None, CalibrationStats]:
    """Mask gradients (paper §4) and second moments of the dense model over `tokens`; yields progress by sequence.

    Costs about a forward, a backward without weight gradients, and the moments. Raises NumericalError where gradients
    are not finite.
    """
    model, sequences = loaded.model, len(tokens)
    layers = blocks(model)
    path = _cache_path(loaded, tokens)
    stats = _load(path, layers)
    if stats is None:
        stats = [_empty_stats(block, sequences) for block in layers]
        batch_size = max(1, TOKENS_A_BATCH // tokens.shape[1])
        done = 0
        yield Progress("calibrate", 0, sequences)
        for batch in tokens.split(batch_size):
            _calibrate_batch(model, layers, stats, batch, done)
            done += len(batch)
            yield Progress("calibrate", done, sequences)
        if not all(
            torch.isfinite(s.attention_gradients).all() and torch.isfinite(s.mlp_gradients).all() for s in stats
        ):
            raise NumericalError("mask gradients are not finite; calibrate in float32, or on other text")
        _save(path, stats)
    decoder = sum(p.numel() for p in model.model.layers.parameters())
    return CalibrationStats(
        layers=stats,
        tokens=tokens.numel(),
        sizes=tuple(layer_sizes(block) for block in layers),
        outputs=[block.attention.weights().output for block in layers],
        kv_heads=[tuple(block.attention.kv_head.tolist()) for block in layers],
        other_parameters=sum(p.numel() for p in model.parameters()) - decoder,
        bytes_per_value=model.dtype.itemsize,
    )


def _calibrate_batch(
    model: PreTrainedModel, layers: list[Block], stats: list[LayerStats], batch: Tensor, done: int
) -> None:
    masks, handles = [], []
    for block, layer in zip(layers, stats, strict=True):
        pair = tuple(
            torch.ones(len(batch), gradients.shape[1], dtype=model.dtype, device=gradients.device, requires_grad=True)
            for gradients in (layer.attention_gradients, layer.mlp_gradients)
        )
        masks.append(pair)
        handles += _watch(block, layer, pair)
    with _hooks(handles):
        _backward(model, batch.to(model.device))
    for layer, (attention, mlp) in zip(stats, masks, strict=True):
        layer.attention_gradients[done : done + len(batch)] = attention.grad
        layer.mlp_gradients[done : done + len(batch)] = mlp.grad


def _cache_path(loaded: LoadedModel, tokens: Tensor) -> Path:
    text = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()
    key = f"{FORMAT} {loaded.fingerprint} {loaded.model.dtype} {tuple(tokens.shape)} {text}"
    return cache_folder() / "calibration" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"


def _load(path: Path, layers: list[Block]) -> list[LayerStats] | None:
    """Kept stats, or None when there are none or the file is damaged (it is then made anew)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return [
                LayerStats(
                    **{
                        name: file.get_tensor(f"{index}.{name}").to(block.attention.o_proj.weight.device)
                        for name in LayerStats.__dataclass_fields__
                    }
                )
                for index, block in enumerate(layers)
            ]
    except SafetensorError:
        path.unlink(missing_ok=True)
        return None


def _save(path: Path, stats: list[LayerStats]) -> None:
    tensors = {
        f"{index}.{name}": value.cpu() for index, layer in enumerate(stats) for name, value in vars(layer).items()
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:  # a file appears whole or not at all
            save_file(tensors, Path(folder) / path.name)
            os.replace(Path(folder) / path.name, path)
    except (OSError, SafetensorError) as error:  # the result is right all the same; only the next run pays again
        log.warning(
            "cannot keep the calibration (%.0f MB) in %s: %s; free some space or point INTRASLICE_CACHE elsewhere",
            size / 1e6,
            path.parent,
            error,
        )
