"""Calibration tokens on their way through a model, layer by layer, so that a layer can be changed before the next."""

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

TOKENS_A_BATCH = 2048
Arguments = dict[str, Any]  # what a layer is called with besides the hidden states


class _Reached(Exception):
    """Thrown by the first layer once its inputs are known."""


@dataclass
class HiddenStates:
    """One hidden state a token, batch by batch, and what else a layer is called with."""

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
        """Replace the states of each batch, in place, by what the decoder layer makes of them."""
        self.map_(lambda hidden, arguments: layer(hidden, **arguments), pause)

    def add_(self, written: Iterable[Float[Tensor, "batch tokens hidden"]]) -> None:
        """Add to each batch, in place, what a module writes to it."""
        self.hidden = [hidden + added for hidden, added in zip(self.hidden, written, strict=True)]


def embed(model: PreTrainedModel, tokens: Int[Tensor, "sequences length"]) -> HiddenStates:
    """What enters the first layer, and the mask and position embeddings that transformers itself makes for it."""
    hidden_states = HiddenStates([], [])

    def catch(_: torch.nn.Module, inputs: tuple[Any, ...], keywords: Arguments) -> None:
        hidden_states.hidden.append(inputs[0])
        hidden_states.arguments.append({key: keywords[key] for key in ("attention_mask", "position_embeddings")})
        raise _Reached

    handle = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in tokens.split(max(1, TOKENS_A_BATCH // tokens.shape[1])):
            try:
                model.model(input_ids=batch.to(model.device), use_cache=False)
            except _Reached:
                continue
    finally:
        handle.remove()
    return hidden_states


def last_states(
    model: PreTrainedModel, layers: Iterable[torch.nn.Module], hidden_states: HiddenStates, pause: Pause = no_pause
) -> Float[Tensor, "tokens hidden"]:
    """What the head reads of every token but each sequence's last, after `layers` and the final norm.

    `hidden_states` are left as they are. `pause` is called after each layer of each batch.
    """
    norm = getattr(model.model, family_of(model.config).final_norm)
    states = []
    for hidden, arguments in zip(hidden_states.hidden, hidden_states.arguments, strict=True):
        for layer in layers:
            hidden = layer(hidden, **arguments)
            pause()
        states.append(norm(hidden)[:, :-1].flatten(0, 1))
    return torch.cat(states)
