"""Spectra of a calibration: each curve is computed once, the kept ranks on it at every move of the slider.

Before the default model is loaded, everything comes from the snapshot (`snapshot.py`).
"""

from __future__ import annotations

from torch import Tensor

from intraslice.diagnostics.spectra import effective_rank, head_ranks, layer_spectra, pair_energies
from intraslice.planning.ratios import LayerPlan

from ..state.caches import BoundedCache
from ..state.calibrations import Calibrated
from ..state.crossmodule import nearest_plan
from ..state.request import CalibrationKey, Request
from ..state.session import Session
from . import snapshot
from .views import Curve, LayerCurves, PairsView, SpectraView, curve_ranks

EXPLAINED = 0.95  # fraction of the variance that defines the effective rank


class CalibratedSpectra:
    """Spectra of a calibrated model."""

    label = ""

    def __init__(self, calibrated: Calibrated) -> None:
        self._model, self._stats = calibrated.loaded.model, calibrated.stats
        self._curves: dict[int, LayerCurves] = {}
        self._widths: dict[float, int | None] = {}
        self._ranks = head_ranks(self._stats, EXPLAINED)

    def curves(self, layer: int) -> LayerCurves:
        """The curves of a layer; without the wide ones until `complete` has computed them."""
        if layer not in self._curves:
            spectra = layer_spectra(self._stats, layer)
            heads, groups = (tuple(map(curve, part)) for part in (spectra.heads, spectra.groups))
            self._curves[layer] = LayerCurves(heads, groups)
        return self._curves[layer]

    def complete(self, layer: int) -> None:
        """Compute the layer's wide curves too, which takes seconds for a wide model."""
        narrow = self.curves(layer)
        if narrow.mlp is None:
            spectra = layer_spectra(self._stats, layer)
            wide = (curve(part) for part in (spectra.mlp, spectra.residual, spectra.directions))
            self._curves[layer] = LayerCurves(narrow.heads, narrow.groups, *wide)

    def ranks(self) -> list[list[int]]:
        """By layer and head, the number of axes that explain 95 % of the head's output."""
        return self._ranks

    def pairs(self, layer: int, plan: LayerPlan) -> PairsView:
        """The layer's rotary pairs, and which of them the plan keeps."""
        pairs = pair_energies(self._model, self._stats, layer, plan)
        order = pairs.angle.argsort(descending=True)
        unrotated = pairs.unrotated_kept[sorted({self._stats.kv_heads[layer][head] for head in plan.heads})]
        return PairsView(
            pairs.energy[:, order].tolist(),
            pairs.kept[:, order].tolist(),
            pairs.angle[order].tolist(),
            (int(unrotated.sum(-1).max()), unrotated.shape[-1]) if unrotated.numel() else (0, 0),
        )

    def width(self, sparsity: float) -> int | None:
        """Residual axes that the cross-module method keeps at equal parameters; None if the sparsity is unreachable."""
        if sparsity not in self._widths:
            plan, is_close = nearest_plan(self._model, sparsity)
            self._widths[sparsity] = plan.width if sparsity > 0 and is_close else None
        return self._widths[sparsity]


def curve(spectrum: Tensor) -> Curve:
    """A cumulative spectrum (n) at the ranks of the curve."""
    size = len(spectrum)
    ranks = curve_ranks(size)
    explained = spectrum.double().clamp(0, 1)[[rank - 1 for rank in ranks]].tolist()
    return Curve(size, ranks, explained, int(effective_rank(spectrum, EXPLAINED)))


class SpectraViews:
    """Views of all calibrated models, and of the snapshot."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._spectra: BoundedCache[CalibrationKey, tuple[Calibrated, CalibratedSpectra]] = BoundedCache(4)
        self._snapshot = snapshot.spectra()

    def view(self, request: Request, layer: int) -> SpectraView | None:
        """The curves computed so far, in milliseconds; None for a model that is not calibrated yet.

        Raises UserError for an impossible setting.
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
            heads=[layer_plan.heads for layer_plan in plan.layers],
            dims=[layer_plan.dim for layer_plan in plan.layers],
            neurons=plan.layers[layer].neurons,
            width=source.width(round(request.slicing.sparsity, 4)),
            snapshot=source.label,
        )

    def complete(self, request: Request, layer: int) -> None:
        """Compute the wide curves of a layer, which takes seconds; later views include them."""
        if (source := self._source(request)) is not None:
            source.complete(min(int(layer), len(source.ranks()) - 1))

    def _source(self, request: Request) -> CalibratedSpectra | snapshot.SnapshotSpectra | None:
        key = request.calibration
        if not self._session.is_calibrated(request):
            return self._snapshot if request.is_default_calibration else None
        calibrated = self._session.calibrated(request)
        cached = self._spectra.get(key)
        if cached is None or cached[0] is not calibrated:
            cached = self._spectra.put(key, (calibrated, CalibratedSpectra(calibrated)))
        return cached[1]
