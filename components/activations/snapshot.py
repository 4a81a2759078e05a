"""What the Activations tab shows before the default model is loaded."""

from __future__ import annotations

from pathlib import Path

from components.activations.views import Histogram, MethodShift, PlaceShift, ShiftView
from components.session.diagnostics_file import BYTE, FILE, load


def shift(path: Path = FILE) -> ShiftView | None:
    """The snapshot's shifts, where there is a snapshot."""
    if not path.is_file():
        return None
    kept, about = load(path)
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
