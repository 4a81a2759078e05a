"""One command's run: its settings, validated before anything is loaded, its models, and how long each step took."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel

try:
    import resource
except ImportError:  # Windows has its own
    resource = None

from intraslice import data
from intraslice.calibration.driver import CalibrationStats, calibrate
from intraslice.config import CalibrationConfig, EvaluationConfig, SliceConfig, parse_lock
from intraslice.errors import UserError
from intraslice.loading import LoadedModel, load_model
from intraslice.methods.registry import Method, Plan, plan_by, slice_by, uses_statistics
from intraslice.progress import Progress, finish


class Run:
    """Settings of one command line. `seconds` fills up as the steps are done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        a = arguments
        self.arguments = a
        self.calibration = CalibrationConfig(a.calibration, a.sequences, a.length, a.seed, a.targets)
        self.evaluation = EvaluationConfig(a.eval, a.eval_tokens, a.length)
        locked = tuple(parse_lock(" ".join(words)) for words in a.lock)
        named = {"head_fraction": a.head_fraction, "gradient_group": a.gradient_group, "epochs": a.epochs}
        self.slicing = SliceConfig(a.sparsity, a.estimator, a.bias, a.cap, a.order, a.iterative, locked=locked, **named)
        self.seconds: dict[str, float] = {}
        if a.threads is not None:
            if a.threads < 1:
                raise UserError(f"threads is {a.threads}; wanted 1 or more")
            torch.set_num_threads(a.threads)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - start, 3)

    def load(self) -> LoadedModel:
        with self.timed("load"):
            loaded = load_model(
                self.arguments.model,
                getattr(torch, self.arguments.dtype),
                self.arguments.device,
                device_map=self.arguments.device_map,
            )
        print(f"model: {loaded.source}", file=sys.stderr)
        return loaded

    def load_dense(self) -> LoadedModel:
        loaded = self.load()
        if loaded.made is not None:
            raise UserError(f"{loaded.name} is sliced already; wanted a dense model to slice")
        return loaded

    def windows(self, loaded: LoadedModel) -> torch.Tensor:
        """Held-out text, disjoint from the calibration's where there is one."""
        text = self.calibration.text if loaded.made is None else loaded.made["protocol"]["calibration"]
        return data.evaluation_tokens(loaded.tokenizer, self.evaluation, text)

    def calibrate(self, loaded: LoadedModel) -> tuple[CalibrationStats, torch.Tensor]:
        tokens = data.calibration_tokens(loaded.tokenizer, self.calibration, self.evaluation.text)
        with self.timed("calibrate"):
            stats = finish(calibrate(loaded, tokens, self.calibration.targets), show)
            _ = stats.profile  # found once, and counted here
        return stats, tokens

    def calibrate_for_method(self, loaded: LoadedModel) -> tuple[CalibrationStats | None, torch.Tensor]:
        """As `calibrate`, but only the tokens where the chosen method needs no more."""
        if uses_statistics(self.arguments.method):
            return self.calibrate(loaded)
        with self.timed("calibrate"):
            return None, data.calibration_tokens(loaded.tokenizer, self.calibration, self.evaluation.text)

    def plan(self, loaded: LoadedModel, stats: CalibrationStats | None, method: Method | None = None) -> Plan:
        a = self.arguments
        return plan_by(method or a.method, loaded.model, stats, self.slicing, None if method else a.slicing)

    def slice(
        self, loaded: LoadedModel, stats: CalibrationStats | None, tokens: torch.Tensor, method: Method | None = None
    ) -> tuple[PreTrainedModel, Plan]:
        plan = self.plan(loaded, stats, method)
        with self.timed("slice"):
            model = finish(slice_by(method or self.arguments.method, loaded.model, plan, stats, tokens), show)
        return model, plan

    def protocol(self) -> dict[str, Any]:
        return {
            "eval": self.evaluation.text,
            "eval_tokens": self.evaluation.tokens // self.evaluation.window * self.evaluation.window,
            "window": self.evaluation.window,
            "calibration": self.calibration.text,
            "calibration_tokens": self.calibration.sequences * self.calibration.length,
            "seed": self.calibration.seed,
            "targets": self.calibration.targets,
            "dtype": self.arguments.dtype,
        }

    def asked(self) -> dict[str, Any]:
        a = self.arguments
        return {
            "model": a.model,
            "method": a.method,
            "estimator": a.estimator,
            "head_fraction": a.head_fraction,
            "gradient_group": a.gradient_group,
            "bias": a.bias,
            "cap": a.cap,
            "order": a.order,
            "iterative": a.iterative,
            "epochs": a.epochs,
            "locked": [list(lock) for lock in self.slicing.locked],
            "sparsity_asked": a.sparsity,
        }


def show(event: Progress) -> None:
    """Progress on stderr."""
    end = "\n" if event.done == event.total else "\r"
    print(f"{event.stage} {event.done}/{event.total}", end=end, file=sys.stderr, flush=True)


def peak_memory() -> int | None:
    """Bytes of this process's own largest resident set so far, None where the system does not count them.

    `ru_maxrss` will not do on Linux: a child's begins at what its parent held when it was forked.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peaks = re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        return 1024 * int(peaks[0]) if peaks else None
    if resource is None:
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
