"""How far a model is from the dense one: Kullback-Leibler divergence of its next-token distributions, in nats.

It has no noise of the text's own next tokens, is never below zero, and near the dense model grows with the square of
what was changed. For it the dense model's last hidden states are kept, `hidden` numbers a token, and go through the
head once more for every model held against them: logits kept would be the vocabulary's numbers a token (85 times as
many for SmolLM2), and layers run again would cost four times what the head does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import overload

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.core.progress import Pause, no_pause
from intraslice.modeling.hidden_states import embed, last_states
from intraslice.modeling.logits import logits_in_chunks


def divergences(
    dense: Float[Tensor, "tokens vocabulary"], other: Float[Tensor, "tokens vocabulary"]
) -> Float[Tensor, " tokens"]:
    """KL(dense || other) of each token's distribution, given as logits; in nats, never below zero. Pure."""
    dense, other = dense.log_softmax(-1), other.log_softmax(-1)
    return (dense - other).mul_(dense.exp()).sum(-1).clamp_min_(0)


@dataclass(frozen=True)
class DenseStates:
    """The dense model's last hidden states of every window, computed on first use and kept on the model's device."""

    model: PreTrainedModel
    _kept: dict[int, Float[Tensor, "scored hidden"]] = field(default_factory=dict)  # by the window's number

    @torch.no_grad()
    def of(
        self, windows: Int[Tensor, "windows window"], first: int, pause: Pause = no_pause
    ) -> Float[Tensor, "tokens hidden"]:
        """The states of consecutive windows, the first of which has the number `first`.

        `pause` is called after each layer that has to run.
        """
        numbers = range(first, first + len(windows))
        if not all(number in self._kept for number in numbers):
            states = last_states(self.model, self.model.model.layers, embed(self.model, windows), pause)
            self._kept.update(zip(numbers, states.unflatten(0, (len(windows), -1)), strict=True))
        return torch.cat([self._kept[number] for number in numbers])


States = tuple[PreTrainedModel, Float[Tensor, "tokens hidden"]]  # a model, and what its head reads


@overload
def read_head(
    model: PreTrainedModel, states: Tensor, targets: Tensor, dense: States, pause: Pause = no_pause
) -> tuple[Tensor, Tensor]: ...


@overload
def read_head(
    model: PreTrainedModel, states: Tensor, targets: Tensor, dense: States | None, pause: Pause = no_pause
) -> tuple[Tensor, Tensor | None]: ...


def read_head(
    model: PreTrainedModel,
    states: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    dense: States | None,
    pause: Pause = no_pause,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """Each token's loss from the states that the head reads, and its divergence from a dense model's, in nats.

    Both models' logits exist for a few tokens at a time; `pause` is called after each chunk.
    """
    losses: list[Tensor] = []
    distances: list[Tensor] = []
    dense_chunks = logits_in_chunks(*dense) if dense else None
    for logits, following in logits_in_chunks(model, states, targets.to(states.device)):
        losses.append(functional.cross_entropy(logits, following, reduction="none"))
        if dense_chunks is not None:
            (dense_logits,) = next(dense_chunks)
            distances.append(divergences(dense_logits.to(logits.device), logits))
        pause()
    return torch.cat(losses).double(), torch.cat(distances).double() if distances else None
