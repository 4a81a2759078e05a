"""What a parameter costs at the margin: each module of a sliced model cut further and less, by measurement.

At the best plan of a size all marginal prices are equal: else parameters moved from a cheap module to a dear one would
bring the model nearer to the dense one at no cost. Prices are taken at the plan itself, inside the sliced model, and
not from curves of modules sliced alone, since what one cut costs depends on the others. Both ends of a step are fitted
in one shot, whatever order the rest was sliced in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback
from intraslice.diagnostics.changes import Change, Readings, kept_changes, measure_changes
from intraslice.diagnostics.rank_agreement import fallen_importance
from intraslice.diagnostics.sensitivity import cut_alone, modules_of, sensitivity_path, slice_alone, with_module
from intraslice.evaluation.perplexity import Estimate, mean_over_windows
from intraslice.loading import LoadedModel
from intraslice.planning.profile import MASKED_SHARE, LayerProfile, Profile
from intraslice.planning.ratios import LayerPlan, SlicePlan

STEP = 0.1  # of a module, to either side: sizes go in steps, and less would measure these
DEEPEST = 0.95  # no module is cut further
UNEQUAL = 0.03  # share of the decoder layers' parameters; sizes of small models go in coarse steps
MOVED = 0.01  # of the decoder layers' parameters, in one exchange


@dataclass(frozen=True)
class Price:
    """One module's marginal price, and what it was found by."""

    layer: int
    module: ModuleKind
    ratio: float  # at the plan
    less: float  # the ratios between which the price is measured
    more: float
    parameters: int  # that go between the two
    removed: int  # parameters, at the plan
    left: int
    by_window: tuple[float, ...]  # KL gained a parameter, nats a token

    def estimate(self) -> Estimate:
        """The mean over windows, with its standard error."""
        return mean_over_windows(self.by_window)


@dataclass(frozen=True)
class Prices:
    """Every module's, layer by layer, attention first; and the plan's own KL from the dense model."""

    divergence: Estimate
    tokens: int  # scored
    decoder: int  # parameters of the dense decoder layers
    modules: tuple[Price, ...]


@dataclass(frozen=True)
class Exchange:
    """So many parameters taken from one module and given back to another change KL by so much, to first order."""

    giver: Price
    taker: Price
    parameters: int
    change: Estimate  # of KL, nats a token


@dataclass(frozen=True)
class Disagreement:
    """A module that two plans treat differently: its ratio under either, and parameters that the other one removes."""

    layer: int
    module: ModuleKind
    ratio: float
    other: float
    parameters: int  # that the other plan removes beyond this one; below zero where it keeps more


def measure_prices(
    loaded: LoadedModel,
    stats: CalibrationStats,
    sliced: PreTrainedModel,
    plan: SlicePlan,
    tokens: Int[Tensor, "windows window"],
    method: str = "intraslice",
    *,
    progress: ProgressCallback | bool = True,
) -> Prices:
    """Cut each module of a sliced model further and less.

    `sliced` is what `method` makes of `plan`; finished steps are kept under both. Costs about a forward a module.
    `progress` counts steps, two a module.
    """
    profile = stats.profile_for(plan.config)
    steps = [
        (layer, module, ratio)
        for layer, module in modules_of(loaded.model)
        for ratio in step_around(profile.layers[layer], module, _ratio(plan.layers[layer], module))
    ]

    def changed(layer: int, module: ModuleKind, ratio: float) -> nn.Module:
        return with_module(sliced.model.layers[layer], module, slice_alone(loaded.model, stats, layer, module, ratio))

    changes = [Change(step[0], partial(changed, *step)) for step in steps]
    path = _path(loaded, stats, plan, tokens, method)
    readings = measure_changes(loaded.model, sliced, changes, tokens, path, "prices", progress=progress)
    return prices_of(readings, profile, plan, tokens[:, 1:].numel())


def kept_prices(
    loaded: LoadedModel,
    stats: CalibrationStats,
    plan: SlicePlan,
    tokens: Int[Tensor, "windows window"],
    method: str = "intraslice",
) -> Prices | None:
    """What `measure_prices` would only read from the disk; None while any step is still to be measured."""
    readings = kept_changes(_path(loaded, stats, plan, tokens, method), 4 * len(plan.layers))
    if readings is None:
        return None
    return prices_of(readings, stats.profile_for(plan.config), plan, tokens[:, 1:].numel())


def _path(
    loaded: LoadedModel, stats: CalibrationStats, plan: SlicePlan, tokens: Int[Tensor, "windows window"], method: str
) -> Path:
    return sensitivity_path(loaded, stats, tokens, "prices", STEP, method, plan.config, plan.layers)


def prices_of(readings: Readings, profile: Profile, plan: SlicePlan, tokens: int) -> Prices:
    """Differences of KL over differences of parameters. Pure."""
    found = []
    places = [(layer, module) for layer in range(len(plan.layers)) for module in MODULE_KINDS]
    pairs = zip(readings.changed[::2], readings.changed[1::2], strict=True)
    for (layer, module), (less, more) in zip(places, pairs, strict=True):
        known, given = profile.layers[layer], plan.layers[layer]
        ends = step_around(known, module, _ratio(given, module))
        parameters = less.parameters - more.parameters
        gains = zip(more.divergences, less.divergences, strict=True)
        left = parameters_kept(known, given, module)
        removed = _dense_parameters(known, module) - left
        by_window = tuple((worse - better) / parameters for worse, better in gains)
        ratio = _ratio(given, module)
        found.append(Price(layer, module, ratio, *ends, parameters, removed, left, by_window))
    divergence = mean_over_windows(readings.base.divergences)
    return Prices(divergence, tokens, profile.dense_decoder, tuple(found))


def step_around(layer: LayerProfile, module: ModuleKind, ratio: float) -> tuple[float, float]:
    """Two ratios about a given one between which parameters go: `STEP` to either side, or more where sizes need it."""
    width = STEP
    while True:
        less, more = max(0.0, ratio - width), min(DEEPEST, ratio + width)
        if parameters_at(layer, module, less) > parameters_at(layer, module, more) or width >= 1:
            return less, more
        width += STEP


def predicted_price(price: Price, profile: Profile, estimator: str) -> float:
    """What the estimator says of the same step: importance a parameter that a mask stands for, as plans are made by.

    In its own unit, the same for all modules.
    """
    importance = getattr(profile.layers[price.layer].importances[estimator], price.module)
    fallen = fallen_importance(importance, price.more) - fallen_importance(importance, price.less)
    return fallen / price.parameters / (MASKED_SHARE if price.module == "attention" else 1.0)


def exchange(prices: Prices, giver: Price, taker: Price, share: float = MOVED) -> Exchange:
    """Move `share` of the decoder's parameters, or as many as one module has left and the other has lost.

    By a straight line through the measured steps.
    """
    moved = round(min(share * prices.decoder, giver.left, taker.removed))
    pairs = zip(giver.by_window, taker.by_window, strict=True)
    return Exchange(giver, taker, moved, mean_over_windows([moved * (one - other) for one, other in pairs]))


def best_exchange(prices: Prices, cap: float = 0.8) -> Exchange | None:
    """From the cheapest module that may give more to the dearest that has lost any; None where no two are there."""
    givers = [price for price in prices.modules if price.ratio < cap and price.left]
    takers = [price for price in prices.modules if price.removed]
    if not givers or not takers:
        return None
    giver = min(givers, key=lambda price: price.estimate().value)
    return exchange(prices, giver, max(takers, key=lambda price: price.estimate().value))


def disagreements(plan: SlicePlan, other: SlicePlan, profile: Profile) -> tuple[Disagreement, ...]:
    """What two plans of equal size make of every module, the largest difference first. Pure.

    Raises UserError where one removes over `UNEQUAL` of the layers' parameters more.
    """
    if abs(plan.removed_fraction - other.removed_fraction) > UNEQUAL:
        raise UserError(
            f"the plans remove {plan.removed_fraction:.3f} and {other.removed_fraction:.3f} of the layers' parameters; "
            "expected two of one size"
        )
    found = [
        Disagreement(
            index,
            module,
            _ratio(ours, module),
            _ratio(theirs, module),
            parameters_kept(known, ours, module) - parameters_kept(known, theirs, module),
        )
        for index, (known, ours, theirs) in enumerate(zip(profile.layers, plan.layers, other.layers, strict=True))
        for module in MODULE_KINDS
    ]
    return tuple(sorted(found, key=lambda one: -abs(one.parameters)))


def cost_of(prices: Prices, differences: Sequence[Disagreement]) -> Estimate:
    """What going over to the other plan would change KL by, nats a token: to first order, so right for small ones."""
    moved = {(one.layer, one.module): one.parameters for one in differences}
    by_module = [[moved[price.layer, price.module] * value for value in price.by_window] for price in prices.modules]
    return mean_over_windows([sum(window) for window in zip(*by_module, strict=True)])


def parameters_kept(layer: LayerProfile, plan: LayerPlan, module: ModuleKind) -> int:
    """Parameters of one module under a plan."""
    if module == "mlp":
        return plan.neurons * layer.sizes.neuron_cost
    return layer.sizes.parameters(len(plan.heads), plan.kv_heads, plan.dim, 0) - layer.sizes.fixed


def _dense_parameters(layer: LayerProfile, module: ModuleKind) -> int:
    return parameters_kept(layer, _cut(layer, module, 0.0), module)


def parameters_at(layer: LayerProfile, module: ModuleKind, ratio: float) -> int:
    """Parameters of one module once it has given `ratio`."""
    return parameters_kept(layer, _cut(layer, module, ratio), module)


def _cut(layer: LayerProfile, module: ModuleKind, ratio: float) -> LayerPlan:
    sizes = layer.sizes
    dense = LayerPlan(0.0, 0.0, tuple(range(sizes.heads)), sizes.kv_heads, sizes.dim, sizes.neurons)
    return cut_alone(dense, layer, module, ratio)


def _ratio(plan: LayerPlan, module: ModuleKind) -> float:
    return plan.attention_ratio if module == "attention" else plan.mlp_ratio
