"""Slices a model larger than memory into a folder: calibration, plan and slice with one layer in memory at a time.

Only the method `intraslice` in the one-shot order: the layers of other methods depend on each other, or on statistics
that this calibration does not keep. A killed run goes on where it was, and ends in the same bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedConfig

from intraslice import data
from intraslice.calibration.driver import output_map
from intraslice.calibration.stats import layer_profile, layer_sizes
from intraslice.checkpoints.format import require_free
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.core.resumable import resumable_cache_folder, resumable_sibling
from intraslice.loading import LoadedModel, prepare_tokenizer_
from intraslice.modeling.counts import decoder_parameters
from intraslice.planning.estimators import LayerCalibration
from intraslice.planning.estimators.estimator import group_gradients
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.ratios import LayerPlan, SlicePlan, make_plan
from intraslice.pretrained.memory import calibration_bytes, estimate_memory
from intraslice.pretrained.reader import read_config, read_tokenizer
from intraslice.pretrained.sources import obtain_weights
from intraslice.reporting import Recipe, slice_record
from intraslice.slicing.one_shot import attention_from_moments, mlp_from_moments
from intraslice.streaming.calibrate import StreamedCalibration
from intraslice.streaming.estimate import StreamEstimate, StreamSizes, estimate_stream, measure_speeds, stream_sizes
from intraslice.streaming.journal import Journal
from intraslice.streaming.shards import Shards
from intraslice.streaming.weights import StreamedModel, open_model

FORMAT = "4"  # of the journal
ESTIMATORS = ("uniform", "pca", "output-error", "fisher")


def require_streamable(recipe: Recipe) -> None:
    """Raise UserError, with the reason, for a recipe that cannot be sliced one layer at a time."""
    config = recipe.slicing
    reasons = {
        f"method {recipe.method} needs other statistics, or all layers at once; use --method intraslice": (
            recipe.method != "intraslice"
        ),
        "the sequential order needs every sliced layer for the next one; use --order one-shot": (
            config.order != "one-shot"
        ),
        f"estimator {config.estimator} may need statistics that are not kept; use one of {', '.join(ESTIMATORS)}": (
            config.estimator not in ESTIMATORS
        ),
        "sampling text needs the whole model; leave samples out": recipe.calibration.samples > 0,
        f"recovery {config.recovery} trains all layers at once; leave it out": config.recovery != NO_RECOVERY,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"cannot slice one layer at a time: {reason}")


def estimate(recipe: Recipe, device: str = "cpu") -> StreamEstimate:
    """Memory, disk and time of `slice_to_folder`, from the model's configuration and the speed of this machine.

    Raises UserError as `slice_to_folder` does.
    """
    require_streamable(recipe)
    sizes = _sizes(recipe, read_config(obtain_weights(recipe.model)))
    speeds = measure_speeds(sizes, getattr(torch, recipe.dtype), device)
    return estimate_stream(sizes, recipe.slicing.sparsity, speeds)


def memory_is_short(recipe: Recipe, device: str) -> bool:
    """Whether an ordinary slice of a model in safetensors files on disk needs more memory than is free now."""
    dtype = getattr(torch, recipe.dtype)
    model = estimate_memory(recipe.model, dtype, device)
    if model.weights is None or model.weights.gguf:
        return False
    calibration = recipe.calibration
    needed = calibration_bytes(read_config(model.weights), calibration.sequences, calibration.length, dtype)
    return model.needed + needed > model.available


def _sizes(recipe: Recipe, config: PreTrainedConfig) -> StreamSizes:
    calibration = recipe.calibration
    return stream_sizes(config, calibration.sequences, calibration.length, getattr(torch, recipe.dtype))


def slice_to_folder(
    recipe: Recipe, folder: str | Path, device: str = "cpu", *, progress: ProgressCallback | bool = True
) -> SlicePlan:
    """Slice the recipe's model into a new folder, which `load_model` reads as it does that of `save`.

    The weights are those of an ordinary slice, to the bit. Called again with the same arguments after it failed or was
    killed, it goes on after the last finished step.

    Raises:
        UserError: the recipe cannot be sliced in this way, the folder is not empty, or the disk is too small.
        NumericalError: gradients or moments are not finite.
    """
    folder, report = Path(folder).expanduser(), progress_callback(progress)
    require_streamable(recipe)
    require_free(folder)
    weights = obtain_weights(recipe.model, progress=report)
    dense = open_model(weights, getattr(torch, recipe.dtype), device)
    tokenizer = read_tokenizer(weights)
    prepare_tokenizer_(tokenizer, dense.model, recipe.model)
    tokens = data.calibration_tokens(tokenizer, recipe.calibration, recipe.evaluation.text)
    digest = _digest(dense, recipe, tokens)
    with (
        resumable_cache_folder(digest, _sizes(recipe, dense.model.config).journal_bytes) as journal_folder,
        resumable_sibling(folder, digest) as sibling,
    ):
        journal = Journal(journal_folder)
        calibration = StreamedCalibration(dense, tokens, recipe.calibration.targets, journal, report)
        calibration.run()
        plan = make_plan(_profile(calibration, recipe.slicing), recipe.slicing)
        shards = Shards(sibling / folder.name, dense, journal)
        shards.folder.mkdir(exist_ok=True)
        _slice(calibration, plan, shards)
        loaded = LoadedModel(dense.model, tokenizer, recipe.model, weights.source, digest)
        shards.finish(tokenizer, slice_record(recipe, loaded, plan), folder)
    return plan


def _digest(dense: StreamedModel, recipe: Recipe, tokens: Int[Tensor, "sequences length"]) -> str:
    """32 hex digits of all that the result depends on; of the weight files, sizes, times of change and inodes."""
    digest = hashlib.sha256(tokens.numpy().tobytes())
    digest.update(dense.model.config.to_json_string(use_diff=False).encode())
    for file in sorted(set(dense.files.values())):
        stat = file.stat()
        digest.update(f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}\n".encode())
    digest.update(f"{FORMAT} {recipe} {dense.device}".encode())
    return digest.hexdigest()[:32]


@torch.no_grad()
def _profile(calibration: StreamedCalibration, config: SliceConfig) -> Profile:
    """Inputs of the plan. The importances of all layers are small, and stay in memory."""
    dense, report = calibration.dense, calibration.progress
    layers: list[LayerProfile] = []
    report(Progress("profile", 0, dense.layers))
    for index in range(dense.layers):
        stats = calibration.stats(index, ("attention_moment",))
        unread = torch.full((1, 1), torch.nan).expand(2 * [len(stats.mlp_sum)])  # takes no memory
        with dense.layer(index) as (_, block):
            layer = LayerCalibration(
                layer_sizes(block),
                group_gradients(stats.attention_gradients, config.gradient_group),
                group_gradients(stats.mlp_gradients, config.gradient_group),
                stats.attention_moment,
                unread,
                stats.query_fisher,
                output_map(block),
                block.attention.kv_head,
                config.head_fraction,
                index,
            )
            layers.append(layer_profile(layer, [config.estimator]))
        report(Progress("profile", index + 1, dense.layers))
    other = sum(parameter.numel() for parameter in dense.model.parameters()) - decoder_parameters(dense.model)
    return Profile(tuple(layers), other, dense.model.dtype.itemsize, config.head_fraction, config.gradient_group)


@torch.no_grad()
def _slice(calibration: StreamedCalibration, plan: SlicePlan, shards: Shards) -> None:
    """Write every sliced layer, from its weights and its statistics."""
    dense, report = calibration.dense, calibration.progress
    report(Progress("slice", 0, dense.layers))
    for index, layer_plan in enumerate(plan.layers):
        if not shards.has_layer(index):
            _slice_layer(calibration, index, layer_plan, shards)
        report(Progress("slice", index + 1, dense.layers))


def _slice_layer(calibration: StreamedCalibration, index: int, plan: LayerPlan, shards: Shards) -> None:
    stats, tokens = calibration.stats(index), calibration.tokens.numel()
    with calibration.dense.layer(index) as (layer, block):
        layer.self_attn = attention_from_moments(block.attention, plan, stats, tokens)
        layer.mlp = mlp_from_moments(block.mlp, plan.neurons, stats, tokens)
        shards.write_layer(index, layer)
