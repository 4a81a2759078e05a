"""From tokens to `CalibrationStats`: mask gradients and second moments of the dense model, in one streamed pass.

No activation outlives its batch; what stays is one gradient a sequence and one moment a module. Kept on disk under the
model's fingerprint, the tokens and this file's version, so other weights or other text never reuse a stale file.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.cache import cache_path, keep
from intraslice.calibration.layerwise import LossGradient, calibrate_layerwise
from intraslice.calibration.stats import CalibrationStats, LayerStats, layer_sizes
from intraslice.config import Progress, Targets
from intraslice.linalg import NumericalError, add_moment_
from intraslice.loading import LoadedModel
from intraslice.modeling.attention import UNROTATED
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.offload import is_offloaded, resident

FORMAT = "4"
TOKENS_A_BATCH = 512  # what the backward pass needs of all layers at once is most of the memory
LOGIT_TOKENS = 512
SEED = 0  # of the targets that the model draws


@contextmanager
def _watched(block: Block, stats: LayerStats) -> Iterator[None]:
    """While open, the layer's moments add up as tokens pass."""
    attention, angles = block.attention, []

    def at_output_map(moment: Tensor, total: Tensor):
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            rows = inputs[0].detach()
            add_moment_(moment, rows)
            total.add_(rows.flatten(0, 1).float().sum(0))

        return hook

    def at_stream(_: nn.Module, inputs: tuple[Tensor]) -> None:
        states = inputs[0].detach().float()
        add_moment_(stats.residual_moment, states)
        add_moment_(stats.direction_moment, nn.functional.normalize(states, dim=-1))

    def at_attention(_: nn.Module, inputs: tuple, named: dict) -> None:
        angles.append(named["position_embeddings"])

    def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        query, key, _ = attention.turned(output.detach(), angles.pop())
        stats.channel_products.add_(channel_products(query, key, attention.kv_head))

    handles = [
        block.attention_norm.register_forward_pre_hook(at_stream),
        attention.register_forward_pre_hook(at_attention, with_kwargs=True),
        attention.qkv_proj.register_forward_hook(at_queries),
        attention.o_proj.register_forward_pre_hook(at_output_map(stats.attention_moment, stats.attention_sum)),
        block.mlp.down_proj.register_forward_pre_hook(at_output_map(stats.mlp_moment, stats.mlp_sum)),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _masked(block: Block, stats: LayerStats, sequences: int) -> Iterator[tuple[Tensor, Tensor]]:
    """While open, what enters both output maps is multiplied with masks of ones, which get gradients.

    The token-by-token Fisher information of queries and neurons adds up as gradients pass.
    """
    attention, handles, masks = block.attention, [], []
    kind = attention.o_proj.weight.dtype
    rotated = (attention.frequency != UNROTATED)[attention.kv_head]

    def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values = output.detach()[..., : attention.heads * attention.dim]

        def add(gradient: Tensor) -> None:
            felt = (values * gradient[..., : values.shape[-1]]).float().unflatten(-1, (attention.heads, -1))
            stats.query_fisher.add_(query_fisher(felt, rotated))

        output.requires_grad_().register_hook(add)  # nothing that enters the first layer needs a gradient

    def at_neurons(rows: Tensor) -> None:
        values = rows.detach()

        def add(gradient: Tensor) -> None:
            stats.mlp_fisher.add_((values * gradient).float().square().flatten(0, 1).sum(0))

        rows.register_hook(add)

    def at_output_map(mask: Tensor, watch: Callable[[Tensor], None]):
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            rows = inputs[0] * mask[:, None]
            watch(rows)
            return (rows,)

        return hook

    for linear, gradients, watch in (
        (attention.o_proj, stats.attention_gradients, lambda rows: None),
        (block.mlp.down_proj, stats.mlp_gradients, at_neurons),
    ):
        mask = torch.ones(sequences, gradients.shape[1], dtype=kind, device=gradients.device, requires_grad=True)
        masks.append(mask)
        handles.append(linear.register_forward_pre_hook(at_output_map(mask, watch)))
    handles.append(attention.qkv_proj.register_forward_hook(at_queries))
    try:
        yield tuple(masks)
    finally:
        for handle in handles:
            handle.remove()


def channel_products(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch kv_heads tokens dim"],
    kv_head: Int[Tensor, " heads"],
) -> Float[Tensor, "heads dim"]:
    """Sum over tokens of `|q_j k_j|`, each query head against the key head it reads."""
    return torch.einsum("bhtd,bhtd->hd", query.float().abs(), key.float().abs()[:, kv_head])


def query_fisher(
    felt: Float[Tensor, "batch tokens heads dim"], rotated: Bool[Tensor, "heads pairs"]
) -> Float[Tensor, "heads dim"]:
    """Fisher information of masks on query channels, given `q_j dL/dq_j`, summed over tokens.

    Channels that turn together have one mask, `(q_j dL/dq_j + q_j' dL/dq_j')^2`, whose information they share; it is
    the same before and after the rotation.
    """
    first, second = felt.flatten(0, 1).chunk(2, dim=-1)
    shared = (first + second).square().sum(0) / 2
    return torch.cat([torch.where(rotated, shared, own.square().sum(0)) for own in (first, second)], dim=-1)


def _empty_stats(block: Block, sequences: int, device: torch.device) -> LayerStats:
    attention, mlp = block.attention, block.mlp
    channels, hidden = attention.heads * attention.value_dim, attention.o_proj.out_features

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float32, device=device)

    return LayerStats(
        residual_moment=zeros(hidden, hidden),
        direction_moment=zeros(hidden, hidden),
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
        rows = leaf[:, :-1].flatten(0, 1)
        length = batch.shape[1] - 1
        for part, wanted in zip(rows.split(LOGIT_TOKENS), batch[:, 1:].flatten().split(LOGIT_TOKENS), strict=True):
            logits = model.lm_head(part).float()
            if generator is not None:
                wanted = draw_tokens(logits.detach(), generator)
            loss = nn.functional.cross_entropy(logits, wanted, reduction="sum") / length
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
            yield from calibrate_layerwise(model, stats, tokens, loss_gradient, _watched, _masked)
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
    decoder = sum(p.numel() for p in model.model.layers.parameters())
    return CalibrationStats(
        layers=stats,
        tokens=tokens.numel(),
        targets=targets,
        sizes=tuple(layer_sizes(block) for block in layers),
        output_energies=[_output_energies(block) for block in layers],
        kv_heads=[tuple(block.attention.kv_head.tolist()) for block in layers],
        other_parameters=sum(p.numel() for p in model.parameters()) - decoder,
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
    batch = batch.to(model.device)
    with ExitStack() as open_layers, torch.enable_grad():
        masks = []
        for block, layer in zip(layers, stats, strict=True):
            open_layers.enter_context(_watched(block, layer))
            masks.append(open_layers.enter_context(_masked(block, layer, len(batch))))
        hidden = model.model(input_ids=batch, use_cache=False).last_hidden_state
        hidden.backward(loss_gradient(model, hidden, batch))
    for layer, (attention, mlp) in zip(stats, masks, strict=True):
        layer.attention_gradients[done : done + len(batch)] = attention.grad
        layer.mlp_gradients[done : done + len(batch)] = mlp.grad


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
