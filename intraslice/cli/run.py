"""One command's run: its settings, validated before anything is loaded, its models, and how long each step took."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

if sys.platform != "win32":
    import resource

from intraslice import data
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig, parse_lock
from intraslice.core.errors import UserError
from intraslice.distributed.sharing import from_first, require_enough, speaks
from intraslice.loading import LoadedModel, load_model
from intraslice.methods.registry import METHODS, Plan, Tokens, plan_by, require_shareable, slice_by, uses_statistics
from intraslice.pretrained.precision import choose_device, choose_dtype
from intraslice.reporting import Recipe
from intraslice.untrusted.ratio_files import read_ratios

Answer = tuple[dict[str, Any], str]  # a command's JSON object, and its text for people
# Commands that slice each model in one process, however many there are.
SLICED_ALONE = ("sweep", "sensitivity", "paper")


class Run:
    """One command line, validated. `seconds` fills up as the steps are done."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.device = choose_device(arguments.device)
        self.recipe = recipe_of(arguments)
        require_enough(self.recipe.calibration.sequences)
        if arguments.command not in SLICED_ALONE or getattr(arguments, "context", False):
            for method in (self.recipe.method, *getattr(arguments, "methods", ())):
                require_shareable(method, self.recipe.slicing)
        self.seconds: dict[str, float] = {}
        if arguments.threads is not None:
            if arguments.threads < 1:
                raise UserError(f"threads is {arguments.threads}; wanted 1 or more")
            torch.set_num_threads(arguments.threads)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time that passes inside to the seconds of `step`."""
        start = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - start, 3)

    def load(self) -> LoadedModel:
        """The model that `--model` names, dense or a sliced checkpoint. Raises UserError where it cannot be had."""
        with self.timed("load"):
            loaded = load_model(
                self.recipe.model,
                getattr(torch, self.recipe.dtype),
                self.device,
                device_map=self.arguments.device_map,
            )
        if speaks():
            print(f"model: {loaded.source}", file=sys.stderr)
        return loaded

    def load_dense(self) -> LoadedModel:
        """As `load`, but a sliced checkpoint is a UserError."""
        loaded = self.load()
        if loaded.made is not None:
            raise UserError(f"{loaded.name} is sliced already; wanted a dense model to slice")
        return loaded

    def windows(self, loaded: LoadedModel) -> Int[Tensor, "windows window"]:
        """Held-out text, disjoint from the calibration's where there is one."""
        text = self.recipe.calibration.text if loaded.made is None else loaded.made["protocol"]["calibration"]
        return data.evaluation_tokens(loaded.tokenizer, self.recipe.evaluation, text)

    def other_windows(self, loaded: LoadedModel) -> dict[str, Int[Tensor, "windows window"]]:
        """Held-out windows of every text that `--also-eval` names, by its name without its folder.

        Raises UserError where two have one name, or a text cannot be had.
        """
        texts = {Path(text).stem: replace(self.recipe.evaluation, text=text) for text in self.arguments.also_eval}
        if len(texts) < len(self.arguments.also_eval):
            raise UserError("two texts of --also-eval have one name; wanted each once, by a name of its own")
        apart = self.recipe.calibration.text
        return {name: data.evaluation_tokens(loaded.tokenizer, text, apart) for name, text in texts.items()}

    def calibrate(self, loaded: LoadedModel) -> tuple[CalibrationStats, Tokens]:
        """The calibration's statistics, and the tokens that they were taken on."""
        tokens = self._calibration_tokens(loaded)
        with self.timed("calibrate"):
            stats = calibrate(loaded, tokens, self.recipe.calibration.targets)
            _ = stats.profile  # found once, and counted here
        return stats, tokens

    def calibrate_for_method(self, loaded: LoadedModel) -> tuple[CalibrationStats | None, Tokens]:
        """As `calibrate`, but only the tokens where the chosen method needs no more."""
        if uses_statistics(self.recipe.method, self.recipe.slicing):
            return self.calibrate(loaded)
        with self.timed("calibrate"):
            return None, self._calibration_tokens(loaded)

    def plan(self, loaded: LoadedModel, stats: CalibrationStats | None, method: str | None = None) -> Plan:
        """What goes by the chosen method, or by another one that is named."""
        slicing = None if method else self.arguments.slicing
        plan = plan_by(method or self.recipe.method, loaded.model, stats, self.recipe.slicing, slicing)
        return from_first(plan)  # one plan for all, should machines round differently

    def slice(
        self, loaded: LoadedModel, stats: CalibrationStats | None, tokens: Tokens, method: str | None = None
    ) -> tuple[PreTrainedModel, Plan]:
        """The sliced model and its plan, by the chosen method, or by another one that is named."""
        plan, name = self.plan(loaded, stats, method), method or self.recipe.method
        with self.timed("slice"):
            read = self.training_tokens(loaded) if METHODS[name].trains else tokens
            model = slice_by(name, loaded.model, plan, stats, read)
        return model, plan

    def training_tokens(self, loaded: LoadedModel) -> Tokens:
        """The calibration's tokens and more of its text, for methods that train."""
        return data.training_tokens(loaded.tokenizer, self.recipe.calibration, self.recipe.evaluation.text)

    def _calibration_tokens(self, loaded: LoadedModel) -> Tokens:
        return data.calibration_tokens(loaded.tokenizer, self.recipe.calibration, self.recipe.evaluation.text)


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """What the words of a command line ask for. Raises UserError for numbers out of range, or no file of ratios."""
    a = arguments
    by_hand = tuple(parse_lock(" ".join(words)) for words in a.lock)
    from_file = read_ratios(a.ratios) if a.ratios else ()
    return Recipe(
        model=a.model,
        slicing=SliceConfig(
            sparsity=a.sparsity,
            estimator=a.estimator,
            bias=a.bias,
            cap=a.cap,
            order=a.order,
            iterative=a.iterative,
            locked=(*(lock for lock in from_file if lock[:2] not in {other[:2] for other in by_hand}), *by_hand),
            head_fraction=a.head_fraction,
            gradient_group=a.gradient_group,
            epochs=a.epochs,
            shapes=a.shapes,
        ),
        calibration=CalibrationConfig(a.calibration, a.sequences, a.length, a.seed, a.targets),
        evaluation=EvaluationConfig(a.eval, a.eval_tokens, a.length),
        method=a.method,
        dtype=choose_dtype(a.dtype, choose_device(a.device)),
    )


def require_folder(file: Path) -> None:
    """Raise UserError, before any work, where there is no folder for a file that is to be written."""
    if not file.parent.is_dir():
        raise UserError(f"there is no folder {file.parent} to write {file.name} to; make it first")


def peak_memory() -> int | None:
    """Bytes of this process's own largest resident set so far, None where the system does not count them.

    `ru_maxrss` will not do on Linux: a child's begins at what its parent held when it was forked.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peaks = re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        return 1024 * int(peaks[0]) if peaks else None
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
