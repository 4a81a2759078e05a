"""From tokens to `CalibrationStats`: mask gradients and second moments of the dense model, in one streamed pass.

No activation outlives its batch; what stays is one gradient a sequence and one moment a module. Kept on disk under the
model's fingerprint, the tokens and this file's version, so other weights or other text never reuse a stale file.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.cache import cache_path, keep
from intraslice.calibration.hooks import collecting_gradients, collecting_moments
from intraslice.calibration.layerwise import LossGradient, calibrate_layerwise
from intraslice.calibration.stats import CalibrationStats, LayerStats, layer_sizes
from intraslice.config import Targets
from intraslice.errors import NumericalError
from intraslice.loading import LoadedModel
from intraslice.modeling.counts import decoder_parameters
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.logits import logits_in_chunks
from intraslice.modeling.offload import is_offloaded, resident
from intraslice.progress import Progress

FORMAT = "5"
TOKENS_A_BATCH = 512  # what the backward pass needs of all layers at once is most of the memory
SEED = 0  # of the targets that the model draws


def _empty_stats(block: Block, sequences: int, device: torch.device) -> LayerStats:
    attention, mlp = block.attention, block.mlp
    channels, hidden = attention.heads * attention.value_dim, attention.o_proj.out_features
    middle = 0 if block.parallel else hidden

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float32, device=device)

    return LayerStats(
        residual_moment=zeros(hidden, hidden),
        direction_moment=zeros(hidden, hidden),
        middle_moment=zeros(middle, middle),
        attention_moment=zeros(channels, channels),
        attention_sum=zeros(channels),
        channel_products=zeros(attention.heads, attention.dim),
        query_fisher=zeros(attention.heads, attention.dim),
        mlp_moment=zeros(mlp.neurons, mlp.neurons),
        mlp_sum=zeros(mlp.neurons),
        attention_gradients=zeros(sequences, channels),
        mlp_gradients=zeros(sequences, mlp.neurons),
        mlp_fisher=zeros(mlp.neurons),
    )


def draw_tokens(logits: Float[Tensor, "tokens vocabulary"], generator: torch.Generator) -> Int[Tensor, " tokens"]:
    """A token for each row, drawn from its softmax by a race of exponentials.

    As `torch.multinomial` does, but from `torch.rand`, whose numbers are the same on every processor.
    """
    noise = torch.rand(logits.shape, generator=generator, device=logits.device).log_().neg_()
    return (logits.softmax(-1) / noise).argmax(-1)


def _loss_gradient(
    model: PreTrainedModel,
    hidden: Float[Tensor, "sequences length hidden"],
    batch: Int[Tensor, "sequences length"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "sequences length hidden"]:
    """Gradient of the sum over sequences of the mean next-token loss; logits exist for a few tokens at a time.

    Targets are the tokens of `batch`, or where a `generator` is given tokens that the model draws with it.
    """
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        length = batch.shape[1] - 1
        for logits, targets in logits_in_chunks(model, leaf[:, :-1].flatten(0, 1), batch[:, 1:].flatten()):
            if generator is not None:
                targets = draw_tokens(logits.detach(), generator)
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum") / length
            loss.backward(retain_graph=True)
    return leaf.grad


def calibrate(
    loaded: LoadedModel, tokens: Int[Tensor, "sequences length"], targets: Targets = "sampled"
) -> Generator[Progress, None, CalibrationStats]:
    """Mask gradients (paper §4) and second moments of the dense model over `tokens`; yields progress by sequence.

    The gradients are those of the loss on `targets`, as in CalibrationConfig. Costs about a forward, a backward without
    weight gradients, and the moments. Raises NumericalError where gradients are not finite.
    """
    model, sequences = loaded.model, len(tokens)
    layers = blocks(model)
    path = _cache_path(loaded, tokens, targets)
    stats = _load(path, len(layers), model.device)
    if stats is None:
        stats = [_empty_stats(block, sequences, model.device) for block in layers]
        generator = torch.Generator(model.device).manual_seed(SEED) if targets == "sampled" else None
        loss_gradient = partial(_loss_gradient, generator=generator)
        if is_offloaded(model):
            yield from calibrate_layerwise(model, stats, tokens, loss_gradient)
        else:
            batch_size = max(1, TOKENS_A_BATCH // tokens.shape[1])
            done = 0
            yield Progress("calibrate", 0, sequences)
            for batch in tokens.split(batch_size):
                _calibrate_batch(model, layers, stats, batch, done, loss_gradient)
                done += len(batch)
                yield Progress("calibrate", done, sequences)
        gradients = ("attention_gradients", "mlp_gradients", "query_fisher", "mlp_fisher")
        if not all(torch.isfinite(getattr(layer, name)).all() for layer in stats for name in gradients):
            raise NumericalError("mask gradients are not finite; calibrate in float32, or on other text")
        _save(path, stats)
    return CalibrationStats(
        layers=stats,
        tokens=tokens.numel(),
        targets=targets,
        sizes=tuple(layer_sizes(block) for block in layers),
        output_energies=[_output_energies(block) for block in layers],
        kv_heads=[tuple(block.attention.kv_head.tolist()) for block in layers],
        other_parameters=sum(p.numel() for p in model.parameters()) - decoder_parameters(model),
        bytes_per_value=model.dtype.itemsize,
    )


def _calibrate_batch(
    model: PreTrainedModel,
    layers: list[Block],
    stats: list[LayerStats],
    batch: Tensor,
    done: int,
    loss_gradient: LossGradient,
) -> None:
    """Add one batch of sequences, of which `done` came before, to `stats`, in place."""
    batch = batch.to(model.device)
    with ExitStack() as open_layers, torch.enable_grad():
        masks = []
        for block, layer_stats in zip(layers, stats, strict=True):
            open_layers.enter_context(collecting_moments(block, layer_stats))
            masks.append(open_layers.enter_context(collecting_gradients(block, layer_stats, len(batch))))
        hidden = model.model(input_ids=batch, use_cache=False).last_hidden_state
        hidden.backward(loss_gradient(model, hidden, batch))
    for layer_stats, (attention, mlp) in zip(stats, masks, strict=True):
        layer_stats.attention_gradients[done : done + len(batch)] = attention.grad
        layer_stats.mlp_gradients[done : done + len(batch)] = mlp.grad


def _output_energies(block: Block) -> Float[Tensor, "heads dim"]:
    with resident(block.attention):
        return block.attention.weights().output.float().square().sum(0)


def _cache_path(loaded: LoadedModel, tokens: Tensor, targets: Targets) -> Path:
    return cache_path("calibration", ".safetensors", FORMAT, loaded.fingerprint, loaded.model.dtype, tokens, targets)


def _load(path: Path, layers: int, device: torch.device) -> list[LayerStats] | None:
    """Kept stats, or None when there are none or the file is damaged (it is then made anew)."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return [
                LayerStats(
                    **{name: file.get_tensor(f"{index}.{name}").to(device) for name in LayerStats.__dataclass_fields__}
                )
                for index in range(layers)
            ]
    except SafetensorError:
        path.unlink(missing_ok=True)
        return None


def _save(path: Path, stats: list[LayerStats]) -> None:
    tensors = {
        f"{index}.{name}": value.cpu() for index, layer in enumerate(stats) for name, value in vars(layer).items()
    }
    size = sum(tensor.nbytes for tensor in tensors.values())
    keep(path, lambda draft: save_file(tensors, draft), f"the calibration ({size / 1e6:.0f} MB)")
