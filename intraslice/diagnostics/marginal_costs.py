"""Measured marginal cost per parameter: the change of KL divergence when one module is pruned slightly more or less.

In the best plan of a given size all marginal costs are equal: otherwise moving parameters from a module with a low cost
to one with a high cost would lower the KL divergence. Costs are measured inside the sliced model and not on modules
sliced alone, since the cost of one cut depends on the others. Both variants of a module are fitted one-shot, whatever
the order of the rest.
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
from intraslice.diagnostics.changes import Change, Measurements, cached_changes, measure_changes
from intraslice.diagnostics.rank_agreement import removed_importance
from intraslice.diagnostics.sensitivity import cut_alone, modules_of, sensitivity_path, slice_alone, with_module
from intraslice.evaluation.perplexity import Estimate, mean_over_windows
from intraslice.loading import LoadedModel
from intraslice.planning.profile import MASKED_FRACTION, LayerProfile, Profile
from intraslice.planning.ratios import LayerPlan, SlicePlan

STEP = 0.1  # of the ratio, to either side: sizes change in steps, which smaller values would measure
MAX_RATIO = 0.95  # maximum ratio of a module
MAX_SIZE_DIFFERENCE = 0.03  # of plans, as a fraction of the decoder layers' parameters; small models have coarse sizes
SWAP_FRACTION = 0.01  # of the decoder layers' parameters, moved in one swap


@dataclass(frozen=True)
class MarginalCost:
    """The marginal cost of one module, and its measurement."""

    layer: int
    module: ModuleKind
    ratio: float  # in the plan
    less: float  # the cost is measured between the ratios `less` and `more`
    more: float
    parameters: int  # removed from `less` to `more`
    removed: int  # parameters, in the plan
    left: int
    by_window: tuple[float, ...]  # KL per parameter, in nats per token

    def estimate(self) -> Estimate:
        """The mean over windows, with its standard error."""
        return mean_over_windows(self.by_window)


@dataclass(frozen=True)
class MarginalCosts:
    """Marginal costs of all modules, layer by layer, attention first; and the KL divergence of the plan's model."""

    divergence: Estimate
    tokens: int  # scored
    decoder: int  # parameters of the dense decoder layers
    modules: tuple[MarginalCost, ...]


@dataclass(frozen=True)
class Swap:
    """Moves `parameters` from `source`, which is pruned more, to `target`. `change` of KL is a first-order estimate."""

    source: MarginalCost
    target: MarginalCost
    parameters: int
    change: Estimate  # of KL, in nats per token


@dataclass(frozen=True)
class PlanDifference:
    """The ratios of one module in two plans, and the difference of its parameters."""

    layer: int
    module: ModuleKind
    ratio: float
    other: float
    parameters: int  # removed by the other plan less those removed by this one


def measure_marginal_costs(
    loaded: LoadedModel,
    stats: CalibrationStats,
    sliced: PreTrainedModel,
    plan: SlicePlan,
    tokens: Int[Tensor, "windows window"],
    method: str = "intraslice",
    *,
    progress: ProgressCallback | bool = True,
) -> MarginalCosts:
    """Prune each module of a sliced model more and less, and measure the KL divergence.

    `sliced` is the model of `plan` by `method`; finished steps are cached under both. Costs about one forward per
    module. `progress` counts steps, two per module.
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
    measurements = measure_changes(loaded.model, sliced, changes, tokens, path, "prices", progress=progress)
    return marginal_costs_from(measurements, profile, plan, tokens[:, 1:].numel())


def cached_marginal_costs(
    loaded: LoadedModel,
    stats: CalibrationStats,
    plan: SlicePlan,
    tokens: Int[Tensor, "windows window"],
    method: str = "intraslice",
) -> MarginalCosts | None:
    """The result of `measure_marginal_costs` if all steps are cached, else None."""
    measurements = cached_changes(_path(loaded, stats, plan, tokens, method), 4 * len(plan.layers))
    if measurements is None:
        return None
    return marginal_costs_from(measurements, stats.profile_for(plan.config), plan, tokens[:, 1:].numel())


def _path(
    loaded: LoadedModel, stats: CalibrationStats, plan: SlicePlan, tokens: Int[Tensor, "windows window"], method: str
) -> Path:
    return sensitivity_path(loaded, stats, tokens, "prices", STEP, method, plan.config, plan.layers)


def marginal_costs_from(measurements: Measurements, profile: Profile, plan: SlicePlan, tokens: int) -> MarginalCosts:
    """Differences of KL over differences of parameters. Pure."""
    modules = []
    module_ids = [(layer, module) for layer in range(len(plan.layers)) for module in MODULE_KINDS]
    pairs = zip(measurements.changed[::2], measurements.changed[1::2], strict=True)
    for (layer, module), (less, more) in zip(module_ids, pairs, strict=True):
        layer_profile, layer_plan = profile.layers[layer], plan.layers[layer]
        ratio = _ratio(layer_plan, module)
        ends = step_around(layer_profile, module, ratio)
        parameters = less.parameters - more.parameters
        windows = zip(more.divergences, less.divergences, strict=True)
        left = parameters_kept(layer_profile, layer_plan, module)
        removed = _dense_parameters(layer_profile, module) - left
        by_window = tuple((higher - lower) / parameters for higher, lower in windows)
        modules.append(MarginalCost(layer, module, ratio, *ends, parameters, removed, left, by_window))
    divergence = mean_over_windows(measurements.base.divergences)
    return MarginalCosts(divergence, tokens, profile.dense_decoder, tuple(modules))


def step_around(layer: LayerProfile, module: ModuleKind, ratio: float) -> tuple[float, float]:
    """Ratios below and above `ratio` with different parameters: `STEP` to either side, or more if sizes require it."""
    width = STEP
    while True:
        less, more = max(0.0, ratio - width), min(MAX_RATIO, ratio + width)
        if parameters_at(layer, module, less) > parameters_at(layer, module, more) or width >= 1:
            return less, more
        width += STEP


def predicted_cost(cost: MarginalCost, profile: Profile, estimator: str) -> float:
    """The estimator's prediction for the same step: importance per parameter that the masks account for.

    In the estimator's own unit, the same for all modules.
    """
    importance = getattr(profile.layers[cost.layer].importances[estimator], cost.module)
    removed = removed_importance(importance, cost.more) - removed_importance(importance, cost.less)
    return removed / cost.parameters / (MASKED_FRACTION if cost.module == "attention" else 1.0)


def swap_parameters(
    costs: MarginalCosts, source: MarginalCost, target: MarginalCost, fraction: float = SWAP_FRACTION
) -> Swap:
    """Move `fraction` of the decoder's parameters, or as many as the source has left and the target has lost.

    The change of KL is extrapolated linearly from the measured steps.
    """
    moved = round(min(fraction * costs.decoder, source.left, target.removed))
    pairs = zip(source.by_window, target.by_window, strict=True)
    return Swap(source, target, moved, mean_over_windows([moved * (loss - gain) for loss, gain in pairs]))


def find_best_swap(costs: MarginalCosts, cap: float = 0.8) -> Swap | None:
    """The swap from the module of lowest cost below the cap to the pruned one of highest cost, or None."""
    sources = [cost for cost in costs.modules if cost.ratio < cap and cost.left]
    targets = [cost for cost in costs.modules if cost.removed]
    if not sources or not targets:
        return None
    source = min(sources, key=lambda cost: cost.estimate().value)
    return swap_parameters(costs, source, max(targets, key=lambda cost: cost.estimate().value))


def plan_differences(plan: SlicePlan, other: SlicePlan, profile: Profile) -> tuple[PlanDifference, ...]:
    """The differences of two plans of equal size in every module, the largest first. Pure.

    Raises UserError where the sizes differ by over `MAX_SIZE_DIFFERENCE` of the layers' parameters.
    """
    if abs(plan.removed_fraction - other.removed_fraction) > MAX_SIZE_DIFFERENCE:
        raise UserError(
            f"the plans must remove the same fraction of the layers' parameters, within {MAX_SIZE_DIFFERENCE:g}; got "
            f"{plan.removed_fraction:.3f} and {other.removed_fraction:.3f}"
        )
    differences = [
        PlanDifference(
            index,
            module,
            _ratio(layer_plan, module),
            _ratio(other_plan, module),
            parameters_kept(layer, layer_plan, module) - parameters_kept(layer, other_plan, module),
        )
        for index, (layer, layer_plan, other_plan) in enumerate(
            zip(profile.layers, plan.layers, other.layers, strict=True)
        )
        for module in MODULE_KINDS
    ]
    return tuple(sorted(differences, key=lambda difference: -abs(difference.parameters)))


def divergence_change(costs: MarginalCosts, differences: Sequence[PlanDifference]) -> Estimate:
    """First-order estimate of the change of KL from this plan to the other one, in nats per token."""
    moved = {(difference.layer, difference.module): difference.parameters for difference in differences}
    by_module = [[moved[cost.layer, cost.module] * value for value in cost.by_window] for cost in costs.modules]
    return mean_over_windows([sum(window) for window in zip(*by_module, strict=True)])


def parameters_kept(layer: LayerProfile, plan: LayerPlan, module: ModuleKind) -> int:
    """Parameters of one module in a plan."""
    if module == "mlp":
        return plan.neurons * layer.sizes.neuron_cost
    return layer.sizes.parameters(len(plan.heads), plan.kv_heads, plan.dim, 0) - layer.sizes.fixed


def _dense_parameters(layer: LayerProfile, module: ModuleKind) -> int:
    return parameters_kept(layer, _cut(layer, module, 0.0), module)


def parameters_at(layer: LayerProfile, module: ModuleKind, ratio: float) -> int:
    """Parameters of one module after pruning it by `ratio`."""
    return parameters_kept(layer, _cut(layer, module, ratio), module)


def _cut(layer: LayerProfile, module: ModuleKind, ratio: float) -> LayerPlan:
    sizes = layer.sizes
    dense = LayerPlan(0.0, 0.0, tuple(range(sizes.heads)), sizes.kv_heads, sizes.dim, sizes.neurons)
    return cut_alone(dense, layer, module, ratio)


def _ratio(plan: LayerPlan, module: ModuleKind) -> float:
    return plan.attention_ratio if module == "attention" else plan.mlp_ratio
