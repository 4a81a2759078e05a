"""The content of the Activations tab before the default model is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..state.snapshots.diagnostics import BYTE, FILE, load
from ..state.snapshots.plan import translatable_label
from .views import Histogram, MethodShift, PlaceShift, ShiftView


def shift(path: Path = FILE) -> ShiftView | None:
    """The snapshot's shifts, or None without a snapshot."""
    if not path.is_file():
        return None
    arrays, about = load(path)
    view = about["shift"]

    def histograms(method: int, place: int) -> list[Histogram]:
        edges, moments = np.split(arrays["moments"][method, place], [2], axis=-1)
        densities = arrays["densities"][method, place] * (arrays["peaks"][method, place][:, None] / BYTE)
        rows = zip(edges.tolist(), densities.tolist(), moments.tolist(), strict=True)
        return [Histogram(low, high, density, *values) for (low, high), density, values in rows]

    dense = {place: histograms(0, index) for index, place in enumerate(view["places"])}
    methods = {
        name: MethodShift(
            view["removed"][number],
            {
                place: [
                    PlaceShift(error, massive_error, cosine, massive_cosine, distance, histogram)
                    for (error, massive_error, cosine, massive_cosine, distance), histogram in zip(
                        arrays["shifts"][number, index].tolist(), histograms(number + 1, index), strict=True
                    )
                ]
                for index, place in enumerate(view["places"])
            },
            dense,
        )
        for number, name in enumerate(view["methods"])
    }
    return ShiftView(
        view["asked"],
        methods,
        view["tokens"],
        view["window"],
        view["massive"],
        view["text"],
        snapshot=translatable_label(about["label"]),
    )
