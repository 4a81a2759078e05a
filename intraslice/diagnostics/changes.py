"""One layer of a model changed at a time: how far each changed model is from the dense one.

Each forward starts at the changed layer, and each finished change is kept on disk, so that a run that was stopped goes
on where it was.
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

from intraslice.core.progress import Pause, Progress, ProgressCallback, progress_callback
from intraslice.core.records import keep_record, kept_record
from intraslice.distributed.sharing import from_first, gathered, rank, size
from intraslice.evaluation.divergence import read_head
from intraslice.modeling.hidden_states import embed, last_states


@dataclass(frozen=True)
class Change:
    """What one layer becomes. It is made when its turn comes, and let go afterwards."""

    layer: int
    make: Callable[[], nn.Module]


@dataclass(frozen=True)
class Reading:
    """A model on equal windows: means over each window's scored tokens, in nats."""

    divergences: tuple[float, ...]  # KL, dense to this model
    losses: tuple[float, ...]
    parameters: int = 0  # of the changed layer


@dataclass(frozen=True)
class Readings:
    """The model that is changed, and what it is after each change alone."""

    base: Reading
    changed: tuple[Reading, ...]


def measure_changes(
    dense: PreTrainedModel,
    base: PreTrainedModel,
    changes: Sequence[Change],
    tokens: Int[Tensor, "windows window"],
    path: Path,
    stage: str,
    *,
    progress: ProgressCallback | bool = True,
) -> Readings:
    """Measure `base`, and `base` with each of the changes alone.

    Changes come in the order of their layers. Finished ones are kept at `path`, whose name must depend on all that they
    depend on. Costs about half a forward a change, and memory for two hidden states a token. Several processes take
    turns at the changes, and all get all results. `progress` counts changes.
    """
    report = progress_callback(progress)
    readings = _known(from_first(kept_record(path)))
    done = list(readings.changed) if readings else []
    report(Progress(stage, len(done), len(changes)))
    if len(done) < len(changes):

        def pause() -> None:
            report(Progress(stage, len(done), len(changes)))

        def keep(base_reading: Reading, fresh: list[Reading]) -> None:
            nonlocal readings
            done.extend(fresh)
            readings = Readings(base_reading, tuple(done))
            if rank() == 0:
                keep_record(path, asdict(readings), "what changed modules cost, so far")
            pause()

        _measure(dense, base, changes[len(done) :], tokens, keep, pause)
    if readings is None:
        raise ValueError("there are no changes to measure; give at least one")
    return readings


def kept_changes(path: Path, count: int) -> Readings | None:
    """What `measure_changes` would only read from the disk; None while any of so many is still to be measured."""
    readings = _known(kept_record(path))
    return readings if readings and len(readings.changed) == count else None


def _known(record: dict[str, Any]) -> Readings | None:
    def reading(kept: dict[str, Any]) -> Reading:
        return Reading(tuple(kept["divergences"]), tuple(kept["losses"]), kept["parameters"])

    return Readings(reading(record["base"]), tuple(map(reading, record["changed"]))) if record else None


@torch.no_grad()
def _measure(
    dense: PreTrainedModel,
    base: PreTrainedModel,
    changes: Sequence[Change],
    tokens: Int[Tensor, "windows window"],
    keep: Callable[[Reading, list[Reading]], None],
    pause: Pause,
) -> None:
    """Give `keep` the reading of `base` and those of its changes, in order, as many at a time as there are processes.

    `pause` is called after each layer of each batch, and after each chunk of logits.
    """
    layers, targets = base.model.layers, tokens[:, 1:].flatten()
    hidden_states = embed(base, tokens)

    def last(model: PreTrainedModel, layers: Iterable[nn.Module]) -> Tensor:
        return last_states(model, layers, hidden_states, pause)

    dense_states = last(dense, dense.model.layers)

    def read(states: Tensor, parameters: int) -> Reading:
        losses, divergences = read_head(base, states, targets, (dense, dense_states), pause)
        by_window = [tuple(values.view(len(tokens), -1).mean(1).tolist()) for values in (divergences, losses)]
        return Reading(by_window[0], by_window[1], parameters)

    base_states = dense_states if base is dense else last(base, layers)
    base_reading = read(base_states, 0)
    turn, reached, found = 0, 0, []
    for number, change in enumerate(changes, 1):
        for layer in layers[reached : change.layer]:
            hidden_states.pass_through_(layer, pause)
        reached = change.layer
        if turn == rank():
            changed = change.make()
            pause()
            states = last(base, [changed, *layers[change.layer + 1 :]])
            found.append(read(states, parameters_in(changed)))
        turn += 1
        if turn == size() or number == len(changes):
            keep(base_reading, gathered(found))
            turn, found = 0, []


def parameters_in(layer: nn.Module) -> int:
    """Parameters of one layer, as its tensors have them."""
    return sum(parameter.numel() for parameter in layer.parameters())
