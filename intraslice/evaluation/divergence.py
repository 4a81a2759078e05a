"""Kullback-Leibler divergence of a model's next-token distributions from those of the dense model, in nats.

Unlike the loss, it has no noise from the sampled labels. It is never negative, and near the dense model it grows with
the square of the change. The dense model's last hidden states are kept, and the head runs again for every model that is
compared with them: stored logits would take 85 times the memory for SmolLM2, and running the layers again four times
the time of the head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """KL(dense || other) of each token's distribution, from logits; in nats, at least 0."""
    dense, other = dense.log_softmax(-1), other.log_softmax(-1)
    return (dense - other).mul_(dense.exp()).sum(-1).clamp_min_(0)


@dataclass(frozen=True)
class DenseStates:
    """The dense model's last hidden states of every window, computed on first use and cached on the model's device."""

    model: PreTrainedModel
    _cached: dict[int, Float[Tensor, "scored hidden"]] = field(default_factory=dict)  # by window number

    @torch.no_grad()
    def of(
        self, windows: Int[Tensor, "windows window"], first: int, pause: Pause = no_pause
    ) -> Float[Tensor, "tokens hidden"]:
        """The states of consecutive windows, whose numbers begin at `first`.

        `pause` is called after each layer that has to run.
        """
        numbers = range(first, first + len(windows))
        if not all(number in self._cached for number in numbers):
            states = last_states(self.model, self.model.model.layers, embed(self.model, windows), pause)
            self._cached.update(zip(numbers, states.unflatten(0, (len(windows), -1)), strict=True))
        return torch.cat([self._cached[number] for number in numbers])


States = tuple[PreTrainedModel, Float[Tensor, "tokens hidden"]]  # a model, and the inputs of its head


def head_losses(
    model: PreTrainedModel,
    states: Float[Tensor, "tokens hidden"],
    targets: Int[Tensor, " tokens"],
    dense: States | None,
    pause: Pause = no_pause,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """Loss of each token from the inputs of the head and, with `dense`, divergence from the dense model, in nats.

    The logits of both models exist for a few tokens at a time; `pause` is called after each chunk.
    """
    losses: list[Tensor] = []
    kl: list[Tensor] = []
    dense_chunks = logits_in_chunks(dense[0].lm_head, dense[1]) if dense else None
    for logits, labels in logits_in_chunks(model.lm_head, states, targets.to(states.device)):
        losses.append(functional.cross_entropy(logits, labels, reduction="none"))
        if dense_chunks is not None:
            (dense_logits,) = next(dense_chunks)
            kl.append(divergences(dense_logits.to(logits.device), logits))
        pause()
    return torch.cat(losses).double(), torch.cat(kl).double() if kl else None
