"""Measured sensitivity: what the loss really gains when one module of one layer alone is sliced.

Each forward starts at the module's own layer, and each finished module is kept on disk, so that a run that was stopped
goes on where it was. What the estimators foretell of it is judged in rank_agreement.py.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.cache import cache_path, keep_record, kept_record
from intraslice.calibration.stats import CalibrationStats
from intraslice.config import MODULE_KINDS, ModuleKind, SliceConfig
from intraslice.distributed.sharing import from_first, gathered, rank, size
from intraslice.errors import UserError
from intraslice.evaluation.perplexity import losses_through
from intraslice.loading import LoadedModel
from intraslice.modeling.hidden_states import embed
from intraslice.planning.profile import LayerProfile
from intraslice.planning.ratios import LayerPlan, make_plan
from intraslice.planning.widths import neurons_kept
from intraslice.progress import Progress, finish
from intraslice.slicing.driver import slice_model

FORMAT = "3"


@dataclass(frozen=True)
class ModuleLoss:
    """What slicing one module alone did. Losses are in nats a token."""

    layer: int
    module: ModuleKind
    removed: int  # parameters
    increase: float  # of the mean loss; below zero where the sliced model does better
    standard_error: float  # of the increase, from the differences token by token


@dataclass(frozen=True)
class Sensitivity:
    """Every module, layer by layer, attention first."""

    ratio: float  # of the one module that is sliced
    dense_loss: float  # mean, in nats a token
    tokens: int  # scored
    modules: tuple[ModuleLoss, ...]


def cut_alone(dense: LayerPlan, profile: LayerProfile, module: ModuleKind, ratio: float) -> LayerPlan:
    """A layer's plan in which one module gives `ratio` of its channels or neurons and the other nothing."""
    if module == "mlp":
        return replace(dense, mlp_ratio=ratio, neurons=neurons_kept(profile.sizes.neurons, ratio))
    keep = round(profile.sizes.channels * (1 - ratio))
    heads = tuple(profile.table.alive[keep].nonzero().flatten().tolist())
    _, kv_heads, dim = profile.shapes[keep]
    return replace(dense, attention_ratio=ratio, heads=heads, kv_heads=kv_heads, dim=dim)


def measure_sensitivity(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float = 0.3
) -> Generator[Progress, None, Sensitivity]:
    """Slice each module alone at `ratio`, in one shot, and take the loss on `tokens`; yields progress by module.

    What is done is kept under the model, the calibration, the tokens and the ratio. Costs about a forward a layer, and
    memory for one hidden state a token. Several processes take turns at the modules, and all get what they find. Raises
    UserError for a ratio that is not above 0 and up to 0.95.
    """
    path = _path(loaded, stats, tokens, ratio)
    record = from_first(kept_record(path))
    measured = [ModuleLoss(**module) for module in record.get("modules", [])]
    total = 2 * len(stats.layers)
    yield Progress("sensitivity", len(measured), total)
    if len(measured) < total:
        for found in _measuring(loaded.model, stats, tokens, ratio, len(measured)):
            if found is not None:
                dense_loss, losses = found
                measured += losses
                record = {"dense_loss": dense_loss, "modules": [asdict(loss) for loss in measured]}
                if rank() == 0:
                    keep_record(path, record, "the sensitivity so far")
            yield Progress("sensitivity", len(measured), total)
    return Sensitivity(ratio, record["dense_loss"], tokens[:, 1:].numel(), tuple(measured))


@torch.no_grad()
def _measuring(
    model: PreTrainedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float, done: int
) -> Iterator[tuple[float, list[ModuleLoss]] | None]:
    """The dense loss and those of the modules from number `done` on, one a process at a time.

    None wherever there is time for a pause.
    """
    layers, targets = model.model.layers, tokens[:, 1:]
    hidden_states = embed(model, tokens)
    dense_losses = yield from losses_through(model, layers, hidden_states, targets)
    turn, found = 0, []
    for index, layer in enumerate(layers):
        for module in MODULE_KINDS[max(0, done - 2 * index) :]:
            if turn == rank():
                removed, sliced = _slice_alone(model, stats, index, module, ratio)
                yield
                losses = yield from losses_through(model, [sliced, *layers[index + 1 :]], hidden_states, targets)
                increase = losses - dense_losses
                standard_error = increase.std().item() / len(increase) ** 0.5
                found.append(ModuleLoss(index, module, removed, increase.mean().item(), standard_error))
            turn += 1
            if turn == size() or (index, module) == (len(layers) - 1, MODULE_KINDS[-1]):
                yield dense_losses.mean().item(), gathered(found)
                turn, found = 0, []
        yield from hidden_states.mapping_(lambda hidden, arguments, layer=layer: layer(hidden, **arguments))


def kept_sensitivity(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float = 0.3
) -> Sensitivity | None:
    """What `measure_sensitivity` would only read from the disk; None while any module is still to be measured."""
    record = kept_record(_path(loaded, stats, tokens, ratio))
    measured = tuple(ModuleLoss(**module) for module in record.get("modules", []))
    if len(measured) < 2 * len(stats.layers):
        return None
    return Sensitivity(ratio, record["dense_loss"], tokens[:, 1:].numel(), measured)


def _path(loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"], ratio: float) -> Path:
    if not 0 < ratio <= 0.95:
        raise UserError(f"ratio is {ratio!r}; wanted the share of a module to remove, above 0 and up to 0.95")
    attention_sum = stats.layers[-1].attention_sum  # tells one calibration from another
    calibration = stats.tokens, stats.targets, attention_sum
    parts = (FORMAT, loaded.fingerprint, loaded.model.dtype, *calibration, tokens, float(ratio))
    return cache_path("sensitivity", ".json", *parts)


def _slice_alone(
    model: PreTrainedModel, stats: CalibrationStats, layer: int, module: ModuleKind, ratio: float
) -> tuple[int, nn.Module]:
    """Parameters that go, and the layer without them; every other layer is the dense one and costs nothing."""
    plan = make_plan(stats.profile, SliceConfig(0.0, order="one-shot"))
    layers = list(plan.layers)
    layers[layer] = cut_alone(layers[layer], stats.profile.layers[layer], module, ratio)
    sliced = finish(slice_model(model, replace(plan, layers=tuple(layers)), stats)).model.layers[layer]
    before, after = (sum(p.numel() for p in block.parameters()) for block in (model.model.layers[layer], sliced))
    return before - after, sliced
