"""Prints docs/results/speeds.csv: `python -m tests.speeds`, some ten minutes on one thread of an idle machine.

The default model and its slices at 0.3 take turns. A speed is the time per token relative to the dense model's in the
same run; below 1 is faster. KL is on Wikipedia, accuracy that of assets/tasks.csv.
"""

import csv
import sys

import torch

import intraslice
from components.state.task_scores import comparable, mean_accuracy, scores
from intraslice.core.config import PRESETS, CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.evaluation.perplexity import DenseStates, measure_losses
from intraslice.evaluation.speed import SpeedConfig, measure_speed
from intraslice.methods.registry import plan_by, slice_by
from intraslice.samples import calibration_sequences
from intraslice.texts import evaluation_tokens

METHODS = ("intraslice", "flap", "wanda", "shortgpt", "shortgpt-rescaled", "crossmodule")
BATCHES = 1, 8  # sequences
TOKENS = 2048  # of Wikipedia


def main() -> None:
    torch.set_num_threads(1)
    loaded = intraslice.load_model("default", torch.bfloat16)
    tokens = calibration_sequences(loaded, CalibrationConfig())
    stats = intraslice.calibrate(loaded, tokens)
    config = SliceConfig(0.3, order="one-shot")
    configs = {f"`{name}`": (name, config) for name in METHODS}
    for name, shapes in PRESETS.items():
        configs[f"`intraslice --align {name}`"] = "intraslice", SliceConfig(0.3, order="one-shot", shapes=shapes)
    models = {"dense": loaded.model}
    for label, (method, of_method) in configs.items():
        plan = plan_by(method, loaded.model, stats, of_method)
        models[label] = slice_by(method, loaded.model, plan, stats, tokens)
    windows, states = evaluation_tokens(loaded.tokenizer, EvaluationConfig(tokens=TOKENS)), DenseStates(loaded.model)
    speeds = {batch: measure_speed(models, SpeedConfig(repeats=3, batch=batch)) for batch in BATCHES}
    accuracies = {
        (method, sparsity): mean_accuracy(rows)[0]
        for (method, _, recovery, _, _, sparsity), rows in comparable(scores(), "default").items()
        if recovery == "none"
    }
    writer = csv.writer(sys.stdout, lineterminator="\n")
    heads = [f"{phase}, batch {batch}" for batch in BATCHES for phase in ("prefill", "decode")]
    writer.writerow(["model", "KL", "mean accuracy", *heads])
    for label, model in models.items():
        divergence = measure_losses(model, windows, dense=states).divergence()
        assert divergence is not None
        times = [
            getattr(of_batch["dense"], phase) / getattr(of_batch[label], phase)
            for of_batch in speeds.values()
            for phase in ("prefill", "decode")
        ]
        method, of_method = configs.get(label, ("dense", SliceConfig(0.0)))
        accuracy = accuracies.get((method, of_method.sparsity)) if of_method.shapes == SliceConfig.shapes else None
        cells = ["" if accuracy is None else f"{100 * accuracy:.1f}", *(f"{time:.2f}" for time in times)]
        writer.writerow([label, f"{divergence.value:.2f}", *cells])


if __name__ == "__main__":
    main()
