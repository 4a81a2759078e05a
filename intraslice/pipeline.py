"""The stages of one recipe, from loading to slicing, and the time of each stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice import data
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.calibration.user_estimator import load_estimator
from intraslice.checkpoints import is_checkpoint
from intraslice.core.cache import cache_path, write_result
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback
from intraslice.distributed import all_gather
from intraslice.loading import LoadedModel, load_model
from intraslice.methods.registry import METHODS, Plan, Tokens, plan_by, slice_by
from intraslice.modeling.hidden_states import require_length
from intraslice.modeling.offload import Placement
from intraslice.recovery.registry import RecoveryCost, cost_of
from intraslice.reporting import Recipe
from intraslice.samples import calibration_sequences
from intraslice.search.depth import COMPARED, search_depth, whole_layers
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import (
    SearchResult,
    groups_of,
    require_in_memory,
    require_searchable,
    search_ratios,
    search_windows,
    searched_importances,
)
from intraslice.untrusted.layer_files import importances_json

log = logging.getLogger(__name__)

WINDOWS_PER_SEQUENCE = 2  # of a search, for each calibration sequence: half of them text, half samples


@dataclass
class Pipeline:
    """All stages of a recipe on one device; `seconds` has the time of each finished stage.

    `slicing` is the fraction of the residual stream's axes that the cross-module method removes, instead of a sparsity.
    With `ratio_search`, the calibration is followed by a search for ratios at the recipe's sparsity, and the recipe's
    estimator becomes the file of importances that reproduces them.
    """

    recipe: Recipe
    device: str = "cpu"
    device_map: Placement | None = None
    slicing: float | None = None
    progress: ProgressCallback | bool = field(default=True, kw_only=True)
    ratio_search: SearchConfig | None = field(default=None, kw_only=True)
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    recovery_cost: RecoveryCost | None = field(default=None, init=False)  # of the last slice

    def __post_init__(self) -> None:
        method = METHODS.require(self.recipe.method)
        if self.slicing is not None:
            method.require_slicing(self.slicing)
        if self.ratio_search is not None:
            self.require_searchable(self.recipe.slicing, self.ratio_search)
        if ignored := method.ignored(self.recipe.slicing):
            log.warning("method %s does not use %s; ignored", self.recipe.method, ", ".join(ignored))

    @contextmanager
    def timed(self, stage: str) -> Iterator[dict[str, float]]:
        """Add the time inside the context to the seconds of `stage`."""
        start = time.perf_counter()
        yield self.seconds
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)

    def load(self) -> LoadedModel:
        """Load the recipe's model, dense or a sliced checkpoint. Raises UserError if it cannot be loaded."""
        dtype = getattr(torch, self.recipe.dtype)
        with self.timed("load"):
            return load_model(self.recipe.model, dtype, self.device, self.device_map, progress=self.progress)

    def load_dense(self) -> LoadedModel:
        """As `load`, but raises UserError for a sliced checkpoint."""
        require_dense_name(self.recipe.model)
        return self.load()

    def windows(self, loaded: LoadedModel) -> Int[Tensor, "windows window"]:
        """Held-out tokens, disjoint from the calibration tokens; a checkpoint's record says which text those are of.

        Raises UserError if the text cannot be read, is too short, or was read whole by the calibration, or if the
        windows are longer than the model's context.
        """
        require_length(self.recipe.evaluation.window, loaded.model.config)
        recorded = (loaded.made or {}).get("protocol", {})
        evaluation = self.recipe.evaluation
        # Only the texts of users have digests.
        text = recorded.get("calibration_digest") or recorded.get("calibration", self.recipe.calibration.text)
        evaluated = recorded.get("eval_digest") or recorded.get("eval", evaluation.text)
        data.require_held_out(evaluation.text, text, evaluated)
        return data.evaluation_tokens(loaded.tokenizer, evaluation, text)

    def calibrate(self, loaded: LoadedModel) -> tuple[CalibrationStats, Tokens]:
        """The calibration statistics and the calibration tokens."""
        if self.ratio_search is not None:
            require_in_memory(loaded)
        tokens = self._calibration_tokens(loaded)
        with self.timed("calibrate"):
            stats = calibrate(loaded, tokens, self.recipe.calibration.targets, progress=self.progress)
            _ = stats.profile  # computed on first access, and counted here
        if self.ratio_search is not None:
            config, self.ratio_search = self.ratio_search, None
            stats = self._with_searched_ratios(loaded, stats, config)
        return stats, tokens

    def search(
        self,
        loaded: LoadedModel,
        stats: CalibrationStats,
        slicing: SliceConfig,
        others: Sequence[SearchResult] = (),
        search: SearchConfig | None = None,
    ) -> SearchResult:
        """Better ratios, found on calibration text after the calibration tokens, and on text that the model writes."""
        with self.timed("search"):
            windows = self._search_windows(loaded)
            return search_ratios(loaded, stats, windows, slicing, others, search, progress=self.progress)

    def search_depth(
        self, loaded: LoadedModel, stats: CalibrationStats, sparsity: float, search: SearchConfig | None = None
    ) -> SearchResult:
        """The modules to remove as a whole, found on the same texts as the ratios of `search`."""
        # What is refused is refused before the text is sampled.
        groups_of(WINDOWS_PER_SEQUENCE * self.recipe.calibration.sequences, search or SearchConfig(), COMPARED)
        whole_layers(stats.sizes, sparsity)
        with self.timed("search"):
            windows = self._search_windows(loaded)
            return search_depth(loaded, stats, windows, sparsity, search, progress=self.progress)

    def _search_windows(self, loaded: LoadedModel) -> Int[Tensor, "windows window"]:
        calibration, count = self.recipe.calibration, self.recipe.calibration.sequences
        text = self.training_tokens(loaded)[count : 2 * count]
        size, skip = WINDOWS_PER_SEQUENCE * count, calibration.samples
        return search_windows(loaded, text, size, calibration.seed, skip, progress=self.progress)

    def require_searchable(self, slicing: SliceConfig, search: SearchConfig) -> None:
        """Raise UserError if `search` would refuse these settings, before anything is loaded."""
        require_searchable(slicing, WINDOWS_PER_SEQUENCE * self.recipe.calibration.sequences, search)

    def _with_searched_ratios(
        self, loaded: LoadedModel, stats: CalibrationStats, config: SearchConfig
    ) -> CalibrationStats:
        """The statistics with the importances of searched ratios, which become the recipe's estimator."""
        slicing = self.recipe.slicing
        found = self.search(loaded, stats, slicing, search=config)
        text = importances_json(searched_importances(stats.profile, [found], slicing.estimator))
        file = cache_path("search", ".json", "importances", text)
        write_result(file, lambda path: path.write_text(text, encoding="utf-8"), "the importances", len(text))
        self.recipe = replace(self.recipe, slicing=replace(slicing, estimator=load_estimator(str(file)).name))
        return replace(stats)  # its profile is computed again, with the new estimator

    def calibrate_for_method(self, loaded: LoadedModel) -> tuple[CalibrationStats | None, Tokens]:
        """As `calibrate`, but without statistics if the recipe's method needs none."""
        if METHODS.require(self.recipe.method).needs_statistics(self.recipe.slicing):
            return self.calibrate(loaded)
        with self.timed("calibrate"):
            return None, self._calibration_tokens(loaded)

    def plan(self, loaded: LoadedModel, stats: CalibrationStats | None, method: str | None = None) -> Plan:
        """The plan of `method`, by default the recipe's."""
        slicing = None if method else self.slicing
        plan = plan_by(method or self.recipe.method, loaded.model, stats, self.recipe.slicing, slicing)
        return all_gather([plan])[0]  # one plan for all processes, as machines may round differently

    def slice(
        self, loaded: LoadedModel, stats: CalibrationStats | None, tokens: Tokens, method: str | None = None
    ) -> tuple[PreTrainedModel, Plan]:
        """The sliced model and its plan, by `method`, by default the recipe's."""
        plan, name = self.plan(loaded, stats, method), method or self.recipe.method
        with self.timed("slice"):
            training_tokens = tokens if plan.recovery == NO_RECOVERY else self.training_tokens(loaded)
            model = slice_by(name, loaded.model, plan, stats, tokens, training_tokens, progress=self.progress)
        cost = cost_of(loaded.model, model, training_tokens, plan.recovery, plan.epochs, tokens.numel())
        self.recovery_cost = cost
        return model, plan

    def training_tokens(self, loaded: LoadedModel) -> Tokens:
        """The calibration tokens and more of the calibration text, for recoveries."""
        return data.training_tokens(loaded.tokenizer, self.recipe.calibration, self.recipe.evaluation.text)

    def _calibration_tokens(self, loaded: LoadedModel) -> Tokens:
        require_length(self.recipe.calibration.length, loaded.model.config)
        text = self.recipe.evaluation.text
        return calibration_sequences(loaded, self.recipe.calibration, text, progress=self.progress)


def require_dense(loaded: LoadedModel) -> None:
    """Raise UserError for a sliced checkpoint."""
    if loaded.made is not None:
        raise _sliced_already(loaded.name)


def require_dense_name(name: str) -> None:
    """As `require_dense`, before the model is loaded."""
    if is_checkpoint(name):
        raise _sliced_already(name)


def _sliced_already(name: str) -> UserError:
    return UserError("{name} is sliced already; expected a dense model to slice", name=name)
