"""The stages of one recipe, from loading to slicing, and the time of each stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedModel

from intraslice import token_windows
from intraslice.calibration.driver import calibrate
from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.core.progress import ProgressOption
from intraslice.loading import LoadedModel, load_model, require_dense_name
from intraslice.methods.registry import METHODS, Plan, SlicingMethod, calibration_for, slice_by
from intraslice.modeling.hidden_states import Tokens, Windows, require_length
from intraslice.modeling.offload import Placement
from intraslice.records import Recipe
from intraslice.samples import calibration_sequences
from intraslice.search.choice import Choice, choose_estimator, searched_estimator
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import require_in_memory, require_searchable, search_windows
from intraslice.size_target import parse_size, plan_recipe

PASSES = SearchConfig.passes  # of a search, by default
WINDOWS_PER_SEQUENCE = 2  # of a search, for each calibration sequence: half of them text, half samples


@dataclass
class Pipeline:
    """All stages of a recipe on one device; `seconds` has the time of each finished stage.

    `slicing` is the fraction of the residual stream's axes that the cross-module method removes, instead of a sparsity.
    With `ratio_search`, a budget in dense passes, the calibration is followed by a search for ratios at the recipe's
    sparsity, and the recipe's estimator becomes the file of importances that reproduces them. With `is_auto` it becomes
    that of `choose_estimator`, before a search, and `choice` says by how much it is better. With a `size`, such as "200
    MB" or "200 MB q8_0", of the weights and the key/value cache of `context` tokens, the recipe's sparsity becomes that
    of the plan which meets it.
    """

    recipe: Recipe
    device: str = "cpu"
    device_map: Placement | None = None
    slicing: float | None = None
    progress: ProgressOption = field(default=True, kw_only=True)
    ratio_search: float | None = field(default=None, kw_only=True)
    size: str | None = field(default=None, kw_only=True)
    context: int = field(default=0, kw_only=True)
    is_auto: bool = field(default=False, kw_only=True)
    choice: Choice | None = field(default=None, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        METHODS.require(self.recipe.method)
        calibration = self.recipe.calibration
        self.recipe = replace(
            self.recipe,
            slicing=self.method.configured(self.recipe.slicing),
            calibration=replace(calibration, targets=self.method.targets or calibration.targets),
        )
        if self.slicing is not None:
            self.method.require_slicing(self.slicing)
        if self.ratio_search is not None:
            self.method.require_estimator()
            self.require_searchable(self.recipe.slicing, self._search_config(self.ratio_search))
        self._size = None if self.size is None else parse_size(self.size, self.context)

    @property
    def method(self) -> SlicingMethod[Any]:
        """The recipe's method."""
        return METHODS[self.recipe.method]

    @contextmanager
    def timed(self, stage: str) -> Iterator[dict[str, float]]:
        """Add the time inside the context to the seconds of `stage`."""
        start = time.perf_counter()
        yield self.seconds
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)

    def load(self) -> LoadedModel:
        """Load the recipe's model, dense or a sliced checkpoint. Raises UserError if it cannot be loaded."""
        recipe = self.recipe
        with self.timed("load"):
            return load_model(recipe.model, recipe.dtype, self.device, self.device_map, progress=self.progress)

    def load_dense(self) -> LoadedModel:
        """As `load`, but raises UserError for a sliced checkpoint."""
        require_dense_name(self.recipe.model)
        return self.load()

    def windows(self, loaded: LoadedModel) -> Windows:
        """Held-out tokens, disjoint from the calibration tokens; a checkpoint's record says which text those are of.

        Raises UserError if the text cannot be read, is too short, or was read whole by the calibration, or if the
        windows are longer than the model's context.
        """
        evaluation, recorded = self.recipe.evaluation, (loaded.record or {}).get("protocol", {})
        require_length(evaluation.window, loaded.model.config)
        # Only the texts of users have digests.
        text = recorded.get("calibration_digest") or recorded.get("calibration", self.recipe.calibration.text)
        evaluated = recorded.get("eval_digest") or recorded.get("eval", evaluation.text)
        token_windows.require_held_out(evaluation.text, text, evaluated)
        return token_windows.evaluation_tokens(loaded.tokenizer, evaluation, text)

    def calibrate(self, loaded: LoadedModel) -> tuple[CalibrationStats, Tokens]:
        """The calibration statistics and the calibration tokens."""
        if self.ratio_search is not None:
            require_in_memory(loaded)
        tokens = self._calibration_tokens(loaded)
        with self.timed("calibrate"):
            stats = calibrate(loaded, tokens, self.recipe.calibration.targets, progress=self.progress)
            _ = stats.profile  # computed on first access, and counted here
        if self.is_auto and self.method.uses_estimator and self.method.measures_auto:
            with self.timed("choose"):
                text, seed = self._unread(loaded), self.recipe.calibration.seed
                self.choice = choose_estimator(loaded, stats, text, seed, progress=self.progress)
            self._use_estimator(self.choice.name)
        if self.ratio_search is not None:
            config, self.ratio_search = self._search_config(self.ratio_search), None
            with self.timed("search"):
                windows, slicing = self.search_windows(loaded), self.recipe.slicing
                self._use_estimator(searched_estimator(loaded, stats, windows, slicing, config, progress=self.progress))
            stats = replace(stats)  # whose profile is computed again, with the new estimator
        return stats, tokens

    def search_windows(self, loaded: LoadedModel) -> Windows:
        """What a search reads: calibration text after the calibration tokens, and text that the model writes."""
        calibration, count = self.recipe.calibration, self.recipe.calibration.sequences
        text = self._unread(loaded)[:count]
        size, skip = WINDOWS_PER_SEQUENCE * count, calibration.samples
        return search_windows(loaded, text, size, calibration.seed, skip, progress=self.progress)

    def require_searchable(self, slicing: SliceConfig, search: SearchConfig) -> None:
        """Raise UserError if `search` would refuse these settings, before anything is loaded."""
        require_searchable(slicing, WINDOWS_PER_SEQUENCE * self.recipe.calibration.sequences, search)

    def _search_config(self, passes: float) -> SearchConfig:
        return SearchConfig(passes, seed=self.recipe.calibration.seed)

    def _use_estimator(self, name: str) -> None:
        self.recipe = replace(self.recipe, slicing=replace(self.recipe.slicing, estimator=name))

    def _unread(self, loaded: LoadedModel) -> Tokens:
        """The calibration text after the calibration tokens."""
        return self.training_tokens(loaded)[self.recipe.calibration.sequences :]

    def calibrate_for_method(self, loaded: LoadedModel) -> tuple[CalibrationStats | None, Tokens]:
        """As `calibrate`, but without statistics if the recipe's method needs none."""
        if self.method.needs_statistics(self.recipe.slicing):
            return self.calibrate(loaded)
        with self.timed("calibrate"):
            return None, self._calibration_tokens(loaded)

    def plan(self, loaded: LoadedModel, stats: CalibrationStats | None, method: str | None = None) -> Plan:
        """The plan of `method`, by default the recipe's."""
        if method:
            return plan_recipe(replace(self.recipe, method=method), loaded, stats)[0]
        plan, self.recipe = plan_recipe(self.recipe, loaded, stats, self.slicing, self._size)
        return plan

    def slice(
        self, loaded: LoadedModel, stats: CalibrationStats | None, tokens: Tokens, method: str | None = None
    ) -> tuple[PreTrainedModel, Plan]:
        """The sliced model and its plan, by `method`, by default the recipe's."""
        name = method or self.recipe.method
        if stats is not None:
            stats = calibration_for(name, loaded, stats, tokens, progress=self.progress)
        plan = self.plan(loaded, stats, method)
        with self.timed("slice"):
            training_tokens = tokens if plan.recovery == NO_RECOVERY else self.training_tokens(loaded)
            model = slice_by(name, loaded.model, plan, stats, tokens, training_tokens, progress=self.progress)
        return model, plan

    def training_tokens(self, loaded: LoadedModel) -> Tokens:
        """The calibration tokens and more of the calibration text, for recoveries."""
        return token_windows.training_tokens(loaded.tokenizer, self.recipe.calibration, self.recipe.evaluation.text)

    def _calibration_tokens(self, loaded: LoadedModel) -> Tokens:
        require_length(self.recipe.calibration.length, loaded.model.config)
        text = self.recipe.evaluation.text
        return calibration_sequences(loaded, self.recipe.calibration, text, progress=self.progress)
