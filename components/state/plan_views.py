"""Plans and sorted importances of a calibration, made once, and as the page shows them. Belongs to `session.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from components.state.caches import BoundedCache
from components.state.request import CalibrationKey
from components.state.views import ImportanceCurve, LayerView, PlanView, SettlingView
from intraslice.core.config import ModuleKind, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.ratios import CONTEXT, LayerPlan, SlicePlan, flops_per_token, make_plan

PlanCache = BoundedCache[tuple[CalibrationKey | None, int, SliceConfig], SlicePlan | UserError]
DRAWN = 160  # points of a curve; more cannot be told apart on a screen


@dataclass(frozen=True)
class Sorted:
    """Ascending importances of one kind of unit: of every layer, and of all together."""

    unit: str
    layers: Sequence[Tensor]
    everyone: Tensor

    def curve(self, layer: int, threshold: float | None, one_by_one: bool = True) -> ImportanceCurve:
        """The curve of one layer beside everyone's, with the shares that lie below the threshold."""
        chosen = self.layers[layer]
        of_all = of_layer = 0.0
        if threshold is not None:
            of_all, of_layer = (
                int(torch.searchsorted(units, threshold)) / len(units) for units in (self.everyone, chosen)
            )
        curves = _drawn(self.everyone), _drawn(chosen)
        return ImportanceCurve(self.unit, *curves, threshold, of_all, of_layer, one_by_one)


def sort_importances(profile: Profile) -> dict[str, dict[ModuleKind, Sorted]]:
    """By estimator and kind of module."""
    return {
        estimator: {
            "attention": _sorted(ESTIMATORS[estimator].units, profile.importances(estimator, "attention")),
            "mlp": _sorted("neurons", profile.importances(estimator, "mlp")),
        }
        for estimator in profile.estimators
        if estimator in ESTIMATORS  # a kept profile may know one of somebody's own that is not offered now
    }


@dataclass(frozen=True)
class Source:
    """Where plans come from: a profile, its importances sorted once, and words where it is no whole calibration.

    `head_weights` are those of the model's output head. It was measured by a calibration on so many `sequences`, or
    comes from the snapshot.
    """

    profile: Profile
    head_weights: int
    calibration: CalibrationKey | None = None
    sequences: int = 0
    provisional: str = ""

    @cached_property
    def importances(self) -> dict[str, dict[ModuleKind, Sorted]]:
        """By estimator and kind of module."""
        return sort_importances(self.profile)


class Plans:
    """Plans by what they are made of: a source and the settings of the slice."""

    def __init__(self) -> None:
        self._cache: PlanCache = BoundedCache(2_000)

    def plan(self, source: Source, config: SliceConfig) -> SlicePlan:
        """What goes from every layer. Raises UserError for what this model cannot have; found once, it is kept too."""
        key = (source.calibration, source.sequences, config)
        plan = self._cache.get(key)
        if plan is None:
            try:
                plan = make_plan(source.profile, config)
            except UserError as error:
                plan = UserError(*error.args)  # without its traceback, which holds frames
            self._cache.put(key, plan)
        if isinstance(plan, UserError):
            raise UserError(*plan.args)
        return plan

    def view(self, source: Source, config: SliceConfig) -> PlanView:
        """The plan as plain numbers, with the ratios of the other estimators beside it. Raises UserError as `plan`."""
        names = [
            name
            for name in reversed(ESTIMATORS)  # the first, which is the usual one, is drawn last and so above the others
            if (name in source.profile.estimators or not ESTIMATORS[name].importance)
            and (name != config.estimator or config.locked)
        ]
        configs = [config, *(replace(config, estimator=name, locked=()) for name in names)]
        plan, *others = [self.plan(source, one) for one in configs]
        flops_dense, flops_sliced = flops_per_token(source.profile, plan, source.head_weights)
        return PlanView(
            estimator="manual" if config.locked else config.estimator,
            provisional=source.provisional,
            asked=config.sparsity,
            removed=plan.removed_fraction,
            bias=plan.reasons.bias,
            cap=config.cap,
            layers=tuple(_layer(*pair) for pair in zip(plan.layers, source.profile.layers, strict=True)),
            others={
                name: tuple((layer.attention_ratio, layer.mlp_ratio) for layer in other.layers)
                for name, other in zip(names, others, strict=True)
            },
            parameters_dense=plan.parameters.dense_total,
            parameters_sliced=plan.parameters.sliced_total,
            decoder_dense=plan.parameters.dense_decoder,
            decoder_sliced=plan.parameters.sliced_decoder,
            kv_dense=plan.kv_bytes_per_token[0],
            kv_sliced=plan.kv_bytes_per_token[1],
            flops_dense=flops_dense,
            flops_sliced=flops_sliced,
            context=CONTEXT,
            bytes_per_value=source.profile.bytes_per_value,
        )


def importance_curves(source: Source, plan: SlicePlan, layer: int) -> dict[str, ImportanceCurve]:
    """What the chosen estimator saw of `layer`, by kind of module.

    One that looks at no importances has no threshold; the curves are the first estimator's then.
    """
    seen = plan.config.estimator if plan.config.estimator in source.importances else source.profile.estimators[0]
    thresholds = {"attention": plan.reasons.attention_threshold, "mlp": plan.reasons.mlp_threshold}
    free = plan.config.shapes == "free"
    return {module: units.curve(layer, thresholds[module], free) for module, units in source.importances[seen].items()}


def _layer(kept: LayerPlan, dense: LayerProfile) -> LayerView:
    return LayerView(
        attention=kept.attention_ratio,
        mlp=kept.mlp_ratio,
        heads=len(kept.heads),
        heads_dense=dense.sizes.heads,
        dim=kept.dim,
        dim_dense=dense.sizes.dim,
        neurons=kept.neurons,
        neurons_dense=dense.sizes.neurons,
    )


def _sorted(unit: str, layers: Sequence[Tensor]) -> Sorted:
    layers = [layer.detach().float().cpu().sort().values for layer in layers]
    return Sorted(unit, layers, torch.cat(layers).sort().values)


def _drawn(ascending: Tensor) -> list[float]:
    count = min(DRAWN, len(ascending))
    picks = torch.linspace(len(ascending) - 1, 0, count).round().long()
    return ascending[picks].tolist()


def settling_view(plans: Mapping[int, SlicePlan], all_sequences: int) -> SettlingView:
    """How far plans after so many sequences are from the last of them."""
    ratios = torch.tensor(
        [[(layer.attention_ratio, layer.mlp_ratio) for layer in plan.layers] for plan in plans.values()]
    )
    distances = (ratios - ratios[-1]).abs()  # (plans, layers, modules)
    attention, mlp = distances.mean(1).T.tolist()
    return SettlingView(tuple(plans), attention, mlp, distances.flatten(1).amax(1).tolist(), all_sequences)
