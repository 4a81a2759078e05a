"""What a model is worth: the loss of every token, perplexity, distance from the dense model, and how sure each is."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.core.progress import Progress, repeating
from intraslice.distributed.sharing import gathered, share_of
from intraslice.evaluation.divergence import DenseStates, read_head
from intraslice.modeling.hidden_states import embed, last_states

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
    divergences: tuple[float, ...] = ()  # from the dense model, a sum a window; empty where not measured

    def perplexity(self) -> Estimate:
        """`exp` of the mean loss, with the standard error of the mean over blocks. Of one block there is no error."""
        return _exponential(self.sums, self.sizes)

    def ratio(self, dense: Losses) -> Estimate:
        """This perplexity over the dense model's on the same windows, with its paired, and so much smaller, error."""
        pairs = zip(self.sums, dense.sums, strict=False)  # one of them may have read further
        differences = [[ours - theirs for ours, theirs in zip(*pair, strict=True)] for pair in pairs]
        return _exponential(differences, self.sizes)

    def divergence(self) -> Estimate | None:
        """Mean KL divergence from the dense model, nats a token, and its standard error over windows; or not known."""
        return mean_over_windows([total / sum(self.sizes) for total in self.divergences])


def mean_over_windows(means: Sequence[float]) -> Estimate | None:
    """The mean of equal windows' means, with its standard error, which one window has not. None for no window."""
    if not means:
        return None
    windows = torch.tensor(means, dtype=torch.float64)
    error = windows.std().item() / len(windows) ** 0.5 if len(windows) > 1 else None
    return Estimate(windows.mean().item(), error)


def _exponential(sums: Sequence[Sequence[float]], sizes: Sequence[int]) -> Estimate:
    totals, counts = torch.tensor(sums, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    value = (totals.sum() / (len(totals) * counts.sum())).exp().item()  # infinite where math.exp would raise
    blocks = (totals / counts).flatten()
    error = value * blocks.std().item() / len(blocks) ** 0.5 if len(blocks) > 1 else math.nan
    return Estimate(value, error if math.isfinite(error) else None)


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"]
) -> Generator[None, None, Float[Tensor, "windows window_minus_one"]]:
    """Negative log-probability, in nats, of every token but the first of each window; yields after each layer."""
    losses, _ = yield from _read(model, windows)
    return losses


@torch.no_grad()
def _read(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], dense: DenseStates | None = None, first: int = 0
) -> Generator[None, None, tuple[Float[Tensor, "windows scored"], Float[Tensor, "windows scored"] | None]]:
    """Every token's loss and, where dense states are given, its divergence from them."""
    states = against = None
    if dense is not None:
        against = dense.model, (yield from dense.of(windows, first))
        states = against[1] if model is dense.model else None
    if states is None:
        states = yield from last_states(model, model.model.layers, embed(model, windows))
    losses, distances = yield from read_head(model, states, windows[:, 1:].flatten(), against)
    return losses.view(len(windows), -1), None if distances is None else distances.view(len(windows), -1)


def measure_losses(
    model: PreTrainedModel,
    tokens: Int[Tensor, "windows window"],
    stage: str = "evaluate",
    dense: DenseStates | None = None,
) -> Generator[Losses, None, Losses]:
    """Losses of all windows; yields what is known by then after each layer. The first token of a window is not scored.

    With the dense model's states, which are found on the way where they are not yet known, the divergence from it is
    measured in the same pass; that model's own is zero. Among several processes each reads a share of the windows, and
    yields what it knows of those.
    """
    share, scored = share_of(len(tokens)), tokens.shape[1] - 1
    count = max(1, round(scored / BLOCK))
    sizes = tuple(len(block) for block in torch.arange(scored).tensor_split(count))
    known = Losses(stage, 0, share.stop - share.start, sizes=sizes)
    yield known
    for batch in tokens[share].split(max(1, TOKENS_A_BATCH // tokens.shape[1])) if known.total else ():
        reading = _read(model, batch, dense, share.start + known.done)
        losses, distances = yield from repeating(known, reading)
        sums = torch.stack([block.sum(1) for block in losses.split(sizes, dim=1)], dim=1).tolist()
        divergences = () if distances is None else distances.sum(1).tolist()
        known = replace(
            known,
            done=known.done + len(batch),
            sums=(*known.sums, *map(tuple, sums)),
            divergences=(*known.divergences, *divergences),
        )
        yield known
    return replace(
        known,
        done=len(tokens),
        total=len(tokens),
        sums=tuple(gathered(known.sums)),
        divergences=tuple(gathered(known.divergences)),
    )


def perplexity(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"], stage: str = "evaluate"
) -> Generator[Progress, None, float]:
    """`exp` of the mean loss over all windows; yields progress by window. The first token of a window is not scored."""
    losses = yield from measure_losses(model, tokens, stage)
    return losses.perplexity().value
