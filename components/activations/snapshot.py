"""What the Activations tab shows before the default model is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.activations.views import Histogram, MethodShift, PlaceShift, ShiftView
from components.state.snapshots.diagnostics import BYTE, FILE, load
from components.state.snapshots.plan import told


def shift(path: Path = FILE) -> ShiftView | None:
    """The snapshot's shifts, where there is a snapshot."""
    if not path.is_file():
        return None
    arrays, about = load(path)
    view = about["shift"]

    def histograms(method: int, place: int) -> list[Histogram]:
        ends, moments = np.split(arrays["moments"][method, place], [2], axis=-1)
        densities = arrays["densities"][method, place] * (arrays["peaks"][method, place][:, None] / BYTE)
        rows = zip(ends.tolist(), densities.tolist(), moments.tolist(), strict=True)
        return [Histogram(low, high, bins, *shape) for (low, high), bins, shape in rows]

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
        snapshot=told(about["label"]),
    )
