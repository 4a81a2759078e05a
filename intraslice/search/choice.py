"""Estimators that measurements decide on: the best of several for a calibration, and that of searched ratios."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, expm1, log
from statistics import fmean

import torch
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.calibration.user_estimator import register_importances
from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.config import SliceConfig
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.distributed import size
from intraslice.evaluation.perplexity import DenseStates, mean_over_windows, measure_losses
from intraslice.loading import LoadedModel
from intraslice.modeling.hidden_states import Tokens, Windows
from intraslice.planning.ratios import make_plan
from intraslice.samples import SAMPLE_TOKENS, TEMPERATURE, sample_texts
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import search_ratios, searched_importances
from intraslice.slicing.driver import slice_model
from intraslice.slicing.one_shot import SliceCache

CANDIDATES = ("pca", "output-error", "fisher")
MEASURED = SliceConfig(0.3, order="one-shot")
PASSES = 0.8  # that a choice may cost: dense passes over the calibration tokens, samples included
SMALLEST = 1e-6  # nats: KL of a window whose logarithm is taken
FORMAT = "choice 1"


@dataclass(frozen=True)
class Choice:
    """The estimator of a calibration: that with the lowest KL at 30 %, one-shot, by the geometric mean over windows.

    `excess` has the other candidates: by which fraction their KL is higher on the windows that both were measured on,
    and the paired standard error. `passes` counts dense passes over the calibration tokens, samples included.
    """

    name: str
    excess: Mapping[str, Sequence[float]]
    passes: float

    def __str__(self) -> str:
        others = (f"{name} {100 * value:+.1f} ± {100 * error:.1f} %" for name, (value, error) in self.excess.items())
        return f"{self.name}; KL at 30 % with {', '.join(others)}; {self.passes:.2f} dense passes"


def choose_estimator(
    loaded: LoadedModel,
    stats: CalibrationStats,
    text: Tokens,
    seed: int = 0,
    candidates: Sequence[str] = CANDIDATES,
    *,
    progress: ProgressOption = True,
) -> Choice:
    """The candidate whose slice at 30 % has the lowest KL, by successive halving; kept in the cache.

    The windows are the beginnings of the sequences of `text`, which the calibration must not have read, and as many
    samples of the dense model, or more where the text is short. Several processes do not share the measurement: they
    take the first candidate. Raises NumericalError as `slice_model` does.
    """
    if size() > 1:
        return Choice(candidates[0], {}, 0.0)
    report, rounds = progress_callback(progress), _rounds(len(candidates))
    length = min(SAMPLE_TOKENS, text.shape[1])
    cost = (1 + 2 * (1 + fmean(rounds))) * length  # of a window of text and a sample: that is written, and both are run
    pairs = max(len(rounds), int(PASSES * stats.tokens / cost))
    text = text[:pairs, :length]
    calibrated = stats.tokens, stats.targets, stats.layers[-1].attention_sum
    asked = pairs, seed, tuple(candidates), MEASURED
    path = cache_path("search", ".json", FORMAT, loaded.fingerprint, loaded.model.dtype, *calibrated, text, *asked)
    if not (record := read_record(path)):
        generator = torch.Generator().manual_seed(2**20 * (seed + 1) - 1)  # as of no batch of `kept_samples`
        shape = 2 * pairs - len(text), length
        sampled = sample_texts(
            loaded.model, shape, TEMPERATURE, generator, lambda *done: report(Progress("samples", *done))
        ).to(text)
        parts = zip(text.tensor_split(len(rounds)), sampled.tensor_split(len(rounds)), strict=True)
        logs, read = _halved(loaded.model, stats, candidates, rounds, [torch.cat(part) for part in parts], report)
        name = min(logs, key=lambda other: (-len(logs[other]), sum(logs[other])))
        excess = {other: _excess(logs[other], logs[name]) for other in candidates if other != name}
        record = asdict(Choice(name, excess, (sampled.numel() + read) / stats.tokens))
        write_record(path, record, "the choice of an estimator")
    return Choice(**record)


def searched_estimator(
    loaded: LoadedModel,
    stats: CalibrationStats,
    windows: Windows,
    config: SliceConfig,
    search: SearchConfig,
    *,
    progress: ProgressOption = True,
) -> str:
    """The estimator, of a file in the cache, whose plan at `config.sparsity` has the ratios of `search_ratios`."""
    found = search_ratios(loaded, stats, windows, config, search=search, progress=progress)
    return register_importances(searched_importances(stats.profile, [found], config.estimator))


def _rounds(candidates: int) -> list[int]:
    """The number of candidates in each round: half of them, rounded up, reach the next one, until there are two."""
    return [candidates] if candidates <= 2 else [candidates, *_rounds((candidates + 1) // 2)]


def _halved(
    model: PreTrainedModel,
    stats: CalibrationStats,
    candidates: Sequence[str],
    rounds: Sequence[int],
    parts: Sequence[Tensor],
    report: ProgressCallback,
) -> tuple[dict[str, list[float]], int]:
    """Log KL of each candidate in every window of the rounds that it has reached, and the tokens that were run.

    `parts` has the windows of each round.
    """
    logs: dict[str, list[float]] = {name: [] for name in candidates}
    left, sliced, tokens = [*candidates], dict[str, PreTrainedModel](), 0
    cache = SliceCache.where_it_fits(model)
    for count, windows in zip(rounds, parts, strict=True):
        left = sorted(left, key=lambda name: sum(logs[name]))[:count]
        states = DenseStates(model)
        for name in left:
            if name not in sliced:
                plan = make_plan(stats.profile, replace(MEASURED, estimator=name))
                sliced[name] = slice_model(model, plan, stats, cache=cache, progress=report)
            losses = measure_losses(sliced[name], windows, f"KL {name}", states, progress=report)
            logs[name] += [log(max(divergence, SMALLEST)) for divergence in losses.divergences]
        sliced = {name: sliced[name] for name in left}
        tokens += (1 + count) * windows.numel()
    return logs, tokens


def _excess(logs: Sequence[float], best: Sequence[float]) -> list[float]:
    """By which fraction a candidate's KL is above that of the best on their common windows, and its standard error."""
    mean, error = mean_over_windows([other - lowest for other, lowest in zip(logs, best, strict=False)])
    return [expm1(mean), exp(mean) * (error or 0.0)]
