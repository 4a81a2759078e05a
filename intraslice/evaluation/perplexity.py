"""What a model is worth: the loss of every token, perplexity, distance from the dense model, and how sure each is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.core.progress import Pause, Progress, ProgressCallback, progress_callback
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
class Losses:
    """A model's losses on the first `done` of `total` windows: sums over blocks of tokens, in nats.

    Every window has blocks of the same sizes, so that two models that read the same text can be paired.
    """

    done: int
    total: int
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
        if not self.divergences:
            return None
        return mean_over_windows([total / sum(self.sizes) for total in self.divergences])


def mean_over_windows(means: Sequence[float]) -> Estimate:
    """The mean of equal windows' means, with its standard error, which one window has not. ValueError for no window."""
    if not means:
        raise ValueError("there is no window to take the mean over; measure on at least one")
    windows = torch.tensor(means, dtype=torch.float64)
    error = windows.std().item() / len(windows) ** 0.5 if len(windows) > 1 else None
    return Estimate(windows.mean().item(), error)


def _exponential(sums: Sequence[Sequence[float]], sizes: Sequence[int]) -> Estimate:
    totals, counts = torch.tensor(sums, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    value = (totals.sum() / (len(totals) * counts.sum())).exp().item()  # infinite where math.exp would raise
    blocks = (totals / counts).flatten()
    error = value * blocks.std().item() / len(blocks) ** 0.5 if len(blocks) > 1 else math.nan
    return Estimate(value, error if math.isfinite(error) else None)


def _read(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], dense: DenseStates | None, first: int, pause: Pause
) -> tuple[Float[Tensor, "windows scored"], Float[Tensor, "windows scored"] | None]:
    """Every token's loss and, where dense states are given, its divergence from them."""
    states = against = None
    if dense is not None:
        against = dense.model, dense.of(windows, first, pause)
        states = against[1] if model is dense.model else None
    if states is None:
        states = last_states(model, model.model.layers, embed(model, windows), pause)
    losses, distances = read_head(model, states, windows[:, 1:].flatten(), against, pause)
    return losses.view(len(windows), -1), None if distances is None else distances.view(len(windows), -1)


@torch.no_grad()
def measure_losses(
    model: PreTrainedModel,
    tokens: Int[Tensor, "windows window"],
    stage: str = "evaluate",
    dense: DenseStates | None = None,
    *,
    progress: ProgressCallback | bool = True,
) -> Losses:
    """Losses of all windows. The first token of a window is not scored.

    Among several processes each reads a share of the windows.

    Args:
        dense: the dense model's states, which are computed where they are not there yet. The divergence from the dense
            model is then measured in the same pass; that of the dense model itself is zero.
        progress: called after each layer; `partial()` gives the losses of this process's windows so far.
    """
    report = progress_callback(progress)
    share, scored = share_of(len(tokens)), tokens.shape[1] - 1
    count = max(1, round(scored / BLOCK))
    sizes = tuple(len(block) for block in torch.arange(scored).tensor_split(count))
    known = Losses(0, share.stop - share.start, sizes=sizes)

    def event() -> Progress:
        return Progress(stage, known.done, known.total, partial=partial(replace, known))

    report(event())
    for batch in tokens[share].split(max(1, TOKENS_A_BATCH // tokens.shape[1])) if known.total else ():
        losses, distances = _read(model, batch, dense, share.start + known.done, partial(report, event()))
        sums = torch.stack([block.sum(1) for block in losses.split(sizes, dim=1)], dim=1).tolist()
        divergences = () if distances is None else distances.sum(1).tolist()
        known = replace(
            known,
            done=known.done + len(batch),
            sums=(*known.sums, *map(tuple, sums)),
            divergences=(*known.divergences, *divergences),
        )
        report(event())
    return replace(
        known,
        done=len(tokens),
        total=len(tokens),
        sums=tuple(gathered(known.sums)),
        divergences=tuple(gathered(known.divergences)),
    )


def perplexity(
    model: PreTrainedModel,
    tokens: Int[Tensor, "windows window"],
    stage: str = "evaluate",
    *,
    progress: ProgressCallback | bool = True,
) -> float:
    """`exp` of the mean loss over all windows. The first token of a window is not scored."""
    return measure_losses(model, tokens, stage, progress=progress).perplexity().value
