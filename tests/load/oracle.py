"""What the library says of every setting that a client asks for, computed beforehand and alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import intraslice as sl
from components.state.settings import PROMPT, Settings
from intraslice.evaluation.perplexity import measure_losses
from intraslice.pretrained.precision import choose_dtype

SEQUENCES, LENGTH, EVALUATED = 8, 128, 2560
SPARSITIES = tuple(range(10, 60, 5))
MEASURED = (20, 40)  # the sparsities that are sliced
NEW = 8


@dataclass(frozen=True)
class Truth:
    """Of one seed: ratios (layer, attention and MLP) by sparsity, perplexities and answers of those that are sliced."""

    ratios: dict[int, list[tuple[float, float]]]
    perplexity: dict[int, float]
    dense: float
    answers: dict[int, str]


def asked(seed: int, sparsity: float) -> Settings:
    """The page's settings of a client."""
    return Settings(sequences=SEQUENCES, length=LENGTH, seed=seed, sparsity=sparsity, dtype=choose_dtype())


def truths(seeds: int) -> list[Truth]:
    """One a seed."""
    loaded = sl.load_model("default", getattr(torch, choose_dtype()))
    evaluation = sl.EvaluationConfig("default", EVALUATED, LENGTH)
    windows = sl.evaluation_tokens(loaded.tokenizer, evaluation, "default")
    dense = _perplexity(loaded.model, windows)
    return [_truth(loaded, windows, dense, seed) for seed in range(1, seeds + 1)]


def _truth(loaded: sl.LoadedModel, windows: torch.Tensor, dense: float, seed: int) -> Truth:
    tokens = sl.calibration_tokens(
        loaded.tokenizer, sl.CalibrationConfig("default", SEQUENCES, LENGTH, seed), "default"
    )
    stats = sl.calibrate(loaded, tokens, progress=False)
    configs = {sparsity: sl.SliceConfig(sparsity / 100, order="one-shot") for sparsity in SPARSITIES}
    plans = {sparsity: sl.make_plan(stats.profile, config) for sparsity, config in configs.items()}
    perplexity, answers = {}, {}
    for sparsity in MEASURED:
        model = sl.slice_model(loaded.model, plans[sparsity], stats, tokens, progress=False)
        perplexity[sparsity] = _perplexity(model, windows)
        answers[sparsity] = "".join(sl.generate_text(model, loaded.tokenizer, PROMPT, NEW))
    ratios = {
        sparsity: [(layer.attention_ratio, layer.mlp_ratio) for layer in plan.layers]
        for sparsity, plan in plans.items()
    }
    return Truth(ratios, perplexity, dense, answers)


def _perplexity(model: torch.nn.Module, windows: torch.Tensor) -> float:
    return measure_losses(model, windows, progress=False).perplexity().value
