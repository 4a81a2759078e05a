"""Measures what the page shows before the default model is calibrated: `python -m components.make_snapshots`.

Writes a folder of `assets/cache/` (see `state/precomputed.py`). All kinds of results take less than an hour together,
except for the perplexities: these take four, and continue where they stopped. Delete the folder to measure them again.
"""

import argparse
import datetime
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from intraslice.core.config import EvaluationConfig, SliceConfig
from intraslice.core.errors import UserError
from intraslice.diagnostics.sensitivity import measure_sensitivity
from intraslice.evaluation.facts import fact_questions
from intraslice.evaluation.perplexity import DenseStates, Losses, measure_losses
from intraslice.evaluation.speed import SpeedConfig, measure_speed
from intraslice.loading import load_model
from intraslice.methods.registry import plan_by, slice_by
from intraslice.token_windows import evaluation_tokens

from .activations.measure import ShiftViews
from .compare.measure import FactsCache
from .compare.models import Columns, columns_of
from .estimator.measure import RATIO
from .export.measure import run_now
from .jobs.job import Job
from .spectra.measure import precomputed_spectra
from .state import precomputed
from .state.calibrations import Calibrated
from .state.choices import ESTIMATORS, PRECISIONS
from .state.estimator_choice import choose
from .state.precomputed import Entry, FactsLine, Line, Manifest, Measurements, StoredFacts
from .state.request import Request, SliceKey, parse
from .state.session import Session
from .state.settings import CONTROLS, Settings

NAME, FOLDER = "SmolLM2-135M-Instruct (Q4_1)", precomputed.FOLDER / "smollm2-135m-instruct-q4_1"
# The page's default order first. The coarsest steps first, in percentage points; sequential slices take longer.
STEPS = {"one-shot": (10, 5, 1), "sequential": (10, 5)}
MAX_PERCENT = round((CONTROLS["sparsity"].slider or (0, 0))[1])
SPEED = SpeedConfig(prompt=256, new=16, repeats=9)
LONGER_TEXT = EvaluationConfig(tokens=8192)  # of the sensitivities
SPEED_STEP = 5  # percentage points: between neighbours the speed changes by less than its noise
FACTS_STEP = 5  # percentage points


class Results:
    """The results of the default model, written one by one."""

    def __init__(self) -> None:
        weights = {dtype: load_model(Settings().model, dtype, progress=False).weights_digest for dtype in PRECISIONS}
        before = precomputed.Precomputed().manifests.get(FOLDER)
        self.manifest = before or Manifest(Settings().model, NAME, weights, parse(Settings()).calibration.config)
        if self.manifest.weights != weights:
            sys.exit(f"{FOLDER} has results of other weights; delete it")

    def write(self, kind: str, value: Any, request: Request, tokens: int) -> None:
        """Write a result that is measured today."""
        entry = Entry(datetime.date.today(), request.calibration.dtype, tokens)
        self.manifest = precomputed.write(FOLDER, self.manifest, kind, value, entry)


def measure_perplexities(results: Results, calibrated: Calibrated, request: Request) -> None:
    """Measure the settings of `STEPS` that are missing, on an idle machine; writes all after each."""
    windows, states = calibrated.windows, DenseStates(calibrated.loaded.model)
    dense = measure_losses(calibrated.loaded.model, windows, dense=states, progress=False)
    found = precomputed.Precomputed().find(precomputed.PERPLEXITY, request.calibration, Measurements)
    lines = list(found.value.lines) if found else []
    rounds = [(order, step) for order, steps in STEPS.items() for step in steps]
    for (order, step), estimator in product(rounds, ESTIMATORS):
        for percent in range(step, MAX_PERCENT + 1, step):
            if (estimator, order, percent) not in {line[:3] for line in lines}:
                config = replace(request.slicing, sparsity=percent / 100, estimator=estimator, order=order)
                lines.append(measure_line(calibrated, config, dense, states))
                measured = Measurements(windows.shape[1], dense.perplexity(), tuple(lines), torch.get_num_threads())
                results.write(precomputed.PERPLEXITY, measured, request, windows.numel())
                print(*lines[-1], flush=True)


def measure_line(calibrated: Calibrated, config: SliceConfig, dense_losses: Losses, states: DenseStates) -> Line:
    """The measurements of a setting, with speeds at multiples of `SPEED_STEP`."""
    model, stats, texts = calibrated.loaded.model, calibrated.stats, (calibrated.tokens, calibrated.training)
    plan = plan_by("intraslice", model, stats, config)
    models = {"dense": model, "sliced": slice_by("intraslice", model, plan, stats, *texts, progress=False)}
    losses = measure_losses(models["sliced"], calibrated.windows, dense=states, progress=False)
    divergence, percent = losses.divergence(), round(100 * config.sparsity)
    assert divergence is not None  # `states` is given
    numbers: Any = (*losses.perplexity(), *losses.ratio(dense_losses), *divergence)
    if percent % SPEED_STEP == 0:
        dense, sliced = measure_speed(models, SPEED, progress=False).values()
        numbers = (*numbers, sliced.prefill / dense.prefill, sliced.decode / dense.decode)
    return Line(config.estimator, config.order, percent, *numbers)


def ask_facts(session: Session, request: Request) -> StoredFacts:
    """The answers of the page's models at multiples of `FACTS_STEP`; not of those that cannot be sliced so far."""
    cache, lines = FactsCache(Columns(session)), dict[SliceKey, FactsLine]()

    def ask(job: Job) -> None:
        for percent in range(0, MAX_PERCENT + 1, FACTS_STEP):
            for column in columns_of(request.with_settings(sparsity=percent), None, "").values():
                with suppress(UserError):
                    facts, key = tuple(cache.facts(job, column, "en")), column.key()
                    lines.setdefault(key, FactsLine(key.method, percent, facts))
            print("facts", percent, flush=True)

    session.jobs.scheduler.start("snapshot", ask).join()
    return StoredFacts(fact_questions(), tuple(lines.values()))


def main() -> None:
    """Measure the default model at the default setting, and write all results or those given."""
    kinds = precomputed.KINDS
    parser = argparse.ArgumentParser(prog="python -m components.make_snapshots", description=__doc__)
    parser.add_argument("--only", nargs="+", default=kinds, choices=kinds, help="kinds of results; default: all")
    chosen, results, session = set(parser.parse_args().only), Results(), Session()

    def calibrate(request: Request) -> Calibrated:
        return run_now(session, lambda job: session.calibrations.calibrate(job, request.calibration), print)

    if precomputed.PERPLEXITY in chosen:
        request = parse(Settings(dtype="bfloat16"))
        measure_perplexities(results, calibrate(request), request)
    request = parse(Settings(dtype="float32"))
    calibrated = calibrate(request)
    stats, tokens = calibrated.stats, calibrated.tokens.numel()
    if precomputed.CHOICE in chosen:  # first: answers and activations are those of the chosen estimator
        run_now(session, lambda job: choose(job, calibrated, request.calibration, session.slice_memory), print)
        results.write(precomputed.CHOICE, request.calibration.choice, request, tokens)
    opening = session.opening.with_settings(dtype=request.settings.dtype)
    if precomputed.SENSITIVITY in chosen:  # half an hour on one core
        windows = evaluation_tokens(calibrated.loaded.tokenizer, LONGER_TEXT, request.calibration.config.text)
        measured = measure_sensitivity(calibrated.loaded, stats, windows, RATIO)
        results.write(precomputed.SENSITIVITY, measured, request, measured.tokens)
    if precomputed.SHIFT in chosen:
        shifts = ShiftViews(session)
        run_now(session, lambda job: shifts.measure_both(job, opening), print)
        view = shifts.exact_view(opening)
        assert view is not None  # measured just now
        results.write(precomputed.SHIFT, view, opening, view.tokens)
    others: dict[str, Callable[[], Any]] = {
        precomputed.FACTS: lambda: ask_facts(session, opening),
        precomputed.PROFILE: lambda: calibrated.source.profile,
        precomputed.UNITS: lambda: calibrated.source.units,
        precomputed.SPECTRA: lambda: precomputed_spectra(calibrated),
    }
    for kind, measure in others.items():
        if kind in chosen:
            results.write(kind, measure(), request, tokens)


if __name__ == "__main__":
    main()
