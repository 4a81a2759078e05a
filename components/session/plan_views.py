"""Sorted importances of a calibration, made once and small enough to draw; and plans as the page shows them.

Belongs to `session.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from components.session.views import ImportanceCurve, LayerView, PlanView
from intraslice.planning.importance import LayerProfile, Profile
from intraslice.planning.ratios import CONTEXT, SlicePlan, flops_per_token

DRAWN = 160  # points of a curve; more cannot be told apart on a screen


@dataclass(frozen=True)
class Sorted:
    """Ascending importances of one kind of unit: of every layer, and of all together."""

    unit: str
    layers: Sequence[Tensor]
    everyone: Tensor

    def curve(self, layer: int, threshold: float | None) -> ImportanceCurve:
        """The curve of one layer beside everyone's, with the shares that lie below the threshold."""
        chosen = self.layers[layer]
        below = [0.0, 0.0]
        if threshold is not None:
            below = [int(torch.searchsorted(v, threshold)) / len(v) for v in (self.everyone, chosen)]
        return ImportanceCurve(self.unit, _drawn(self.everyone), _drawn(chosen), threshold, *below)


def sort_importances(profile: Profile) -> dict[str, Sorted]:
    """By kind: "pca" (channels), "fisher" (heads), "neurons"."""
    return {
        "pca": _sorted("principal channels", [layer.pca_channels for layer in profile.layers]),
        "fisher": _sorted("heads", [layer.fisher_heads for layer in profile.layers]),
        "neurons": _sorted("neurons", [layer.neurons for layer in profile.layers]),
    }


@dataclass(frozen=True)
class Source:
    """Where plans come from: a profile, its importances sorted once, and a label if it is no calibration of now.

    `head_weights` are those of the model's output head.
    """

    profile: Profile
    head_weights: int
    label: str = ""

    @cached_property
    def importances(self) -> dict[str, Sorted]:
        """By kind: "pca" (channels), "fisher" (heads), "neurons"."""
        return sort_importances(self.profile)


def importance_curves(importances: dict[str, Sorted], plan: SlicePlan, layer: int) -> dict[str, ImportanceCurve]:
    """What the chosen estimator saw of `layer`; the uniform one saw nothing, so no threshold is drawn for it."""
    attention = importances["fisher" if plan.config.estimator == "fisher" else "pca"]
    return {
        "attention": attention.curve(layer, plan.reasons.attention_threshold),
        "mlp": importances["neurons"].curve(layer, plan.reasons.mlp_threshold),
    }


def plan_view(plan: SlicePlan, source: Source, others: dict[str, SlicePlan]) -> PlanView:
    """A plan as plain numbers, with other estimators' ratios beside it."""
    flops_dense, flops_sliced = flops_per_token(source.profile, plan, source.head_weights)
    return PlanView(
        estimator="manual" if plan.config.locked else plan.config.estimator,
        snapshot=source.label,
        asked=plan.config.sparsity,
        removed=plan.removed_fraction,
        bias=plan.reasons.bias,
        cap=plan.config.cap,
        layers=tuple(_layer(*pair) for pair in zip(plan.layers, source.profile.layers, strict=True)),
        others={
            name: tuple((layer.attention_ratio, layer.mlp_ratio) for layer in other.layers)
            for name, other in others.items()
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
    )


def _layer(kept, dense: LayerProfile) -> LayerView:
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
