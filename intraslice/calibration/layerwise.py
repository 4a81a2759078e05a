"""Calibration one layer at a time: all sequences pass through a layer before the weights of the next one are read.

A forward sweep keeps every layer's input and the moments; a backward sweep, from the last layer to the first, computes
each layer again from its input and carries the gradient of the hidden states. It costs one more forward. Batches and
their order are those of an ordinary calibration, so the statistics have the same bits.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.calibration.stats import MOMENTS, LayerStats, empty_stats, layer_sizes, profile_settings
from intraslice.core.cache import Steps
from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError
from intraslice.core.progress import Pause, Progress, ProgressCallback
from intraslice.modeling.counts import decoder_parameters
from intraslice.modeling.hidden_states import LayerArguments, Tokens, call_layer, device_of, embed, final_norm
from intraslice.modeling.offload import open_layer, resident
from intraslice.planning.profile import LayerProfile, Profile

Hidden = Float[Tensor, "sequences length hidden"]
LossGradient = Callable[[PreTrainedModel, Tensor, Tensor, Pause], Tensor]  # model, last hidden states, tokens
BY_SEQUENCE = ("attention_gradients", "mlp_gradients")  # one row per sequence
GRADIENTS = (*BY_SEQUENCE, "query_fisher", "mlp_fisher")
STATES = "states"  # name of the only tensor of some steps


@dataclass(frozen=True)
class LayerwiseCalibration:
    """The calibration of a model by `batch` sequences at a time, and its finished `steps`. Layer 0 is the first:

    states.N: the hidden states that enter layer N, or leave the last one; removed when the backward sweep is past it.
    moments.N: sums of the forward sweep.
    state_gradients.N: the gradient of the loss at states.N; removed when the next one is there.
    mask_gradients.N: sums and mask gradients of the backward sweep.
    """

    model: PreTrainedModel
    tokens: Tokens
    batch: int
    loss_gradient: LossGradient
    steps: Steps
    progress: ProgressCallback
    moments: Collection[str] = MOMENTS  # those that are collected

    def run(self) -> None:
        """Finish all steps. Raises NumericalError where gradients are not finite."""
        self._report(0, 0)
        steps, layers = self.steps, self._layers
        if "mask_gradients.0" not in steps:
            arguments = self._embed()
            for index in range(layers):
                if f"moments.{index}" not in steps:
                    self._pass(index, arguments, backward=False)
            if f"mask_gradients.{layers - 1}" not in steps and f"state_gradients.{layers}" not in steps:
                steps[f"state_gradients.{layers}"] = self._final_gradients()
            for index in reversed(range(layers)):
                if f"mask_gradients.{index}" not in steps:
                    self._pass(index, arguments, backward=True)
                    del steps[f"state_gradients.{index + 1}"], steps[f"states.{index + 1}"]
        self._report(2 * layers, 0)

    def stats(self, layer: int, moments: Collection[str] = MOMENTS) -> LayerStats:
        """The statistics of one layer, once all steps are finished; moments not among `moments` have no rows."""
        tensors = self.steps[f"moments.{layer}"] | self.steps[f"mask_gradients.{layer}"]
        tensors |= {name: torch.empty(0) for name in MOMENTS if name not in moments}
        arrays = {name: value.numpy() for name, value in tensors.items()}
        stats = LayerStats.unpacked(arrays, device_of(self.model))
        stats.mirror_()
        return stats

    @torch.no_grad()
    def profile(self, config: SliceConfig) -> Profile:
        """Inputs of a plan by `config`, whose estimator reads no moment of the MLP."""
        total = self._layers
        layers: list[LayerProfile] = []  # small, so those of all layers are in memory
        self.progress(Progress("profile", 0, total))
        for index in range(total):
            stats = self.stats(index, ("attention_moment",))
            stats.mlp_moment = torch.full((1, 1), torch.nan).expand(2 * [len(stats.mlp_sum)])  # takes no memory
            with open_layer(self.model, index) as (_, block):
                output_map, kv_head = block.attention.weights().output, block.attention.kv_head.tolist()
                sizes = layer_sizes(block)
                frequency = block.attention.frequency
                layers.append(stats.profile(sizes, output_map, kv_head, frequency, config, index, [config.estimator]))
            self.progress(Progress("profile", index + 1, total))
        other = sum(parameter.numel() for parameter in self.model.parameters()) - decoder_parameters(self.model)
        return Profile(tuple(layers), other, self.model.dtype.itemsize, *profile_settings(config))

    @property
    def _layers(self) -> int:
        return len(self.model.model.layers)

    def _batches(self) -> Iterator[tuple[slice, Tensor]]:
        """The rows of every batch, and their tokens on the device."""
        for start in range(0, len(self.tokens), self.batch):
            rows = slice(start, start + self.batch)
            yield rows, self.tokens[rows].to(device_of(self.model))

    def _report(self, sweeps: int, batches: int) -> None:
        """Report finished passes of one batch through one layer, from `sweeps` of all batches and some `batches`."""
        count = -(-len(self.tokens) // self.batch)
        self.progress(Progress("calibrate", sweeps * count + batches, 2 * self._layers * count))

    @torch.no_grad()
    def _embed(self) -> list[LayerArguments]:
        """What every layer is called with besides its input, by batch. The first run keeps the hidden states."""
        with resident(self.model.model.embed_tokens):
            embedded = [embed(self.model, batch) for _, batch in self._batches()]
        if "states.0" not in self.steps:
            self.steps["states.0"] = {STATES: torch.cat([states.hidden[0] for states in embedded])}
        return [states.arguments[0] for states in embedded]

    def _pass(self, index: int, arguments: list[LayerArguments], backward: bool) -> None:
        """Bring all batches through a layer: its outputs and moments, or the gradients at its inputs and its masks."""
        states, device = self.steps[f"states.{index}"][STATES], device_of(self.model)
        gradients = self.steps[f"state_gradients.{index + 1}"][STATES] if backward else states
        results = torch.empty_like(states)
        with open_layer(self.model, index) as (layer, block):
            stats = empty_stats(block, len(self.tokens) * backward, device, () if backward else self.moments)
            for done, ((rows, _), batch_arguments) in enumerate(zip(self._batches(), arguments, strict=True), 1):
                leaf = states[rows].to(device)
                if backward:
                    with torch.enable_grad(), stats.collecting_gradients(block, rows):
                        output = call_layer(layer, leaf.requires_grad_(), batch_arguments)
                        (results[rows],) = torch.autograd.grad(output, leaf, gradients[rows].to(device))
                else:
                    with torch.no_grad(), stats.collecting_moments(block):
                        results[rows] = call_layer(layer, leaf, batch_arguments)
                self._report(2 * self._layers - 1 - index if backward else index, done)
        if backward:
            require_finite(stats)
        names = [name for name in vars(stats) if (name in GRADIENTS) == backward]
        packed = {name: torch.from_numpy(stats.packed(name)) for name in names}
        del stats  # before its packed sums are copied to be written
        self.steps[f"state_gradients.{index}" if backward else f"states.{index + 1}"] = {STATES: results}
        self.steps[f"{'mask_gradients' if backward else 'moments'}.{index}"] = packed

    def _final_gradients(self) -> dict[str, Tensor]:
        """The gradient of the loss at the output of the last layer."""
        states, pause = self.steps[f"states.{self._layers}"][STATES], partial(self._report, self._layers, 0)
        gradients = torch.empty_like(states)
        with resident(self.model.lm_head):
            for rows, batch in self._batches():
                hidden = states[rows].to(batch.device)
                gradients[rows] = final_gradient(self.model, hidden, batch, self.loss_gradient, pause)
        return {STATES: gradients}


def require_finite(stats: LayerStats) -> None:
    """Raise NumericalError unless all gradients are finite."""
    if not all(torch.isfinite(getattr(stats, name)).all() for name in GRADIENTS):
        raise NumericalError("mask gradients are not finite; calibrate in float32, or on other text")


def final_gradient(
    model: PreTrainedModel, hidden: Hidden, batch: Tokens, loss_gradient: LossGradient, pause: Pause
) -> Hidden:
    """Gradient of the loss at the output of the last layer."""
    norm = final_norm(model)
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        normed = norm(leaf)
    (gradient,) = torch.autograd.grad(normed, leaf, loss_gradient(model, normed, batch, pause))
    return gradient
