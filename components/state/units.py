"""What a model's anatomy is drawn from besides a plan: scores of its units; the comparable cross-module slices."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.errors import UserError
from intraslice.methods.crossmodule import plan_crossmodule
from intraslice.modeling.families import blocks
from intraslice.modeling.residual import residual_branches
from intraslice.planning.baseline_plans import WIDTH_MULTIPLE, CrossModulePlan
from intraslice.slicing.units import LayerUnits, layer_units

from ..i18n.language import LazyString, lazy_gettext

TOLERANCE = 0.02  # fraction of the layers' parameters by which comparable plans may differ
ARRAYS = ("energies", "channels", "neurons", "frequency")
CURVE_POINTS = 24  # of the neurons' scores, in a bar of some hundred pixels


class Width(NamedTuple):
    """A width of the residual stream in cross-module slicing, and its actual sparsity."""

    width: int
    removed: float


class Scores(NamedTuple):
    """Scores of a layer's units as plain numbers: fractions of the layer's heads', and of the mean neuron's."""

    heads: list[float]
    explained: Float[np.ndarray, "heads d"]  # of each head's output, by its first 1..d principal axes
    neurons: list[float]  # of `CURVE_POINTS` evenly spaced ranks, best first
    held: Float[np.ndarray, " neurons"]  # by the best 1..n neurons: their fraction of the whole score


@dataclass(frozen=True)
class ModelUnits:
    """Scores of all layers' units, and what cross-module slicing makes of the model.

    `shortcuts` is the number of matrices that it adds to a layer; 0 if it cannot slice this family. `widths` ascend.
    """

    layers: tuple[LayerUnits, ...]
    shortcuts: int
    widths: tuple[Width, ...]

    def width(self, sparsity: float) -> Width | None:
        """The width whose actual sparsity is nearest, as in `plan_crossmodule`; None without one."""
        return min(self.widths, key=lambda width: abs(width.removed - sparsity), default=None)

    @cached_property
    def scores(self) -> list[Scores]:
        """The scores of each layer."""
        return [_scores(layer) for layer in self.layers]


def _scores(units: LayerUnits) -> Scores:
    heads, neurons = units.energies.double().sum(1), units.neurons.double().sort(descending=True).values
    spectra = units.energies.double().cumsum(1) / heads.clamp_min(1e-300)[:, None]
    points = torch.linspace(0, len(neurons) - 1, CURVE_POINTS).round().long()
    held = neurons.cumsum(0) / neurons.sum().clamp_min(1e-300)
    return Scores(
        _rounded(heads / heads.sum().clamp_min(1e-300)).tolist(),
        _rounded(spectra),
        _rounded((neurons / neurons.mean().clamp_min(1e-300))[points]).tolist(),
        held.numpy(),
    )


def _rounded(values: Tensor) -> Float[np.ndarray, "..."]:
    """The values with three significant digits: here, since they are drawn at every move of the slider."""
    return np.vectorize(lambda value: float(f"{value:.3g}"), otypes=[float])(values.numpy())


def units_of(model: PreTrainedModel, stats: CalibrationStats, pause: Callable[[], object] = lambda: None) -> ModelUnits:
    """The units of a calibrated model; pauses after each layer and each width."""
    layers, tables, units = blocks(model), [layer.table for layer in stats.profile.layers], []
    for block, layer, table in zip(layers, stats.layers, tables, strict=True):
        units.append(layer_units(block, layer, stats.tokens, table))
        pause()
    hidden, widths = model.lm_head.in_features, list[Width]()
    try:
        for width in (*range(WIDTH_MULTIPLE, hidden, WIDTH_MULTIPLE), hidden):
            plan = plan_crossmodule(model, slicing=1 - width / hidden)
            widths.append(Width(plan.width, plan.removed_fraction))
            pause()
    except UserError:  # this family cannot be sliced so
        return ModelUnits(tuple(units), 0, ())
    return ModelUnits(tuple(units), len(residual_branches(layers[0])), tuple(widths))


def save_units(units: ModelUnits, path: Path) -> None:
    """Write the units of a model with layers of equal size."""
    first = units.layers[0]
    about = {"kv_head": first.kv_head.tolist(), "norms": first.norms, "shortcuts": units.shortcuts}
    arrays: dict[str, Any] = {
        name: torch.stack([getattr(layer, name) for layer in units.layers]).numpy() for name in ARRAYS
    }
    np.savez_compressed(path, **arrays, about=json.dumps(about | {"widths": units.widths}))


def load_units(path: Path) -> ModelUnits:
    """The units in a file."""
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        stacked = [torch.from_numpy(arrays[name]) for name in ARRAYS]
    kv_head = torch.tensor(about["kv_head"])
    layers = tuple(
        LayerUnits(**dict(zip(ARRAYS, tensors, strict=True)), kv_head=kv_head, norms=about["norms"])
        for tensors in zip(*stacked, strict=True)
    )
    return ModelUnits(layers, about["shortcuts"], tuple(Width(*width) for width in about["widths"]))


def nearest_plan(model: PreTrainedModel, sparsity: float) -> tuple[CrossModulePlan, bool]:
    """The cross-module plan whose actual sparsity is nearest to `sparsity`, and whether the two are comparable."""
    plan = plan_crossmodule(model, sparsity)
    return plan, abs(plan.removed_fraction - sparsity) <= TOLERANCE


def incomparable(plan: CrossModulePlan) -> LazyString:
    """Why there is no cross-module model to compare with: the nearest plan is too far."""
    return lazy_gettext(
        "Cross-module slicing cannot remove {target:.0%} of this model's layer parameters: the nearest width, "
        "{width} of {hidden}, removes {removed:.1%}, too different for a fair comparison. Choose another sparsity "
        "to compare.",
        target=plan.requested,
        width=plan.width,
        hidden=plan.hidden,
        removed=plan.removed_fraction,
    )


def note_of(plan: CrossModulePlan) -> LazyString:
    """The reason why the plan misses its target sparsity."""
    if plan.removed_fraction < 0:
        return lazy_gettext(
            "Slicing {slicing:.1%} of the width adds {added:.1%} to the layer parameters: the shortcut matrices have "
            "more parameters than are removed.",
            slicing=plan.slicing,
            added=-plan.removed_fraction,
        )
    return lazy_gettext(
        "No width that is a multiple of {multiple} removes {target:.1%} of the layer parameters; the nearest, {width} "
        "of {hidden}, removes {removed:.1%}.",
        multiple=WIDTH_MULTIPLE,
        target=plan.requested,
        width=plan.width,
        hidden=plan.hidden,
        removed=plan.removed_fraction,
    )
