"""Calibration one layer at a time: all sequences pass through a layer before the next one is read.

A forward sweep keeps every layer's input and the moments that slicing needs; a backward sweep, from the last layer to
the first, computes each layer again from its input and carries the gradient of the hidden states. Batches and their
order are those of an ordinary calibration, so the statistics have the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from intraslice.calibration.driver import GRADIENTS, SEED, next_token_gradient, sequences_per_batch
from intraslice.calibration.hooks import collecting_gradients, collecting_moments
from intraslice.calibration.layerwise import final_gradient
from intraslice.calibration.stats import MOMENTS, LayerStats, empty_stats
from intraslice.core.config import Targets
from intraslice.core.errors import NumericalError
from intraslice.core.linalg import gradient_of
from intraslice.core.progress import Progress, ProgressCallback
from intraslice.modeling.hidden_states import LayerArguments, call_layer, embed
from intraslice.streaming.journal import Journal
from intraslice.streaming.weights import StreamedModel

KEPT_MOMENTS = ("attention_moment", "mlp_moment")  # what the method intraslice reads


@dataclass(frozen=True)
class StreamedCalibration:
    """One calibration of a model on disk. The steps in `journal`, where layer 0 is the first:

    states.N: the hidden states that enter layer N, or leave the last one; removed when the backward sweep is past it.
    moments.N: sums of the forward sweep.
    state_gradients.N: the gradient of the loss at states.N; removed when the next one is written.
    mask_gradients.N: sums and mask gradients of the backward sweep.
    """

    dense: StreamedModel
    tokens: Int[Tensor, "sequences length"]
    targets: Targets
    journal: Journal
    progress: ProgressCallback

    def run(self) -> None:
        """Finish all steps. Raises NumericalError where gradients are not finite."""
        if not self.journal.is_finished("mask_gradients.0"):
            arguments = self._embed()
            self._forward(arguments)
            self._backward(arguments)
        self._report(2 * self.dense.layers, 0)

    def stats(self, layer: int, moments: tuple[str, ...] = KEPT_MOMENTS) -> LayerStats:
        """The statistics of one layer; moments that are not among `moments` have no rows."""
        tensors = self.journal.read(f"moments.{layer}") | self.journal.read(f"mask_gradients.{layer}")
        tensors |= {name: torch.empty(0) for name in MOMENTS if name not in moments}
        device = torch.device(self.dense.device)
        stats = LayerStats.unpacked({name: tensor.numpy() for name, tensor in tensors.items()}, device)
        stats.mirror_()
        return stats

    @property
    def _batches(self) -> tuple[Tensor, ...]:
        return self.tokens.to(self.dense.device).split(sequences_per_batch(self.tokens))

    def _report(self, sweeps: int, batches: int) -> None:
        """Report finished passes of one batch through one layer, from `sweeps` of all batches and some `batches`."""
        count = len(self._batches)
        self.progress(Progress("calibrate", sweeps * count + batches, 2 * self.dense.layers * count))

    @torch.no_grad()
    def _embed(self) -> list[LayerArguments]:
        """What every layer is called with besides its input, by batch. The first run keeps the hidden states."""
        with self.dense.outer_weights():
            embedded = [embed(self.dense.model, batch) for batch in self._batches]
        if not self.journal.is_finished("states.0") and not self.journal.is_finished("moments.0"):
            self.journal.write_batches("states.0", [states.hidden[0] for states in embedded])
        return [states.arguments[0] for states in embedded]

    def _forward(self, arguments: list[LayerArguments]) -> None:
        states: list[Tensor] = []
        for index in range(self.dense.layers):
            if self.journal.is_finished(f"moments.{index}"):
                continue
            states = states or self.journal.read_batches(f"states.{index}")
            moments = self._forward_through(index, arguments, states)
            self.journal.write_batches(f"states.{index + 1}", states)
            self.journal.write(f"moments.{index}", moments)
            del moments  # before those of the next layer are made

    @torch.no_grad()
    def _forward_through(self, index: int, arguments: list[LayerArguments], states: list[Tensor]) -> dict[str, Tensor]:
        """Sums of one layer, packed; replaces the `states` that enter it by those that leave it, in place."""
        with self.dense.layer(index) as (layer, block):
            stats = empty_stats(block, 0, torch.device(self.dense.device), KEPT_MOMENTS)
            for batch, batch_arguments in enumerate(arguments):
                with collecting_moments(block, stats):
                    states[batch] = call_layer(layer, states[batch].to(self.dense.device), batch_arguments)
                self._report(index, batch + 1)
        return _packed(stats, gradients=False)

    def _backward(self, arguments: list[LayerArguments]) -> None:
        last = self.dense.layers - 1
        unfinished = [index for index in range(last + 1) if not self.journal.is_finished(f"mask_gradients.{index}")]
        if unfinished[-1] == last and not self.journal.is_finished(f"state_gradients.{last + 1}"):
            self._start_backward()
        gradients = self.journal.read_batches(f"state_gradients.{unfinished[-1] + 1}")
        for index in reversed(unfinished):
            sums = self._backward_through(index, arguments, gradients)
            self.journal.write_batches(f"state_gradients.{index}", gradients)
            self.journal.write(f"mask_gradients.{index}", sums)
            self.journal.remove(f"state_gradients.{index + 1}")
            self.journal.remove(f"states.{index + 1}")

    def _start_backward(self) -> None:
        """Keep the gradient of the loss at the output of the last layer."""
        states = self.journal.read_batches(f"states.{self.dense.layers}")
        generator = None
        if self.targets == "sampled":
            generator = torch.Generator(self.dense.device).manual_seed(SEED)
        loss_gradient = partial(next_token_gradient, generator=generator)
        pause = partial(self._report, self.dense.layers, 0)
        with self.dense.outer_weights():
            gradients = [
                final_gradient(self.dense.model, hidden.to(self.dense.device), batch, loss_gradient, pause)
                for hidden, batch in zip(states, self._batches, strict=True)
            ]
        self.journal.write_batches(f"state_gradients.{self.dense.layers}", gradients)

    def _backward_through(
        self, index: int, arguments: list[LayerArguments], gradients: list[Tensor]
    ) -> dict[str, Tensor]:
        """Sums of one layer, packed; replaces the `gradients` of its outputs by those of its inputs, in place."""
        states = self.journal.read_batches(f"states.{index}")
        with self.dense.layer(index) as (layer, block):
            stats = empty_stats(block, len(self.tokens), torch.device(self.dense.device), ())
            done = 0
            for batch, batch_arguments in enumerate(arguments):
                rows = slice(done, done + len(states[batch]))
                with torch.enable_grad(), collecting_gradients(block, stats, rows):
                    leaf = states[batch].to(self.dense.device).requires_grad_()
                    output = call_layer(layer, leaf, batch_arguments)
                    output.backward(gradients[batch].to(self.dense.device))
                gradients[batch] = gradient_of(leaf)
                done = rows.stop
                self._report(2 * self.dense.layers - 1 - index, batch + 1)
        if not all(torch.isfinite(getattr(stats, name)).all() for name in GRADIENTS):
            raise NumericalError("mask gradients are not finite; calibrate in float32, or on other text")
        return _packed(stats, gradients=True)


def _packed(stats: LayerStats, gradients: bool) -> dict[str, Tensor]:
    """The packed sums of the backward sweep, or those of the forward sweep."""
    arrays = ((name, array) for name, array in stats.packed() if (name in GRADIENTS) == gradients)
    return {name: torch.from_numpy(array).reshape(array.shape) for name, array in arrays}
