"""What the Spectra and Activations tabs show before the default model is loaded: its spectra and shifts, thinned.

Remake it with `python -m components.make_snapshots`: minutes. `snapshot.py` keeps what the estimator reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from components.session import snapshot
from components.spectra.views import (
    Curve,
    Histogram,
    LayerCurves,
    MethodShift,
    PairsView,
    PlaceShift,
    ShiftView,
    drawn_ranks,
)
from intraslice.planning.ratios import LayerPlan

if TYPE_CHECKING:  # these read the snapshot
    from components.session.session import Calibrated
    from components.spectra.measure import Measured

FILE = Path(__file__).parent.parent / "assets" / "diagnostics.npz"
WIDE = ("mlp", "residual", "directions")
NUMBERS = ("error", "massive_error", "cosine", "massive_cosine", "distance")
MOMENTS = ("low", "high", "mean", "spread", "kurtosis")
FULL, BYTE = 65535, 255  # a share of 1 and the peak of a histogram, as kept


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

    def pairs(self, layer: int, plan: LayerPlan) -> PairsView:
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
    return KeptSpectra(*_load(path)) if path.is_file() else None


def shift(path: Path = FILE) -> ShiftView | None:
    """The snapshot's shifts, where there is a snapshot."""
    if not path.is_file():
        return None
    kept, about = _load(path)
    view = about["shift"]

    def histograms(method: int, place: int) -> list[Histogram]:
        peaks, moments = kept["peaks"][method, place], kept["moments"][method, place]
        densities = kept["densities"][method, place] * (peaks[:, None] / BYTE)
        rows = zip(densities, moments, strict=True)
        return [Histogram(*own[:2].tolist(), bins.tolist(), *own[2:].tolist()) for bins, own in rows]

    dense = {place: histograms(0, index) for index, place in enumerate(view["places"])}
    methods = {
        name: MethodShift(
            view["removed"][number],
            {
                place: [
                    PlaceShift(*numbers.tolist(), histogram)
                    for numbers, histogram in zip(
                        kept["shifts"][number, index], histograms(number + 1, index), strict=True
                    )
                ]
                for index, place in enumerate(view["places"])
            },
            dense,
        )
        for number, name in enumerate(view["methods"])
    }
    return ShiftView(
        view["asked"], methods, view["tokens"], view["window"], view["massive"], view["text"], snapshot=about["label"]
    )


def save(label: str, found: dict[str, np.ndarray], about: dict[str, Any], view: ShiftView, path: Path = FILE) -> None:
    """Write what `gather` found and a measurement of shifts, with a sentence on what both were measured on."""
    methods, places = list(view.methods), list(next(iter(view.methods.values())).places)
    first = view.methods[methods[0]]

    def every(read: Any) -> np.ndarray:
        """(methods, places, layers, ...) of what `read` takes of a PlaceShift."""
        return np.array([[[read(one) for one in view.methods[m].places[p]] for p in places] for m in methods])

    def moments(histogram: Histogram) -> list[float]:
        return [getattr(histogram, name) for name in MOMENTS]

    def with_dense(read: Any) -> np.ndarray:
        dense = np.array([[read(one) for one in first.dense[place]] for place in places])
        return np.concatenate([dense[None], every(lambda one: read(one.histogram))])

    densities = with_dense(lambda histogram: histogram.density)
    peaks = densities.max(-1)
    np.savez_compressed(
        path,
        **found,
        shifts=every(lambda one: [getattr(one, name) for name in NUMBERS]).astype(np.float32),
        moments=with_dense(moments).astype(np.float32),
        densities=np.round(densities / peaks[..., None] * BYTE).astype(np.uint8),
        peaks=peaks.astype(np.float32),
        about=json.dumps(
            {
                **about,
                "label": label,
                "shift": {
                    "asked": view.asked,
                    "methods": methods,
                    "removed": [view.methods[name].removed for name in methods],
                    "places": places,
                    "tokens": view.tokens,
                    "window": view.window,
                    "massive": view.massive,
                    "text": view.text,
                },
            }
        ),
    )


def gather(measured: Measured, calibrated: Calibrated) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of `save` that hold spectra, and what else it needs to know of the model."""
    stats = calibrated.stats
    layers = range(len(stats.layers))
    for layer in layers:
        measured.complete(layer)
    curves = [measured.curves(layer) for layer in layers]
    groups = {
        "heads": [layer.heads for layer in curves],
        "groups": [layer.groups for layer in curves],
        "wide": [[getattr(layer, name) for name in WIDE] for layer in curves],
    }
    arrays = {}
    for name, parts in groups.items():
        # Of several widths the longest decides; what is past a shorter one's end is never read.
        longest = max(len(own.shares) for own in parts[0])
        shares = [[[*own.shares, *[1.0] * (longest - len(own.shares))] for own in part] for part in parts]
        arrays[name] = np.round(np.array(shares) * FULL).astype(np.uint16)
        arrays[f"{name}_enough"] = np.array([[own.enough for own in part] for part in parts], dtype=np.int16)
    for name, values in (
        ("pairs", [own.channel_products / stats.tokens for own in stats.layers]),
        ("felt", [own.query_fisher for own in stats.layers]),
    ):
        by_pair = torch.stack(values).unflatten(-1, (2, -1)).sum(-2)
        arrays[name] = by_pair.float().cpu().numpy()
    arrays["angles"] = calibrated.loaded.model.model.rotary_emb.inv_freq.cpu().numpy()
    arrays["widths"] = np.array([measured.width(percent / 100) or 0 for percent in range(61)], dtype=np.int16)
    return arrays, {"sizes": [own.size for own in groups["wide"][0]], "kv_head": list(stats.kv_heads[0])}


def _load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    with np.load(path) as kept:
        return {name: kept[name] for name in kept.files if name != "about"}, json.loads(str(kept["about"]))


def main() -> None:
    """Measure the default model at the page's first setting and write the snapshot."""
    from components.activations.measure import ShiftViews
    from components.session.session import Session
    from components.session.views import Settings
    from components.spectra.measure import Measured

    FILE.unlink(missing_ok=True)  # an older one may hold other things
    session, settings = Session(), Settings()
    shifts = ShiftViews(session)
    for event in chain(session.prepare(settings, "snapshot"), shifts.measure(settings, "snapshot")):
        print(event.text, event.done, event.total)
    calibrated = session.calibrated(settings)
    found, about = gather(Measured(calibrated), calibrated)
    save(snapshot.label(), found, about, shifts.view(settings, "snapshot"))


if __name__ == "__main__":
    main()
