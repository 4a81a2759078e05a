"""What a model is worth: the loss of every token, perplexity, and how sure either is."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.modeling.logits import logits_in_chunks
from intraslice.progress import Progress

TOKENS_A_BATCH = 512
BLOCK = 64  # tokens; losses of neighbours hang together, those of such blocks hardly


class Estimate(NamedTuple):
    """A number with its standard error, None where too little was read to know it."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Losses(Progress):
    """What is known of a model's losses after `done` of `total` windows: sums over blocks of tokens, in nats.

    Every window has blocks of the same sizes, so that two models that read the same text can be paired.
    """

    sums: tuple[tuple[float, ...], ...] = ()  # (windows, blocks)
    sizes: tuple[int, ...] = ()  # tokens of each block

    def perplexity(self) -> Estimate:
        """`exp` of the mean loss, with the standard error of the mean over blocks. Of one block there is no error."""
        return _exponential(self.sums, self.sizes)

    def ratio(self, dense: Losses) -> Estimate:
        """This perplexity over the dense model's on the same windows, with its paired, and so much smaller, error."""
        pairs = zip(self.sums, dense.sums, strict=False)  # one of them may have read further
        differences = [[ours - theirs for ours, theirs in zip(*pair, strict=True)] for pair in pairs]
        return _exponential(differences, self.sizes)


def _exponential(sums: Sequence[Sequence[float]], sizes: Sequence[int]) -> Estimate:
    totals, counts = torch.tensor(sums, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    value = (totals.sum() / (len(totals) * counts.sum())).exp().item()  # infinite where math.exp would raise
    blocks = (totals / counts).flatten()
    error = value * blocks.std().item() / len(blocks) ** 0.5 if len(blocks) > 1 else math.nan
    return Estimate(value, error if math.isfinite(error) else None)


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"]
) -> Float[Tensor, "windows window_minus_one"]:
    """Negative log-probability, in nats, of every token but the first of each window."""
    hidden = model.model(input_ids=tokens.to(model.device), use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
    targets = tokens[:, 1:].to(model.device).flatten()
    losses = [
        functional.cross_entropy(logits, following, reduction="none")
        for logits, following in logits_in_chunks(model, hidden, targets)
    ]
    return torch.cat(losses).view(len(tokens), -1)


def measure_losses(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"], stage: str = "evaluate"
) -> Generator[Losses, None, Losses]:
    """Losses of all windows; yields what is known after each batch. The first token of a window is not scored."""
    scored = tokens.shape[1] - 1
    count = max(1, round(scored / BLOCK))
    sizes = tuple(len(block) for block in torch.arange(scored).tensor_split(count))
    known = Losses(stage, 0, len(tokens), sizes=sizes)
    yield known
    for batch in tokens.split(max(1, TOKENS_A_BATCH // tokens.shape[1])):
        blocks = token_losses(model, batch).double().split(sizes, dim=1)
        sums = torch.stack([block.sum(1) for block in blocks], dim=1).tolist()
        known = Losses(stage, known.done + len(batch), known.total, (*known.sums, *map(tuple, sums)), sizes)
        yield known
    return known


def perplexity(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"], stage: str = "evaluate"
) -> Generator[Progress, None, float]:
    """`exp` of the mean loss over all windows; yields progress by window. The first token of a window is not scored."""
    losses = yield from measure_losses(model, tokens, stage)
    return losses.perplexity().value
