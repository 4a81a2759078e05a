"""Measures what the page shows before the default model is loaded: `python -m components.make_snapshots`.

Writes four files in `assets/`: the snapshot of the estimator's profile (`state/snapshots/plan.py`), spectra and
activation shifts (`state/snapshots/diagnostics.py`), each module's measured sensitivity
(`estimator/measure.py`), and the perplexity at every percentage of sparsity
(`state/snapshots/measurements.py`). Three of them take less than an hour; the last takes four, and continues where it
stopped: delete the file to measure everything again. `assets/weights.json` has the digests of the weights that all of
them belong to.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from intraslice.core.config import SliceConfig
from intraslice.evaluation.perplexity import DenseStates, Losses, measure_losses
from intraslice.evaluation.speed import SpeedConfig, measure_speed
from intraslice.loading import load_model
from intraslice.methods.registry import plan_by, slice_by
from intraslice.pretrained.sources import DEFAULT

from .activations.measure import ShiftViews
from .activations.views import Histogram, PlaceShift, ShiftView
from .estimator import measure as estimator_check
from .spectra.measure import CalibratedSpectra
from .state.calibrations import Calibrated
from .state.choices import ESTIMATORS, PRECISIONS
from .state.request import WEIGHTS_FILE, Request, parse, stored_weights
from .state.session import Session
from .state.settings import Settings
from .state.snapshots import diagnostics as diagnostics_file
from .state.snapshots import measurements
from .state.snapshots import plan as snapshot
from .state.snapshots.diagnostics import BYTE, FILE, FULL, MOMENTS, NUMBERS, WIDE

REMADE = (snapshot.FILE, diagnostics_file.FILE, estimator_check.FILE)
FILES = {file.stem: file for file in (*REMADE, measurements.FILE)}
# The page's default order first. The coarsest steps first, in percentage points; sequential slices take longer.
STEPS = {"one-shot": (10, 5, 1), "sequential": (10, 5)}
MAX_PERCENT = 60  # as on the slider
SPEED = SpeedConfig(prompt=256, new=16, repeats=9)
SPEED_STEP = 5  # percentage points: between neighbours the speed changes by less than its noise


def save(label: str, arrays: dict[str, np.ndarray], about: dict[str, Any], view: ShiftView, path: Path = FILE) -> None:
    """Write the results of `gather` and a measurement of shifts, with a label that says what they were measured on."""
    methods, places = list(view.methods), list(next(iter(view.methods.values())).places)
    first = view.methods[methods[0]]

    def by_method(read: Callable[[PlaceShift], Any]) -> np.ndarray:
        """Values that `read` takes from each shift (methods, places, layers, ...)."""
        return np.array(
            [[[read(shift) for shift in view.methods[name].places[place]] for place in places] for name in methods]
        )

    def with_dense(read: Callable[[Histogram], Any]) -> np.ndarray:
        """Values that `read` takes from each histogram (1 + methods, places, layers, ...), the dense model's first."""
        dense = np.array([[read(histogram) for histogram in first.dense[place]] for place in places])
        return np.concatenate([dense[None], by_method(lambda shift: read(shift.histogram))])

    def moments(histogram: Histogram) -> list[float]:
        return [getattr(histogram, name) for name in MOMENTS]

    densities = with_dense(lambda histogram: histogram.density)
    peaks = densities.max(-1)
    content: dict[str, Any] = {
        **arrays,
        "shifts": by_method(lambda shift: [getattr(shift, name) for name in NUMBERS]).astype(np.float32),
        "moments": with_dense(moments).astype(np.float32),
        "densities": np.round(densities / peaks[..., None] * BYTE).astype(np.uint8),
        "peaks": peaks.astype(np.float32),
        "about": json.dumps(
            {
                **about,
                "label": label,
                "shift": {
                    "asked": view.target_sparsity,
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
    }
    np.savez_compressed(path, **content)


def gather(measured: CalibratedSpectra, calibrated: Calibrated) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The spectra as arrays, and the sizes of the model, for `save`."""
    stats = calibrated.stats
    layers = range(len(stats.layers))
    for layer in layers:
        measured.complete(layer)
    curves = [measured.curves(layer) for layer in layers]
    groups: dict[str, list[Any]] = {
        "heads": [layer.heads for layer in curves],
        "groups": [layer.groups for layer in curves],
        "wide": [[getattr(layer, name) for name in WIDE] for layer in curves],
    }
    arrays: dict[str, Any] = {}
    for name, parts in groups.items():
        # Curves are padded to the longest; the padding is never read.
        longest = max(len(curve.explained) for curve in parts[0])
        padded = [[[*curve.explained, *[1.0] * (longest - len(curve.explained))] for curve in part] for part in parts]
        arrays[name] = np.round(np.array(padded) * FULL).astype(np.uint16)
        arrays[f"{name}_enough"] = np.array(
            [[curve.effective_rank for curve in part] for part in parts], dtype=np.int16
        )
    for name, values in (
        ("pairs", [layer.channel_products / stats.tokens for layer in stats.layers]),
        ("felt", [layer.query_fisher for layer in stats.layers]),
    ):
        by_pair = torch.stack(values).unflatten(-1, (2, -1)).sum(-2)
        arrays[name] = by_pair.float().cpu().numpy()
    arrays["angles"] = calibrated.loaded.model.model.rotary_emb.inv_freq.cpu().numpy()
    arrays["widths"] = np.array([measured.width(percent / 100) or 0 for percent in range(61)], dtype=np.int16)
    return arrays, {"sizes": [curve.size for curve in groups["wide"][0]], "kv_head": list(stats.kv_heads[0])}


@contextmanager
def hidden_files(*files: Path) -> Iterator[None]:
    """Hide the files within the context, and restore those that have not been written anew."""
    backups = {file: file.with_suffix(".before") for file in files if file.is_file()}
    for file, backup in backups.items():
        file.replace(backup)
    try:
        yield
    finally:
        for file, backup in backups.items():
            if file.is_file():
                backup.unlink()
            else:
                backup.replace(file)


def measure_percentages(calibrated: Calibrated, request: Request, path: Path = measurements.FILE) -> None:
    """Measure the settings of `STEPS` that the file lacks, and write the file after each."""
    dense, key = calibrated.loaded.model, request.calibration
    windows, window = calibrated.windows.shape
    states = DenseStates(dense)
    dense_losses = measure_losses(dense, calibrated.windows, dense=states, progress=False)
    if path.is_file():
        record = measurements.read(path)
    else:
        about = {"label": snapshot.label(), "dtype": key.dtype, "tokens": windows * window, "window": window}
        command = "python -m components.make_snapshots --only measured"
        record = about | {"command": command, "dense": dense_losses.perplexity(), "series": []}
    lines = {(part["estimator"], part["order"]): part["lines"] for part in record["series"]}
    rounds = [(order, step) for order, steps in STEPS.items() for step in steps]
    for (order, step), estimator in product(rounds, ESTIMATORS):
        if (estimator, order) not in lines:
            record["series"].append({"estimator": estimator, "order": order, "lines": []})
            lines[estimator, order] = record["series"][-1]["lines"]
        measured = {line[0] for line in lines[estimator, order]}
        for percent in sorted({*range(step, MAX_PERCENT + 1, step)} - measured):
            config = replace(request.slicing, sparsity=percent / 100, estimator=estimator, order=order)
            lines[estimator, order].append(measure_percentage(calibrated, config, dense_losses, states))
            measurements.write(record, path)
            print(estimator, order, *lines[estimator, order][-1], flush=True)


def measure_percentage(
    calibrated: Calibrated, config: SliceConfig, dense_losses: Losses, states: DenseStates
) -> measurements.Columns:
    """A line of `assets/measured.json`, without speeds."""
    losses = measure_losses(slice_by_ratios(calibrated, config), calibrated.windows, dense=states, progress=False)
    divergence = losses.divergence()
    assert divergence is not None  # `states` is given
    numbers = (*losses.perplexity(), *losses.ratio(dense_losses), *divergence)
    return measurements.Columns(round(100 * config.sparsity), *numbers)  # type: ignore[arg-type]


def measure_speeds(calibrated: Calibrated, request: Request, path: Path = measurements.FILE) -> None:
    """Add the speeds that the file lacks, on an otherwise idle machine. They depend on the sizes, not on the order."""
    dense, record = calibrated.loaded.model, measurements.read(path) | {"threads": torch.get_num_threads()}
    for estimator in ESTIMATORS:
        lines = [line for part in record["series"] if part["estimator"] == estimator for line in part["lines"]]
        missing = {percent for percent, *_, decode in lines if decode is None and percent % SPEED_STEP == 0}
        for percent in sorted(missing):
            sliced = slice_by_ratios(calibrated, replace(request.slicing, sparsity=percent / 100, estimator=estimator))
            speeds = measure_speed({"dense": dense, "sliced": sliced}, SPEED, progress=False)
            ratios = [getattr(speeds["sliced"], way) / getattr(speeds["dense"], way) for way in ("prefill", "decode")]
            for line in lines:
                if line[0] == percent:
                    line[-2:] = ratios
            measurements.write(record, path)
            print(estimator, percent, *ratios, flush=True)


def slice_by_ratios(calibrated: Calibrated, config: SliceConfig) -> PreTrainedModel:
    """The model sliced by the page's method."""
    dense, texts = calibrated.loaded.model, (calibrated.stats, calibrated.tokens, calibrated.training)
    plan = plan_by("intraslice", dense, calibrated.stats, config)
    return slice_by("intraslice", dense, plan, *texts, progress=False)


def main() -> None:
    """Measure the default model at the default setting, and write all files or those given."""
    parser = argparse.ArgumentParser(prog="python -m components.make_snapshots", description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(FILES), choices=FILES, help="files to write; default: all")
    names = parser.parse_args().only
    weights = {dtype: load_model(DEFAULT, dtype, progress=False).weights_digest for dtype in PRECISIONS}
    if names == list(FILES):
        WEIGHTS_FILE.write_text(json.dumps(weights, indent=1) + "\n", encoding="utf-8")
    elif set(weights.values()) != stored_weights():
        parser.error("the files of --only would be of other weights than the rest; measure all, without --only")
    if "measured" in names:
        session, request = Session(), parse(Settings(dtype="bfloat16"))
        list(session.prepare(request, "snapshot"))
        measure_percentages(session.calibrated(request), request)
        measure_speeds(session.calibrated(request), request)
    if names == ["measured"]:
        return
    with hidden_files(*(file for file in REMADE if file.stem in names)):  # old files may have another format
        session, request = Session(), parse(Settings(dtype="float32"))
        for event in session.prepare(request, "snapshot"):
            print(event.text, event.done, event.total)
        calibrated = session.calibrated(request)
        if "sensitivity" in names:
            estimator_check.save(estimator_check.long_measurement(calibrated))
        if "snapshot" in names:
            snapshot.save(calibrated.source.profile, snapshot.label())
        if "diagnostics" in names:
            shifts = ShiftViews(session)
            for event in shifts.measure(request, "snapshot"):
                print(event.text, event.done, event.total)
            arrays, about = gather(CalibratedSpectra(calibrated), calibrated)
            view = shifts.view(request, "snapshot")
            assert view is not None  # measured just now
            save(snapshot.label(), arrays, about, view)


if __name__ == "__main__":
    main()
