"""Prints assets/speeds.csv: `python -m tests.speeds`, some ten minutes on one thread of an idle machine.

The default model and its slices at 0.3 take turns. A speed is the time per token relative to the dense model's in the
same run; below 1 is faster. KL is on Wikipedia.
"""

import csv
import sys
from dataclasses import replace

import torch

import intraslice
from components.state.leaderboard import SPARSITY, Timing
from intraslice.core.config import PRESETS, CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.evaluation.perplexity import DenseStates, measure_losses
from intraslice.evaluation.speed import SpeedConfig, measure_speed
from intraslice.methods.registry import plan_by, slice_by
from intraslice.samples import calibration_sequences
from intraslice.token_windows import evaluation_tokens

METHODS = ("intraslice", "flap", "wanda", "shortgpt", "shortgpt-rescaled", "crossmodule")
BATCHES = 1, 8  # sequences
TOKENS = 2048  # of Wikipedia


def main() -> None:
    torch.set_num_threads(1)
    loaded = intraslice.load_model("default", torch.bfloat16)
    tokens = calibration_sequences(loaded, CalibrationConfig())
    stats = intraslice.calibrate(loaded, tokens)
    config = SliceConfig(SPARSITY, order="one-shot")
    configs = {(name, ""): config for name in METHODS}
    configs |= {("intraslice", preset): replace(config, shapes=shapes) for preset, shapes in PRESETS.items()}
    models = {"dense ": loaded.model}
    for (method, preset), of_method in configs.items():
        plan = plan_by(method, loaded.model, stats, of_method)
        models[f"{method} {preset}"] = slice_by(method, loaded.model, plan, stats, tokens)
    windows, states = evaluation_tokens(loaded.tokenizer, EvaluationConfig(tokens=TOKENS)), DenseStates(loaded.model)
    speeds = [measure_speed(models, SpeedConfig(repeats=3, batch=batch)) for batch in BATCHES]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(Timing._fields)
    for label, model in models.items():
        divergence = measure_losses(model, windows, dense=states).divergence()
        assert divergence is not None
        times = [
            getattr(of_batch["dense "], phase) / getattr(of_batch[label], phase)
            for of_batch in speeds
            for phase in ("prefill", "decode")
        ]
        method, _, preset = label.partition(" ")
        writer.writerow([method, preset, f"{divergence.value:.2f}", *(f"{time:.2f}" for time in times)])


if __name__ == "__main__":
    main()
