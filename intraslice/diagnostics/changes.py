"""KL divergence and loss of a model with one layer replaced at a time.

Each forward starts at the replaced layer. Finished changes are cached, so that an interrupted run continues where it
stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.core.cache import read_record, write_record
from intraslice.core.progress import Pause, Progress, ProgressCallback, progress_callback
from intraslice.evaluation.perplexity import head_losses
from intraslice.modeling.hidden_states import embed, last_states


@dataclass(frozen=True)
class Change:
    """A replacement for one layer, built by `make` when it is measured and freed afterwards."""

    layer: int
    make: Callable[[], nn.Module]


@dataclass(frozen=True)
class Measurement:
    """One model on windows of equal length: means over each window's scored tokens, in nats."""

    divergences: tuple[float, ...]  # KL, dense to this model
    losses: tuple[float, ...]
    parameters: int = 0  # of the replaced layer


@dataclass(frozen=True)
class Measurements:
    """Measurements of the unchanged model, and of the model with each change alone."""

    base: Measurement
    changed: tuple[Measurement, ...]


def measure_changes(
    dense: PreTrainedModel,
    base: PreTrainedModel,
    changes: Sequence[Change],
    tokens: Int[Tensor, "windows window"],
    path: Path,
    stage: str,
    *,
    progress: ProgressCallback | bool = True,
) -> Measurements:
    """Measure `base`, and `base` with each of the changes alone.

    Costs about half a forward per change, and memory for two hidden states per token. `progress` counts changes.

    Args:
        changes: in the order of their layers.
        path: of the cached results; its name must depend on everything that they depend on.
    """
    report = progress_callback(progress)
    measurements = _parse(read_record(path))
    done = list(measurements.changed) if measurements else []
    report(Progress(stage, len(done), len(changes)))
    if len(done) < len(changes):

        def pause() -> None:
            report(Progress(stage, len(done), len(changes)))

        def store(base_measurement: Measurement, new: Measurement) -> None:
            nonlocal measurements
            done.append(new)
            measurements = Measurements(base_measurement, tuple(done))
            write_record(path, asdict(measurements), "the measurements of changed modules")
            pause()

        _measure(dense, base, changes[len(done) :], tokens, store, pause)
    if measurements is None:
        raise ValueError("changes is empty; expected at least one")
    return measurements


def cached_changes(path: Path, count: int) -> Measurements | None:
    """The cached result of `measure_changes` if all `count` changes are measured, else None."""
    measurements = _parse(read_record(path))
    return measurements if measurements and len(measurements.changed) == count else None


def _parse(record: dict[str, Any]) -> Measurements | None:
    def measurement(values: dict[str, Any]) -> Measurement:
        return Measurement(tuple(values["divergences"]), tuple(values["losses"]), values["parameters"])

    return Measurements(measurement(record["base"]), tuple(map(measurement, record["changed"]))) if record else None


@torch.no_grad()
def _measure(
    dense: PreTrainedModel,
    base: PreTrainedModel,
    changes: Sequence[Change],
    tokens: Int[Tensor, "windows window"],
    store: Callable[[Measurement, Measurement], None],
    pause: Pause,
) -> None:
    """Call `store` with the measurement of `base` and that of each change, in order.

    `pause` is called after each layer of each batch, and after each chunk of logits.
    """
    layers, targets = base.model.layers, tokens[:, 1:].flatten()
    hidden_states = embed(base, tokens)

    def final_states(model: PreTrainedModel, layers: Iterable[nn.Module]) -> Tensor:
        return last_states(model, layers, hidden_states, pause)

    dense_states = final_states(dense, dense.model.layers)

    def measure(states: Tensor, parameters: int) -> Measurement:
        losses, divergences = head_losses(base, states, targets, (dense, dense_states), pause)
        assert divergences is not None  # `dense_states` are given
        by_window = [tuple(values.view(len(tokens), -1).mean(1).tolist()) for values in (divergences, losses)]
        return Measurement(by_window[0], by_window[1], parameters)

    base_states = dense_states if base is dense else final_states(base, layers)
    base_measurement = measure(base_states, 0)
    next_layer = 0
    for change in changes:
        for layer in layers[next_layer : change.layer]:
            hidden_states.pass_through_(layer, pause)
        next_layer = change.layer
        changed = change.make()
        pause()
        states = final_states(base, [changed, *layers[change.layer + 1 :]])
        store(base_measurement, measure(states, parameters_in(changed)))


def parameters_in(layer: nn.Module) -> int:
    """Parameters of one layer, counted from its tensors."""
    return sum(parameter.numel() for parameter in layer.parameters())
