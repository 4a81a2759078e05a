"""What the Spectra tab shows before the default model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from components.session.diagnostics_file import FILE, FULL, load
from components.spectra.views import Curve, KeptChannels, LayerCurves, PairsView, drawn_ranks


class KeptSpectra:
    """The default model's spectra as `save` wrote them; answers as `spectra.Measured` does."""

    def __init__(self, kept: dict[str, np.ndarray], about: dict[str, Any]) -> None:
        self.label: str = about["label"]
        self._kept, self._sizes, self._kv_head = kept, about["sizes"], np.array(about["kv_head"])

    def curves(self, layer: int) -> LayerCurves:
        """All curves of a layer."""

        def read(name: str, sizes: Sequence[int]) -> list[Curve]:
            shares, enough = self._kept[name][layer] / FULL, self._kept[f"{name}_enough"][layer]
            return [
                Curve(size, ranks := drawn_ranks(size), own[: len(ranks)].tolist(), int(rank))
                for size, own, rank in zip(sizes, shares, enough, strict=True)
            ]

        heads, groups = (
            tuple(read(name, [self._kept[name].shape[-1]] * self._kept[name].shape[1])) for name in ("heads", "groups")
        )
        return LayerCurves(heads, groups, *read("wide", self._sizes))

    def complete(self, layer: int) -> None:
        """Nothing is left to find."""

    def ranks(self) -> list[list[int]]:
        """By layer and head, how many axes hold 95 % of the head's output."""
        return self._kept["heads_enough"].tolist()

    def pairs(self, layer: int, plan: KeptChannels) -> PairsView:
        """The layer's rotary pairs and those that the loss feels most, `plan.dim` channels a key head."""
        energy, felt = self._kept["pairs"][layer], self._kept["felt"][layer]
        whole = np.stack([energy[self._kv_head == group].sum(0) for group in range(self._kv_head.max() + 1)])
        kept = np.zeros(whole.shape, dtype=bool)
        heads = np.array(plan.heads)
        for group in np.unique(self._kv_head[heads]):
            own = felt[heads[self._kv_head[heads] == group]].sum(0)
            kept[group, np.argsort(-own, kind="stable")[: plan.dim // 2]] = True
        return PairsView(whole.tolist(), kept.tolist(), self._kept["angles"].tolist())

    def width(self, sparsity: float) -> int | None:
        """Residual axes that the cross-module method keeps to remove as much, kept for whole per cents."""
        percent = round(100 * sparsity)
        width = int(self._kept["widths"][percent]) if percent < len(self._kept["widths"]) else 0
        return width if width and abs(100 * sparsity - percent) < 1e-6 else None


def spectra(path: Path = FILE) -> KeptSpectra | None:
    """The snapshot's spectra, where there is a snapshot."""
    return KeptSpectra(*load(path)) if path.is_file() else None
