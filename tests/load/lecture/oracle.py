"""What the library, alone, says of the settings that were measured and of the answers that were written."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from html import unescape
from math import isclose

import torch
from transformers import PreTrainedModel

import intraslice as sl
from components.state.precomputed import PERPLEXITY, Measurements, Precomputed
from components.state.request import Request, parse
from components.state.settings import Settings
from intraslice.evaluation.perplexity import Losses, measure_half_window, measure_losses
from intraslice.pretrained.precision import choose_dtype
from tests.load.lecture.students import NEW_TOKENS, Answered, Lecture, Measured

EVALUATED = 2560
MEASURED = 3  # settings whose precomputed numbers are those of others, which are measured
TEXT = re.compile(r'<p class="isx-text[^"]*">(.*?)</p>', re.DOTALL)


@dataclass
class Oracle:
    """The default model and its calibration."""

    loaded: sl.LoadedModel
    stats: sl.CalibrationStats
    tokens: torch.Tensor
    windows: torch.Tensor

    @cached_property
    def dense(self) -> Losses:
        """The dense model's losses."""
        return measure_losses(self.loaded.model, self.windows, progress=False)

    def model(self, request: Request) -> PreTrainedModel:
        """The sliced model of a setting."""
        plan = self.plan(request.slicing)
        return sl.slice_model(self.loaded.model, plan, self.stats, self.tokens, progress=False)

    def plan(self, slicing: sl.SliceConfig) -> sl.SlicePlan:
        """The plan of a setting."""
        return sl.make_plan(self.stats.profile_for(slicing), slicing)

    def sizes(self, slicing: sl.SliceConfig) -> list[tuple[tuple[int, ...], int, int]]:
        """The heads, channels and neurons that each layer of a setting keeps."""
        return [(layer.heads, layer.dim, layer.neurons) for layer in self.plan(slicing).layers]

    @cached_property
    def stored(self) -> Measurements:
        """The measurements in the repository."""
        stored = Precomputed().find(PERPLEXITY, parse(Settings()).calibration, Measurements)
        assert stored is not None
        return stored.value

    def kept(self, settings: Settings) -> float | None:
        """The perplexity in the repository, also for a cap or locks with which all layers keep the same."""
        slicing = parse(settings).slicing
        default = replace(slicing, cap=sl.SliceConfig.cap, locked=())
        if slicing != default and self.sizes(slicing) != self.sizes(default):
            return None
        stored = self.stored.at(default)
        return stored and stored.perplexity

    def numbers(self, model: PreTrainedModel) -> dict[float, float]:
        """The perplexity that the page shows after so many windows; after all of them under 0."""
        losses = measure_losses(model, self.windows, progress=False)
        whole = self.dense.perplexity().value
        half = measure_half_window(model, self.windows, progress=False)
        found = {0: losses.perplexity().value, 0.5: whole * half.ratio(self.dense).value}
        for count in range(1, losses.total):
            first = Losses(count, losses.total, losses.sums[:count], losses.sizes)
            found[count] = whole * first.ratio(self.dense).value
        return found

    def answer(self, model: PreTrainedModel, prompt: str) -> str:
        """The greedy answer."""
        return "".join(sl.generate_text(model, self.loaded.tokenizer, prompt, NEW_TOKENS))


def load_oracle() -> Oracle:
    """The default model, calibrated as the page's defaults say."""
    loaded = sl.load_model("default", getattr(torch, choose_dtype()))
    config = parse(Settings()).calibration.config
    tokens = sl.calibration_tokens(loaded.tokenizer, config, "default")
    windows = sl.evaluation_tokens(
        loaded.tokenizer, sl.EvaluationConfig("default", EVALUATED, config.length), "default"
    )
    stats = sl.calibrate(loaded, tokens, progress=False)
    return Oracle(loaded, stats, tokens, windows)


def check(lecture: Lecture, max_settings: int) -> int:
    """Check what students saw, the live numbers and the answers of at most so many settings; returns their number."""
    oracle, notes = load_oracle(), lecture.notes
    kept = {settings: oracle.kept(settings) for settings, _ in lecture.kept}
    for settings, headline in lecture.kept:
        stored = kept[settings]
        shown = float(re.findall(r"→ <b>([\d.]+)(?: ± [\d.]+)?</b>", headline)[0])
        right = stored is not None and isclose(shown, stored, abs_tol=0.051)
        notes.check("kept", right, f"{shown} at {settings}")
    for settings in [settings for settings in kept if settings.cap != Settings().cap or settings.locked][:MEASURED]:
        number = oracle.numbers(oracle.model(parse(settings)))[0]
        right = isclose(number, kept[settings] or 0.0, rel_tol=0.01)  # measured on another machine
        notes.check("kept, measured", right, f"{kept[settings]}, not {number}, at {settings}")
    seen: dict[Settings, tuple[list[Measured], list[Answered]]] = defaultdict(lambda: ([], []))
    for release in lecture.releases:
        if release.numbers:
            seen[release.settings][0].append(release)
    for answer in lecture.answers:
        if answer.whole is not None:
            seen[answer.settings][1].append(answer)
    settings = [*seen]
    random.Random(0).shuffle(settings)
    dense = cache(partial(oracle.answer, oracle.loaded.model))
    for setting in settings[:max_settings]:
        releases, answers = seen[setting]
        model = oracle.model(parse(setting))
        numbers = oracle.numbers(model) if releases else {}
        for windows, shown in (item for release in releases for item in release.numbers.items()):
            tolerance = 0.051 if windows else 0.0051  # as many digits as the page shows
            right = isclose(shown, numbers[windows], abs_tol=tolerance, rel_tol=2e-3)
            notes.check("live", right, f"{shown} after {windows or 'all'} windows, not {numbers[windows]}: {setting}")
        for answer in answers:
            wanted = {"dense": dense(answer.prompt), "sliced": oracle.answer(model, answer.prompt)}
            for (name, expected), found in zip(wanted.items(), map(_text, answer.columns), strict=False):
                notes.check(f"{name} answer", found == expected.replace("\r", ""), f"{found!r}, not {expected!r}")
    return min(len(settings), max_settings)


def _text(column: str) -> str:
    """The text of an answer's column, without the signs that stand for blank tokens."""
    found = TEXT.search(column)
    return unescape(re.sub("<[^>]*>", "", found[1] if found else "").replace("■", "").replace("⏎", ""))
