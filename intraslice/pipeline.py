"""The stages of one recipe, from its model to its slice, and the seconds that each of them took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice import data
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback
from intraslice.distributed.sharing import from_first
from intraslice.loading import LoadedModel, load_model
from intraslice.methods.registry import METHODS, Plan, Tokens, plan_by, slice_by
from intraslice.modeling.offload import Placement
from intraslice.reporting import Recipe


@dataclass
class Pipeline:
    """Every stage of a recipe on one device; `seconds` has the time of each stage that has run.

    `slicing` is the fraction of the residual stream's axes that the cross-module method cuts, instead of a sparsity.
    """

    recipe: Recipe
    device: str = "cpu"
    device_map: Placement | None = None
    slicing: float | None = None
    progress: ProgressCallback | bool = field(default=True, kw_only=True)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    @contextmanager
    def timed(self, stage: str) -> Iterator[dict[str, float]]:
        """Add the time that passes inside to the seconds of `stage`."""
        start = time.perf_counter()
        yield self.seconds
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)

    def load(self) -> LoadedModel:
        """The recipe's model, dense or a sliced checkpoint. Raises UserError where it cannot be had."""
        dtype = getattr(torch, self.recipe.dtype)
        with self.timed("load"):
            return load_model(self.recipe.model, dtype, self.device, self.device_map, progress=self.progress)

    def load_dense(self) -> LoadedModel:
        """As `load`, but a sliced checkpoint is a UserError."""
        loaded = self.load()
        require_dense(loaded)
        return loaded

    def windows(self, loaded: LoadedModel) -> Int[Tensor, "windows window"]:
        """Held-out tokens, disjoint from the calibration's."""
        text = self.recipe.calibration.text if loaded.made is None else loaded.made["protocol"]["calibration"]
        return data.evaluation_tokens(loaded.tokenizer, self.recipe.evaluation, text)

    def calibrate(self, loaded: LoadedModel) -> tuple[CalibrationStats, Tokens]:
        """The calibration's statistics, and the tokens that they were taken on."""
        tokens = self._calibration_tokens(loaded)
        with self.timed("calibrate"):
            stats = calibrate(loaded, tokens, self.recipe.calibration.targets, progress=self.progress)
            _ = stats.profile  # computed once, and counted here
        return stats, tokens

    def calibrate_for_method(self, loaded: LoadedModel) -> tuple[CalibrationStats | None, Tokens]:
        """As `calibrate`, but only the tokens where the recipe's method needs no more."""
        if METHODS.require(self.recipe.method).needs_statistics(self.recipe.slicing):
            return self.calibrate(loaded)
        with self.timed("calibrate"):
            return None, self._calibration_tokens(loaded)

    def plan(self, loaded: LoadedModel, stats: CalibrationStats | None, method: str | None = None) -> Plan:
        """The plan of the recipe's method, or of another one that is named."""
        slicing = None if method else self.slicing
        plan = plan_by(method or self.recipe.method, loaded.model, stats, self.recipe.slicing, slicing)
        return from_first(plan)  # one plan for all processes, should machines round differently

    def slice(
        self, loaded: LoadedModel, stats: CalibrationStats | None, tokens: Tokens, method: str | None = None
    ) -> tuple[PreTrainedModel, Plan]:
        """The sliced model and its plan, by the recipe's method, or by another one that is named."""
        plan, name = self.plan(loaded, stats, method), method or self.recipe.method
        with self.timed("slice"):
            training_tokens = None if plan.recovery == NO_RECOVERY else self.training_tokens(loaded)
            model = slice_by(name, loaded.model, plan, stats, tokens, training_tokens, progress=self.progress)
        return model, plan

    def training_tokens(self, loaded: LoadedModel) -> Tokens:
        """The calibration's tokens and more of its text, for recoveries."""
        return data.training_tokens(loaded.tokenizer, self.recipe.calibration, self.recipe.evaluation.text)

    def _calibration_tokens(self, loaded: LoadedModel) -> Tokens:
        return data.calibration_tokens(loaded.tokenizer, self.recipe.calibration, self.recipe.evaluation.text)


def require_dense(loaded: LoadedModel) -> None:
    """Raise UserError for a sliced checkpoint."""
    if loaded.made is not None:
        raise UserError(f"{loaded.name} is sliced already; expected a dense model to slice")
