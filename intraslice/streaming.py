"""Slices a model larger than memory into a folder: weights, moments and sliced layers are on disk, except one layer's.

Only the method `intraslice` in the one-shot order: the layers of other methods depend on each other, or on statistics
that this calibration does not keep. A killed run goes on where it was, and ends in the same bytes.
"""

import hashlib
from pathlib import Path

import torch

from intraslice import token_windows
from intraslice.calibration.driver import loss_gradient_after, sequences_per_batch
from intraslice.calibration.layerwise import LayerwiseCalibration
from intraslice.checkpoints.format import Shards, require_free
from intraslice.core.cache import Journal, resumable_cache_folder, resumable_sibling
from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressOption, progress_callback
from intraslice.loading import load_offloaded
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.pretrained import memory
from intraslice.pretrained.reader import read_config
from intraslice.pretrained.sources import obtain_weights
from intraslice.records import Recipe, slice_record
from intraslice.slicing.driver import slice_layers

FORMAT = "5"  # of the journal
ESTIMATORS = ("uniform", "pca", "output-error", "fisher")
MOMENTS = ("attention_moment", "mlp_moment")  # what the method intraslice reads


def require_streamable(recipe: Recipe) -> None:
    """Raise UserError, with the reason, for a recipe that cannot be sliced one layer at a time."""
    config, name, order = recipe.slicing, recipe.method, recipe.slicing.order
    reasons = {
        f"method {name} needs other statistics, or all layers at once; use --method intraslice": name != "intraslice",
        "the sequential order needs every sliced layer for the next one; use --order one-shot": order != "one-shot",
        f"estimator {config.estimator} may need statistics that are not kept; use one of {', '.join(ESTIMATORS)}": (
            config.estimator not in ESTIMATORS
        ),
        "sampling text needs the whole model; leave samples out": recipe.calibration.samples > 0,
        f"recovery {config.recovery} trains all layers at once; leave it out": config.recovery != NO_RECOVERY,
    }
    for reason, applies in reasons.items():
        if applies:
            raise UserError(f"cannot slice one layer at a time: {reason}")


def estimate(recipe: Recipe, device: str = "cpu") -> memory.StreamEstimate:
    """Memory, disk and time of `slice_to_folder`, from the model's configuration and the speed of this machine."""
    config, dtype = read_config(obtain_weights(recipe.model)), getattr(torch, recipe.dtype)
    return memory.estimate_stream(config, recipe.calibration, dtype, recipe.slicing.sparsity, device)


def memory_is_short(recipe: Recipe, device: str) -> bool:
    """Whether an ordinary slice of a model in safetensors files on disk needs more memory than is free now."""
    dtype, calibration = getattr(torch, recipe.dtype), recipe.calibration
    model = memory.estimate_memory(recipe.model, dtype, device)
    if model.weights is None or model.weights.gguf:
        return False
    needed = memory.calibration_bytes(read_config(model.weights), calibration.sequences, calibration.length, dtype)
    return model.needed + needed > model.available


def slice_to_folder(
    recipe: Recipe, folder: str | Path, device: str = "cpu", *, progress: ProgressOption = True
) -> SlicePlan:
    """Slice the recipe's model into a new folder, which `load_model` reads as it does that of `save`.

    The weights are those of an ordinary slice, to the bit. Called again with the same arguments after it failed or was
    killed, it goes on after the last finished step. Raises UserError where the recipe cannot be sliced in this way, the
    folder is not empty, or the disk is too small, and NumericalError where gradients or moments are not finite.
    """
    folder, report, dtype = Path(folder).expanduser(), progress_callback(progress), getattr(torch, recipe.dtype)
    require_streamable(recipe)
    require_free(folder)
    loaded = load_offloaded(recipe.model, dtype, device, progress=report)
    reserved = memory.journal_bytes(loaded.model.config, recipe.calibration, dtype)
    tokens = token_windows.calibration_tokens(loaded.tokenizer, recipe.calibration, recipe.evaluation.text)
    everything = f"{FORMAT} {recipe} {device} {loaded.fingerprint} {tokens.tolist()}"
    digest = hashlib.sha256(everything.encode()).hexdigest()[:32]
    with resumable_cache_folder(digest, reserved) as steps, resumable_sibling(folder, digest) as sibling:
        loss_gradient = loss_gradient_after(tokens[:0], loaded.model, recipe.calibration.targets)
        batch, journal = sequences_per_batch(tokens), Journal(steps)
        calibration = LayerwiseCalibration(loaded.model, tokens, batch, loss_gradient, journal, report, MOMENTS)
        calibration.run()
        plan = make_plan(calibration.profile(recipe.slicing), recipe.slicing)
        shards = Shards(sibling / folder.name, loaded.model)
        shards.folder.mkdir(exist_ok=True)
        slice_layers(calibration, plan, shards)
        shards.finish(loaded.tokenizer, slice_record(recipe, loaded, plan), folder)
    return plan
