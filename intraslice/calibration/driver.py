"""From tokens to `CalibrationStats`: mask gradients and second moments of the dense model, in one streamed pass.

Activations are freed after each batch: the statistics are one gradient per sequence and one moment per module. They are
sums, so that they can be used after every batch (`Progress.partial`), and several processes can share the sequences.
They are cached by the model's fingerprint, the tokens and the format version of this file.
"""

import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration import layerwise
from intraslice.calibration.layerwise import BY_SEQUENCE, Hidden, LayerwiseCalibration, LossGradient
from intraslice.calibration.stats import CalibrationStats, LayerStats, empty_stats, layer_sizes
from intraslice.core.cache import Steps, cache_path, read_result, write_result
from intraslice.core.checks import one_of
from intraslice.core.config import Targets
from intraslice.core.errors import UserError
from intraslice.core.progress import Pause, Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.distributed import all_gather, all_reduce_, rank, shard_of, size
from intraslice.loading import LoadedModel, require_loaded
from intraslice.modeling.counts import decoder_parameters
from intraslice.modeling.families import Block, blocks
from intraslice.modeling.hidden_states import Tokens, call_layer, device_of, embed, require_windows
from intraslice.modeling.offload import is_offloaded, resident
from intraslice.pretrained.memory import LOSS_TOKENS, TOKENS_PER_BATCH

FORMAT = "8"
SEED = 0  # for sampled targets


def sample_tokens(
    probabilities: Float[Tensor, "tokens vocabulary"], generator: torch.Generator
) -> Int[Tensor, " tokens"]:
    """Sample one token per row, with exponential noise.

    As `torch.multinomial`, but based on `torch.rand`, whose numbers are the same on every processor.
    """
    uniform = torch.rand(probabilities.shape, generator=generator, device=probabilities.device)
    return uniform.log_().div_(probabilities).argmax(-1)  # the smallest exponential time: log(u) / p is its negative


def next_token_gradient(
    model: PreTrainedModel, hidden: Hidden, batch: Tokens, pause: Pause, generator: torch.Generator | None = None
) -> Hidden:
    """Gradient of the sum over sequences of the mean next-token loss; logits are computed for a few tokens at a time.

    Targets are the tokens of `batch`, or with a `generator` tokens sampled from the model. Pauses between chunks of
    logits.
    """
    length = batch.shape[1] - 1
    rows, targets = hidden[:, :-1].detach().flatten(0, 1), batch[:, 1:].flatten()
    gradients = []
    for chunk, chunk_targets in zip(rows.split(LOSS_TOKENS), targets.split(LOSS_TOKENS), strict=True):
        with torch.enable_grad():
            leaf = chunk.detach().requires_grad_()
            logits = model.lm_head(leaf)
        probabilities = logits.detach().softmax(-1, dtype=torch.float32)
        if generator is not None:
            chunk_targets = sample_tokens(probabilities, generator)
        # Gradient of the cross-entropy at the logits: probabilities minus the one-hot target.
        probabilities[torch.arange(len(chunk_targets), device=chunk_targets.device), chunk_targets] -= 1
        logits.backward(probabilities.to(logits.dtype))
        gradients.append(leaf.grad / length)
        pause()
    gradient = torch.zeros_like(hidden)
    gradient[:, :-1] = torch.cat(gradients).view_as(gradient[:, :-1])
    return gradient


def calibrate(
    loaded: LoadedModel, tokens: Tokens, targets: Targets = "sampled", *, progress: ProgressOption = True
) -> CalibrationStats:
    """Mask gradients (paper §4) and second moments of the dense model over `tokens`.

    The gradients are those of the loss on `targets`, as in CalibrationConfig. Costs one forward pass, one backward pass
    (no weight gradients) and the moments. With several processes each takes a shard of the sequences, all return the
    same sums, and the first writes the cache.

    After every batch `progress` receives an event whose `partial()` returns a copy of the statistics so far, which are
    a calibration on fewer tokens. `partial` is None for a model with offloaded weights, and with several processes.

    Raises:
        NumericalError: gradients are not finite.
        UserError: invalid arguments, or the processes have different models or tokens.
    """
    require_loaded(loaded)
    require_windows(tokens, loaded.model.config)
    one_of("targets", targets, get_args(Targets))
    report, model, layers = progress_callback(progress), loaded.model, blocks(loaded.model)
    path = cache_path("calibration", ".npz", FORMAT, loaded.fingerprint, model.dtype, tokens, targets)
    stats = read_result(path, partial(_read, layers=len(layers), device=model.device)) if rank() == 0 else None
    names, (is_cached, *_) = zip(*all_gather([(path.name, stats is not None)]), strict=True)
    if len({*names}) > 1:
        raise UserError("the processes differ in model or calibration tokens; give all the same files and options")
    stats = stats or [empty_stats(block, len(tokens), model.device) for block in layers]
    if not is_cached:
        _calibrate_shard(model, stats, tokens, targets, report)
    # Sums over processes: each has zeros for sequences of others, or for everything if the first read the cache.
    for layer in stats:
        all_reduce_(*vars(layer).values())
        layer.mirror_()
        layerwise.require_finite(layer)
    if not is_cached and rank() == 0:
        nbytes = sum(layer.packed_bytes + 512 * len(vars(layer)) for layer in stats)  # and headers
        write_result(path, lambda file: _write(file, stats), f"the calibration ({nbytes / 1e6:.0f} MB)", nbytes)
    return _statistics(model, stats, tokens.numel(), targets)


def _calibrate_shard(
    model: PreTrainedModel, stats: list[LayerStats], tokens: Tokens, targets: Targets, progress: ProgressCallback
) -> None:
    """Add this process's shard of the sequences to `stats`, one for each layer, in place."""
    batch = sequences_per_batch(tokens)
    shard = shard_of(len(tokens), batch)
    # Views of the shard's rows; of sums over sequences, the tensors themselves.
    shard_stats = [replace(layer, **{name: getattr(layer, name)[shard] for name in BY_SEQUENCE}) for layer in stats]
    loss_gradient = loss_gradient_after(tokens[: shard.start], model, targets)
    if not is_offloaded(model):
        _calibrate(model, shard_stats, tokens[shard], targets, loss_gradient, progress)
        return
    steps: Steps = {}
    calibration = LayerwiseCalibration(model, tokens[shard], batch, loss_gradient, steps, progress)
    calibration.run()
    for index, layer in enumerate(shard_stats):
        for name, value in vars(calibration.stats(index)).items():
            getattr(layer, name).copy_(value)
        del steps[f"moments.{index}"]


def loss_gradient_after(done: Tensor, model: PreTrainedModel, targets: Targets) -> LossGradient:
    """`next_token_gradient` for the sequences after those of `done`, so that samples do not depend on the sharding.

    Exact on a CPU, and on a GPU if a whole batch begins there.
    """
    if targets != "sampled":
        return next_token_gradient
    generator = torch.Generator(device_of(model)).manual_seed(SEED)
    # On SmolLM2 this costs 2 % of calibrating on the same tokens.
    for batch in done.split(sequences_per_batch(done)):
        for chunk in batch[:, 1:].flatten().split(LOSS_TOKENS):
            torch.rand(len(chunk), model.lm_head.out_features, generator=generator, device=generator.device)
    return partial(next_token_gradient, generator=generator)


def sequences_per_batch(tokens: Tokens) -> int:
    """Sequences per batch."""
    return max(1, TOKENS_PER_BATCH // tokens.shape[1])


def _calibrate(
    model: PreTrainedModel,
    stats: list[LayerStats],
    tokens: Tensor,
    targets: Targets,
    loss_gradient: LossGradient,
    progress: ProgressCallback,
) -> None:
    """Fill `stats`, one for each layer, in place; reports after every layer of every batch."""
    done, sequences = 0, len(tokens)
    progress(Progress("calibrate", done, sequences))

    def partial_statistics() -> CalibrationStats:
        rows = dict.fromkeys(BY_SEQUENCE, slice(done))
        layers = []
        for layer in stats:
            clones = {name: value[rows.get(name, ...)].clone() for name, value in vars(layer).items()}
            layers.append(LayerStats(**clones))
            layers[-1].mirror_()
            layerwise.require_finite(layers[-1])
        return _statistics(model, layers, done * tokens.shape[1], targets)

    for batch in tokens.split(sequences_per_batch(tokens)):
        pause = partial(progress, Progress("calibrate", done, sequences))
        _calibrate_batch(model, stats, batch.to(model.device), done, loss_gradient, pause)
        done += len(batch)
        # A shard alone is not a calibration on the first sequences.
        result = partial_statistics if size() == 1 else None
        progress(Progress("calibrate", done, sequences, partial=result))


def _statistics(model: PreTrainedModel, stats: list[LayerStats], tokens: int, targets: Targets) -> CalibrationStats:
    layers = blocks(model)
    return CalibrationStats(
        layers=stats,
        tokens=tokens,
        targets=targets,
        sizes=tuple(layer_sizes(block) for block in layers),
        output_maps=[output_map(block) for block in layers],
        kv_heads=[tuple(block.attention.kv_head.tolist()) for block in layers],
        frequencies=[block.attention.frequency for block in layers],
        other_parameters=sum(p.numel() for p in model.parameters()) - decoder_parameters(model),
        bytes_per_value=model.dtype.itemsize,
    )


def _calibrate_batch(
    model: PreTrainedModel, stats: list[LayerStats], batch: Tensor, done: int, loss_gradient: LossGradient, pause: Pause
) -> None:
    """Add one batch, which follows `done` sequences, to `stats`, in place; pauses between layers.

    Hooks are only registered while a layer runs, since other jobs may use the model during a pause.
    """
    with torch.no_grad():
        (hidden,), (arguments,) = vars(embed(model, batch)).values()
    passed = []
    for layer, block, layer_stats in zip(model.model.layers, blocks(model), stats, strict=True):
        with (
            torch.enable_grad(),
            layer_stats.collecting_moments(block),
            layer_stats.collecting_gradients(block, slice(done, done + len(batch))),
        ):
            leaf = hidden.detach().requires_grad_()
            hidden = call_layer(layer, leaf, arguments)
        passed.append((leaf, hidden))
        pause()
    gradient = layerwise.final_gradient(model, hidden, batch, loss_gradient, pause)
    while passed:
        leaf, hidden = passed.pop()
        hidden.backward(gradient)
        gradient = leaf.grad
        pause()


def output_map(block: Block) -> Float[Tensor, "hidden heads dim"]:
    """The weights of attention's output map."""
    with resident(block.attention):
        return block.attention.weights().output.detach()


def _read(path: Path, layers: int, device: torch.device) -> list[LayerStats]:
    """Cached stats. May raise any exception for a damaged file."""
    names = LayerStats.__dataclass_fields__
    with zipfile.ZipFile(path) as archive:
        return [
            LayerStats.unpacked({name: _array(archive, f"{index}.{name}.npy") for name in names}, device)
            for index in range(layers)
        ]


def _array(archive: zipfile.ZipFile, name: str) -> numpy.ndarray:
    """A member's array. Raises BadZipFile where its checksum differs, which zipfile compares at its end."""
    with archive.open(name) as file:
        array = numpy.lib.format.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name} has bytes after its array")
    return array


def _write(path: Path, stats: list[LayerStats]) -> None:
    """As `numpy.savez`, which would need a copy of all moments at once."""
    with zipfile.ZipFile(path, "w") as archive:
        for index, layer in enumerate(stats):
            for name in vars(layer):
                with archive.open(f"{index}.{name}.npy", "w", force_zip64=True) as file:
                    numpy.lib.format.write_array(file, layer.packed(name), allow_pickle=False)
