"""Spectra of a calibration, or precomputed: curves are computed once, the kept ranks at every move of the slider."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.linalg import by_kv_head
from intraslice.core.weights import UNROTATED
from intraslice.diagnostics.spectra import LayerSpectra, effective_rank, pair_energies
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.units import LayerUnits, kept_units

from ..state.caches import BoundedCache
from ..state.calibrations import Calibrated
from ..state.precomputed import SPECTRA
from ..state.request import CalibrationKey, Request
from ..state.session import Session
from ..state.units import TOLERANCE
from ..state.views import HERE, Provenance
from .views import Curve, LayerCurves, PairsView, SpectraView, curve_ranks

EXPLAINED = 0.95  # fraction of the variance that defines the effective rank


class CalibratedSpectra:
    """Spectra of a calibrated model."""

    def __init__(self, calibrated: Calibrated) -> None:
        self._model, self._stats = calibrated.loaded.model, calibrated.stats
        self._curves: dict[int, LayerCurves] = {}

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

    def pair_energies(self, layer: int) -> tuple[Float[Tensor, "kv_heads pairs"], Float[Tensor, " pairs"]]:
        """The energies of the layer's rotary pairs, and the rotation of each pair per token, in radians."""
        pairs = pair_energies(self._model, self._stats, layer, None)
        return pairs.energy, pairs.angle


@dataclass(frozen=True)
class PrecomputedSpectra:
    """The spectra of all layers as `make_snapshots.py` stores them; methods as `CalibratedSpectra` has them."""

    layers: tuple[LayerCurves, ...]
    energies: Sequence[Sequence[Sequence[float]]]  # by layer, query head and rotary pair
    kv_head: tuple[int, ...]  # of each query head
    angles: tuple[float, ...]  # rotation of each pair per token, in radians

    def curves(self, layer: int) -> LayerCurves:
        """All curves of a layer."""
        return self.layers[layer]

    def complete(self, layer: int) -> None:
        """Do nothing: all curves are there."""

    @property
    def ranks(self) -> list[list[int]]:
        """By layer and head, the number of axes that explain 95 % of the head's output."""
        return [[curve.effective_rank for curve in layer.heads] for layer in self.layers]

    def pair_energies(self, layer: int) -> tuple[Float[Tensor, "kv_heads pairs"], Float[Tensor, " pairs"]]:
        """The energies of the layer's rotary pairs, and the rotation of each pair per token, in radians."""
        energies, angles = (torch.tensor(values, dtype=torch.float64) for values in (self.energies[layer], self.angles))
        return by_kv_head(energies, torch.tensor(self.kv_head)), angles


def pairs_view(energy: Tensor, angles: Tensor, units: LayerUnits, plan: LayerPlan) -> PairsView:
    """A layer's rotary pairs, fastest first, and which of them the plan keeps."""
    kept, order = kept_units(units, plan)[0].unflatten(-1, (2, -1)), angles.argsort(descending=True)
    rotated, groups = units.frequency[0] != UNROTATED, sorted({int(units.kv_head[head]) for head in plan.heads})
    unrotated = kept[groups][..., ~rotated].flatten(1)
    return PairsView(
        energy[:, order].tolist(),
        kept.all(1)[:, rotated][:, order].tolist(),
        angles[order].tolist(),
        (int(unrotated.sum(-1).max()), unrotated.shape[-1]) if unrotated.numel() else (0, 0),
    )


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
        """The curves computed so far; None without a calibration. Raises UserError as `Plans.plan` does."""
        spectra, provenance = self._spectra_of(request)
        source = self._session.source(request)
        if spectra is None or source is None or (units := source.units) is None:
            return None
        plan, sparsity = self._session.plans.plan(source, request.slicing), request.slicing.sparsity
        cross, layer = units.width(sparsity), min(int(layer), len(plan.layers) - 1)
        curves = spectra.curves(layer)
        return SpectraView(
            layer=layer,
            curves=curves,
            pairs=pairs_view(*spectra.pair_energies(layer), units.layers[layer], plan.layers[layer]),
            dim=curves.heads[0].size,
            ranks=spectra.ranks,
            heads=[layer_plan.heads for layer_plan in plan.layers],
            dims=[layer_plan.dim for layer_plan in plan.layers],
            neurons=plan.layers[layer].neurons,
            width=cross.width if cross and sparsity and abs(cross.removed - sparsity) <= TOLERANCE else None,
            source=provenance,
        )

    def complete(self, request: Request, layer: int) -> None:
        """Compute the wide curves of a layer, which takes seconds; later views include them."""
        spectra, _ = self._spectra_of(request)
        if spectra is not None:
            spectra.complete(min(int(layer), len(spectra.ranks) - 1))

    def _spectra_of(self, request: Request) -> tuple[CalibratedSpectra | PrecomputedSpectra | None, Provenance]:
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
    energies = torch.stack([layer.channel_products for layer in stats.layers]) / stats.tokens
    return PrecomputedSpectra(
        layers=tuple(measured.curves(layer) for layer in layers),
        energies=energies.unflatten(-1, (2, -1)).sum(-2).tolist(),
        kv_head=tuple(stats.kv_heads[0]),
        angles=tuple(calibrated.loaded.model.model.rotary_emb.inv_freq.tolist()),
    )
