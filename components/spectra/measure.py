"""Spectra of a calibration: each curve is computed once, the kept ranks on it at every move of the slider.

Before the default model is calibrated, everything is precomputed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from intraslice.core.linalg import by_kv_head
from intraslice.diagnostics.spectra import LayerSpectra, effective_rank, pair_energies
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.attention import kept_channels

from ..state.caches import BoundedCache
from ..state.calibrations import Calibrated
from ..state.precomputed import SPECTRA
from ..state.request import CalibrationKey, Request
from ..state.session import Session
from ..state.settings import MAX_PERCENT
from ..state.units import nearest_plan
from ..state.views import HERE, Provenance
from .views import Curve, LayerCurves, PairsView, SpectraView, curve_ranks

EXPLAINED = 0.95  # fraction of the variance that defines the effective rank


class CalibratedSpectra:
    """Spectra of a calibrated model."""

    def __init__(self, calibrated: Calibrated) -> None:
        self._model, self._stats = calibrated.loaded.model, calibrated.stats
        self._curves: dict[int, LayerCurves] = {}
        self._widths: dict[float, int | None] = {}

    def curves(self, layer: int) -> LayerCurves:
        """The curves of a layer; without the wide ones until `complete` has computed them."""
        if layer not in self._curves:
            spectra = LayerSpectra(self._stats, layer)
            heads, groups = (tuple(map(curve, part)) for part in (spectra.heads, spectra.groups))
            self._curves[layer] = LayerCurves(heads, groups)
        return self._curves[layer]

    def complete(self, layer: int) -> None:
        """Compute the layer's wide curves too, which takes seconds for a wide model."""
        narrow = self.curves(layer)
        if narrow.mlp is None:
            spectra = LayerSpectra(self._stats, layer)
            wide = (curve(part) for part in (spectra.mlp, spectra.residual, spectra.directions))
            self._curves[layer] = LayerCurves(narrow.heads, narrow.groups, *wide)

    @cached_property
    def ranks(self) -> list[list[int]]:
        """By layer and head, the number of axes that explain 95 % of the head's output."""
        layers = range(len(self._stats.layers))
        return [effective_rank(LayerSpectra(self._stats, layer).heads, EXPLAINED).tolist() for layer in layers]

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


@dataclass(frozen=True)
class PrecomputedSpectra:
    """The spectra of all layers as `make_snapshots.py` stores them; methods as `CalibratedSpectra` has them."""

    layers: tuple[LayerCurves, ...]
    energies: Sequence[Sequence[Sequence[float]]]  # by layer, query head and rotary pair
    sensitivities: Sequence[Sequence[Sequence[float]]]  # of the loss to the queries, likewise
    kv_head: tuple[int, ...]  # of each query head
    angles: tuple[float, ...]  # rotation of each pair per token, in radians
    widths: tuple[int, ...]  # by per cent of sparsity; 0 where it is unreachable

    def curves(self, layer: int) -> LayerCurves:
        """All curves of a layer."""
        return self.layers[layer]

    def complete(self, layer: int) -> None:
        """Do nothing: all curves are there."""

    @property
    def ranks(self) -> list[list[int]]:
        """By layer and head, the number of axes that explain 95 % of the head's output."""
        return [[curve.effective_rank for curve in layer.heads] for layer in self.layers]

    def pairs(self, layer: int, plan: LayerPlan) -> PairsView:
        """The layer's rotary pairs, and which of them the plan keeps."""
        kv_head, pairs = torch.tensor(self.kv_head), len(self.angles)
        energy = by_kv_head(torch.tensor(self.energies[layer], dtype=torch.float64), kv_head)
        frequency = torch.arange(pairs).expand(int(kv_head.max()) + 1, -1)  # all channels are rotated
        scores = torch.tensor(self.sensitivities[layer]).repeat(1, 2) / 2  # of each channel half of its pair's
        kept = kept_channels(scores, (kv_head, frequency), plan.heads, plan.dim)
        return PairsView(energy.tolist(), kept.unflatten(1, (2, -1)).all(1).tolist(), self.angles)

    def width(self, sparsity: float) -> int | None:
        """Residual axes that the cross-module method keeps at equal parameters; known for whole per cents."""
        percent = round(100 * sparsity)
        is_known = percent < len(self.widths) and abs(100 * sparsity - percent) < 1e-6
        return self.widths[percent] or None if is_known else None


def curve(spectrum: Tensor) -> Curve:
    """A cumulative spectrum (n) at the ranks of the curve."""
    size = len(spectrum)
    ranks = curve_ranks(size)
    explained = spectrum.double().clamp(0, 1)[[rank - 1 for rank in ranks]].tolist()
    return Curve(size, ranks, explained, int(effective_rank(spectrum, EXPLAINED)))


class SpectraViews:
    """Views of all calibrated models, and of precomputed ones."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._spectra: BoundedCache[CalibrationKey, tuple[Calibrated, CalibratedSpectra]] = BoundedCache(4)

    def view(self, request: Request, layer: int) -> SpectraView | None:
        """The curves computed so far, in milliseconds; None for a model that is not calibrated yet.

        Raises UserError for an impossible setting.
        """
        source, provenance = self._source(request)
        if source is None:
            return None
        plan = self._session.slice_plan(request)
        layer = min(int(layer), len(plan.layers) - 1)
        curves = source.curves(layer)
        return SpectraView(
            layer=layer,
            curves=curves,
            pairs=source.pairs(layer, plan.layers[layer]),
            dim=curves.heads[0].size,
            ranks=source.ranks,
            heads=[layer_plan.heads for layer_plan in plan.layers],
            dims=[layer_plan.dim for layer_plan in plan.layers],
            neurons=plan.layers[layer].neurons,
            width=source.width(round(request.slicing.sparsity, 4)),
            source=provenance,
        )

    def complete(self, request: Request, layer: int) -> None:
        """Compute the wide curves of a layer, which takes seconds; later views include them."""
        source, _ = self._source(request)
        if source is not None:
            source.complete(min(int(layer), len(source.ranks) - 1))

    def _source(self, request: Request) -> tuple[CalibratedSpectra | PrecomputedSpectra | None, Provenance]:
        key = request.calibration
        calibrated = self._session.calibrations.whole(key)
        if calibrated is None:
            found = self._session.precomputed.find(SPECTRA, key, PrecomputedSpectra)
            return (found.value, found.source) if found else (None, HERE)
        cached = self._spectra.get(key)
        if cached is None or cached[0] is not calibrated:
            cached = self._spectra.put(key, (calibrated, CalibratedSpectra(calibrated)))
        return cached[1], HERE


def precomputed_spectra(calibrated: Calibrated) -> PrecomputedSpectra:
    """The spectra of all layers, to store them."""
    measured, stats = CalibratedSpectra(calibrated), calibrated.stats
    layers = range(len(stats.layers))
    for layer in layers:
        measured.complete(layer)
    values = {
        "energies": [layer.channel_products / stats.tokens for layer in stats.layers],
        "sensitivities": [layer.query_fisher for layer in stats.layers],
    }
    by_pair = {name: torch.stack(parts).unflatten(-1, (2, -1)).sum(-2).tolist() for name, parts in values.items()}
    return PrecomputedSpectra(
        layers=tuple(measured.curves(layer) for layer in layers),
        **by_pair,
        kv_head=tuple(stats.kv_heads[0]),
        angles=tuple(calibrated.loaded.model.model.rotary_emb.inv_freq.tolist()),
        widths=tuple(measured.width(percent / 100) or 0 for percent in range(MAX_PERCENT + 1)),
    )
