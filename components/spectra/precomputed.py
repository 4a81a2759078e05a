"""The content of the Spectra tab before the default model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..state.snapshots.diagnostics import FILE, FULL, load
from ..state.snapshots.plan import translatable_label
from .views import Curve, LayerCurves, PairsView, PlannedHeads, curve_ranks


class SnapshotSpectra:
    """The default model's spectra as `make_snapshots.save` wrote them; same interface as `CalibratedSpectra`."""

    def __init__(self, arrays: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        self.label = translatable_label(about["label"])
        self._arrays, self._sizes, self._kv_head = arrays, about["sizes"], np.array(about["kv_head"])

    def curves(self, layer: int) -> LayerCurves:
        """All curves of a layer."""

        def read(name: str, sizes: Sequence[int]) -> list[Curve]:
            curves, effective_ranks = self._arrays[name][layer] / FULL, self._arrays[f"{name}_enough"][layer]
            return [
                Curve(size, ranks := curve_ranks(size), explained[: len(ranks)].tolist(), int(rank))
                for size, explained, rank in zip(sizes, curves, effective_ranks, strict=True)
            ]

        heads, groups = (
            tuple(read(name, [self._arrays[name].shape[-1]] * self._arrays[name].shape[1]))
            for name in ("heads", "groups")
        )
        return LayerCurves(heads, groups, *read("wide", self._sizes))

    def complete(self, layer: int) -> None:
        """Do nothing: all curves are in the snapshot."""

    def ranks(self) -> list[list[int]]:
        """By layer and head, the number of axes that explain 95 % of the head's output."""
        return self._arrays["heads_enough"].tolist()

    def pairs(self, layer: int, plan: PlannedHeads) -> PairsView:
        """The layer's rotary pairs. Kept are the `plan.dim` channels per key head that affect the loss most."""
        head_energy, sensitivity = self._arrays["pairs"][layer], self._arrays["felt"][layer]
        energy = np.stack([head_energy[self._kv_head == group].sum(0) for group in range(self._kv_head.max() + 1)])
        kept = np.zeros(energy.shape, dtype=bool)
        heads = np.array(plan.heads, dtype=int)
        for group in np.unique(self._kv_head[heads]):
            importance = sensitivity[heads[self._kv_head[heads] == group]].sum(0)
            kept[group, np.argsort(-importance, kind="stable")[: plan.dim // 2]] = True
        return PairsView(energy.tolist(), kept.tolist(), self._arrays["angles"].tolist())

    def width(self, sparsity: float) -> int | None:
        """Residual axes that the cross-module method keeps at equal parameters; stored for whole per cents."""
        percent = round(100 * sparsity)
        widths = self._arrays["widths"]
        width = int(widths[percent]) if percent < len(widths) else 0
        return width if width and abs(100 * sparsity - percent) < 1e-6 else None


def spectra(path: Path = FILE) -> SnapshotSpectra | None:
    """The snapshot's spectra, or None without a snapshot."""
    return SnapshotSpectra(*load(path)) if path.is_file() else None
