"""Prints docs/results/loops.csv: `python -m tests.loops FOLDER dense sliced distill distill-own`.

`tests.texts` writes the texts to FOLDER. After a recovery's name may follow how many times the default calibration's
text it trains on ("distill*17"); without, `TRAINING_TIMES`. With `--thorough` first, the slices of the default model at
0.3 are those of the thorough calibration and `output-error`, instead of the default one and `pca`.
"""

import csv
import sys
from pathlib import Path

import torch

import intraslice
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
from intraslice.samples import calibration_sequences
from intraslice.token_windows import TRAINING_TIMES, evaluation_tokens, training_tokens

TEXTS = {"Wikipedia": "default", "news": "lee.txt", "help topics": "help.txt", "Python source": "source.jsonl"}
TOKENS = 2048  # of each text
BATCH = 100  # answers


def main(folder: Path, names: list[str]) -> None:
    loaded = intraslice.load_model("default", torch.bfloat16)
    dense, config, estimator = loaded.model, CalibrationConfig(), "pca"
    calibration, suffix = config, ""
    if names[0] == "--thorough":
        calibration, estimator, suffix = CalibrationConfig.thorough(), "output-error", ", thorough"
        names = names[1:]
    stats = intraslice.calibrate(loaded, calibration_sequences(loaded, calibration), config.targets)
    plan = intraslice.make_plan(stats.profile, SliceConfig(0.3, order="one-shot", estimator=estimator))
    texts = [text if text == "default" else str(folder / text) for text in TEXTS.values()]
    windows = [evaluation_tokens(loaded.tokenizer, EvaluationConfig(text=text, tokens=TOKENS)) for text in texts]
    states = [DenseStates(dense) for _ in windows]
    prompts = tokens_of_prompts(loaded.tokenizer, len(PROMPTS))[FEW:]
    writer, (first, *others) = csv.writer(sys.stdout, lineterminator="\n"), TEXTS
    columns = ["answers that loop", "distinct 3-grams", "their loss", f"KL: {first}", *others]
    writer.writerow(["model", "dense passes", *columns])
    for name in names:
        model, passes = dense, ""
        if name != "dense":
            model = intraslice.slice_model(dense, plan, stats)
        if name not in ("dense", "sliced"):
            recovery, _, times = name.partition("*")
            text = training_tokens(loaded.tokenizer, config, times=int(times or TRAINING_TIMES))
            cost = cost_of(dense, model, text, recovery, 1, config.tokens)
            assert cost is not None
            name, passes = f"`{recovery}`", f"{cost.training:.1f}"
            intraslice.recover(dense, model, text, recovery)
        answers = []
        for start in range(0, len(prompts), BATCH):
            answers += greedy_answers(model, prompts[start : start + BATCH], may_end=False)
        of_answers = answer_statistics(answers, answers)
        cells = [f"{100 * of_answers.loops:g} %", f"{of_answers.distinct_3grams:.3f}"]
        cells.append(f"{answers_loss(dense, prompts, answers):.2f}")
        for tokens, kept in zip(windows, states, strict=True):
            divergence = measure_losses(model, tokens, dense=kept).divergence()
            assert divergence is not None
            cells.append("" if name == "dense" else f"{divergence.value:.3f} ± {divergence.standard_error:.3f}")
        writer.writerow([name + suffix, passes, *cells])
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
