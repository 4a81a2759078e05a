"""Rows of docs/results/loops.csv: `python -m tests.loops FOLDER NAME...`; `tests.texts` writes the texts to FOLDER.

A name is "dense", "sliced" or a recovery's, on so many times the calibration's text ("distill*18"), by default
`TRAINING_TIMES`. Prints the rows of the default model, sliced at 0.3.
"""

import csv
import sys
from pathlib import Path

import torch

import intraslice
from intraslice import data
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.evaluation.answers import (
    FEW,
    PROMPTS,
    answer_statistics,
    answers_loss,
    greedy_answers,
    tokens_of_prompts,
)
from intraslice.evaluation.perplexity import DenseStates, measure_losses
from intraslice.recovery.registry import cost_of

TOKENS = 2048
BATCH = 100  # answers


def main(folder: Path, names: list[str]) -> None:
    loaded = intraslice.load_model("default", torch.bfloat16)
    dense, config = loaded.model, CalibrationConfig()
    stats = intraslice.calibrate(loaded, data.calibration_tokens(loaded.tokenizer, config), config.targets)
    plan = intraslice.make_plan(stats.profile, SliceConfig(0.3, order="one-shot", estimator="pca"))
    texts = ["default", *(str(folder / name) for name in ("lee.txt", "help.txt", "source.jsonl"))]
    windows = [data.evaluation_tokens(loaded.tokenizer, EvaluationConfig(text=text, tokens=TOKENS)) for text in texts]
    states = [DenseStates(dense) for _ in windows]
    prompts = tokens_of_prompts(loaded.tokenizer, len(PROMPTS))[FEW:]
    for name in names:
        model, passes = dense, ""
        if name != "dense":
            model = intraslice.slice_model(dense, plan, stats)
        if name not in ("dense", "sliced"):
            recovery, _, times = name.partition("*")
            text = data.training_tokens(loaded.tokenizer, config, times=int(times or data.TRAINING_TIMES))
            cost = cost_of(dense, model, text, recovery, 1, config.tokens)
            assert cost is not None
            name, passes = f"`{recovery}`", f"{cost.training:.1f}"
            intraslice.recover(dense, model, text, recovery)
        answers = []
        for start in range(0, len(prompts), BATCH):
            answers += greedy_answers(model, prompts[start : start + BATCH], may_end=False)
        of_answers = answer_statistics(answers, answers)
        cells = [f"{of_answers.loops:.1%}".replace("%", " %"), f"{of_answers.distinct_3grams:.3f}"]
        cells.append(f"{answers_loss(dense, prompts, answers):.2f}")
        for tokens, kept in zip(windows, states, strict=True):
            divergence = measure_losses(model, tokens, dense=kept).divergence()
            assert divergence is not None
            cells.append("" if name == "dense" else f"{divergence.value:.3f} ± {divergence.standard_error:.3f}")
        csv.writer(sys.stdout).writerow([name, passes, *cells])
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
