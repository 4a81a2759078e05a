"""Spectra of a calibration as the page shows them: each curve found once, the marks on it at every move of the slider.

Before the default model is loaded, everything comes from the snapshot (`snapshot.py`).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from components.spectra import snapshot
from components.spectra.views import Curve, LayerCurves, PairsView, SpectraView, drawn_ranks
from components.state.caches import BoundedCache
from components.state.calibrations import Calibrated
from components.state.crossmodule import nearest_plan
from components.state.request import CalibrationKey, Request
from components.state.session import Session
from intraslice.diagnostics.spectra import LayerSpectra, effective_rank, head_ranks, layer_spectra, pair_energies
from intraslice.planning.ratios import LayerPlan

SHARE = 0.95


class Spectra(Protocol):
    """Where one model's spectra come from: its calibration, or the snapshot."""

    label: str

    def curves(self, layer: int) -> LayerCurves: ...

    def complete(self, layer: int) -> None: ...

    def ranks(self) -> list[list[int]]: ...

    def pairs(self, layer: int, plan: LayerPlan) -> PairsView: ...

    def width(self, sparsity: float) -> int | None: ...


class CalibratedSpectra:
    """Spectra of a calibration that is there."""

    label = ""

    def __init__(self, calibrated: Calibrated) -> None:
        self._model, self._stats = calibrated.loaded.model, calibrated.stats
        self._spectra: dict[int, LayerSpectra] = {}
        self._curves: dict[int, LayerCurves] = {}
        self._widths: dict[float, int | None] = {}
        self._ranks: list[list[int]] | None = None

    def curves(self, layer: int) -> LayerCurves:
        """What is known of a layer; the narrow curves at least."""
        if layer not in self._curves:
            spectra = layer_spectra(self._stats, layer)
            heads, groups = (tuple(map(curve, part)) for part in (spectra.heads, spectra.groups))
            self._curves[layer] = LayerCurves(heads, groups)
        return self._curves[layer]

    def complete(self, layer: int) -> None:
        """Find the layer's wide curves too: seconds for a wide model."""
        known = self.curves(layer)
        if known.mlp is None:
            spectra = layer_spectra(self._stats, layer)
            wide = (curve(part) for part in (spectra.mlp, spectra.residual, spectra.directions))
            self._curves[layer] = LayerCurves(known.heads, known.groups, *wide)

    def ranks(self) -> list[list[int]]:
        """By layer and head, how many axes hold 95 % of the head's output."""
        if self._ranks is None:
            self._ranks = head_ranks(self._stats, SHARE)
        return self._ranks

    def pairs(self, layer: int, plan: LayerPlan) -> PairsView:
        """The layer's rotary pairs, and which of them the plan keeps."""
        found = pair_energies(self._model, self._stats, layer, plan)
        order = found.angle.argsort(descending=True)
        kept = found.unrotated_kept[sorted({self._stats.kv_heads[layer][head] for head in plan.heads})]
        return PairsView(
            found.energy[:, order].tolist(),
            found.kept[:, order].tolist(),
            found.angle[order].tolist(),
            (int(kept.sum(-1).max()), kept.shape[-1]) if kept.numel() else (0, 0),
        )

    def width(self, sparsity: float) -> int | None:
        """Residual axes that the cross-module method keeps to remove as much, where it can."""
        if sparsity not in self._widths:
            plan, near = nearest_plan(self._model, sparsity)
            self._widths[sparsity] = plan.width if sparsity > 0 and near else None
        return self._widths[sparsity]


def curve(explained: Tensor) -> Curve:
    """A cumulated spectrum (n) at the ranks that are drawn."""
    size = len(explained)
    ranks = drawn_ranks(size)
    shares = explained.double().clamp(0, 1)[[rank - 1 for rank in ranks]].tolist()
    return Curve(size, ranks, shares, int(effective_rank(explained, SHARE)))


class SpectraViews:
    """Views of every model that is calibrated, and of the snapshot."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._known: BoundedCache[CalibrationKey, tuple[Calibrated, CalibratedSpectra]] = BoundedCache(4)
        self._kept = snapshot.spectra()

    def view(self, request: Request, layer: int) -> SpectraView | None:
        """What is known, in milliseconds; None for a model that is not calibrated yet.

        Raises UserError where this model cannot be sliced so.
        """
        source = self._source(request)
        if source is None:
            return None
        plan = self._session.slice_plan(request)
        layer = min(int(layer), len(plan.layers) - 1)
        ranks, curves = source.ranks(), source.curves(layer)
        return SpectraView(
            layer=layer,
            curves=curves,
            pairs=source.pairs(layer, plan.layers[layer]),
            dim=curves.heads[0].size,
            ranks=ranks,
            heads=[kept.heads for kept in plan.layers],
            dims=[kept.dim for kept in plan.layers],
            neurons=plan.layers[layer].neurons,
            width=source.width(round(request.slicing.sparsity, 4)),
            snapshot=source.label,
        )

    def complete(self, request: Request, layer: int) -> None:
        """Find what takes seconds of a layer, so that later views have it."""
        if (source := self._source(request)) is not None:
            source.complete(min(int(layer), len(source.ranks()) - 1))

    def _source(self, request: Request) -> Spectra | None:
        key = request.calibration
        if not self._session.is_calibrated(request):
            return self._kept if request.is_default_calibration else None
        calibrated = self._session.calibrated(request)
        known = self._known.get(key)
        if known is None or known[0] is not calibrated:
            known = self._known.put(key, (calibrated, CalibratedSpectra(calibrated)))
        return known[1]
