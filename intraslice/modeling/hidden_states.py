"""Runs calibration tokens through a model layer by layer, so that a layer can be changed before the next one runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.core.progress import Pause, no_pause
from intraslice.modeling.families import family_of

TOKENS_PER_BATCH = 2048
Arguments = dict[str, Any]  # what a layer is called with besides the hidden states


class _InputsCaptured(Exception):
    """Raised by a hook on the first layer, to skip the rest of the forward."""


@dataclass
class HiddenStates:
    """One hidden state per token, batch by batch, and the other arguments of a layer."""

    hidden: list[Float[Tensor, "batch tokens hidden"]]
    arguments: list[Arguments]  # attention mask and position embeddings of each batch

    def normed(self, norm: torch.nn.Module) -> Iterator[tuple[Tensor, Arguments]]:
        """The states of each batch (batch, tokens, hidden) through `norm`, with the batch's arguments."""
        for hidden, arguments in zip(self.hidden, self.arguments, strict=True):
            yield norm(hidden), arguments

    def map_(self, change: Callable[[Tensor, Arguments], Tensor], pause: Pause = no_pause) -> None:
        """Replace the states of each batch, in place, by `change(states, arguments)`; `pause` is called after each."""
        for index, (hidden, arguments) in enumerate(zip(self.hidden, self.arguments, strict=True)):
            self.hidden[index] = change(hidden, arguments)
            pause()

    def pass_through_(self, layer: torch.nn.Module, pause: Pause = no_pause) -> None:
        """Replace the states of each batch, in place, by the output of the decoder layer."""
        self.map_(lambda hidden, arguments: layer(hidden, **arguments), pause)

    def add_(self, outputs: Iterable[Float[Tensor, "batch tokens hidden"]]) -> None:
        """Add a module's outputs to the states, in place, batch by batch."""
        self.hidden = [hidden + output for hidden, output in zip(self.hidden, outputs, strict=True)]


def embed(model: PreTrainedModel, tokens: Int[Tensor, "sequences length"]) -> HiddenStates:
    """The inputs of the first layer, with the mask and position embeddings that transformers computes for it."""
    hidden_states = HiddenStates([], [])

    def capture(_: torch.nn.Module, inputs: tuple[Any, ...], keywords: Arguments) -> None:
        hidden_states.hidden.append(inputs[0])
        hidden_states.arguments.append({key: keywords[key] for key in ("attention_mask", "position_embeddings")})
        raise _InputsCaptured

    handle = model.model.layers[0].register_forward_pre_hook(capture, with_kwargs=True)
    try:
        for batch in tokens.split(max(1, TOKENS_PER_BATCH // tokens.shape[1])):
            try:
                model.model(input_ids=batch.to(model.device), use_cache=False)
            except _InputsCaptured:
                continue
    finally:
        handle.remove()
    return hidden_states


def last_states(
    model: PreTrainedModel, layers: Iterable[torch.nn.Module], hidden_states: HiddenStates, pause: Pause = no_pause
) -> Float[Tensor, "tokens hidden"]:
    """Inputs of the head, after `layers` and the final norm, for every token except the last of each sequence.

    Does not modify `hidden_states`. `pause` is called after each layer of each batch.
    """
    norm = getattr(model.model, family_of(model.config).final_norm)
    states = []
    for hidden, arguments in zip(hidden_states.hidden, hidden_states.arguments, strict=True):
        for layer in layers:
            hidden = layer(hidden, **arguments)
            pause()
        states.append(norm(hidden)[:, :-1].flatten(0, 1))
    return torch.cat(states)
