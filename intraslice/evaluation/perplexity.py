"""Measures the loss of every token, perplexity and KL divergence from the dense model, with standard errors.

`evaluate` compares a sliced model with its dense model.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.core.progress import Pause, Progress, ProgressOption, no_pause, progress_callback
from intraslice.distributed import all_gather, shard_of
from intraslice.modeling.hidden_states import (
    Windows,
    embed,
    last_states,
    logits_in_chunks,
    require_model,
    require_windows,
)

TOKENS_PER_BATCH = 512
BLOCK = 64  # tokens; losses of neighbouring tokens are correlated, those of such blocks hardly


class Estimate(NamedTuple):
    """A number with its standard error, None if there are too few samples to estimate it."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class Losses:
    """A model's losses on the first `done` of `total` windows: sums over blocks of tokens, in nats.

    Every window has blocks of the same sizes, so that the losses of two models on the same text can be paired. Before
    the first window is done, they may be those of about its first half alone.
    """

    done: int
    total: int
    sums: tuple[tuple[float, ...], ...] = ()  # (windows, blocks)
    sizes: tuple[int, ...] = ()  # tokens of each block
    divergences: tuple[float, ...] = ()  # from the dense model, summed over each window; empty if not measured

    @property
    def windows(self) -> float:
        """Number of windows that the losses are of: about a half, or `done`."""
        return self.done or len(self.sums) / 2

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Losses":
        """The losses whose fields were written as JSON."""
        sums = tuple(map(tuple, record["sums"]))
        return cls(record["done"], record["total"], sums, tuple(record["sizes"]), tuple(record["divergences"]))

    def perplexity(self) -> Estimate:
        """`exp` of the mean loss, with the standard error of the mean over blocks. One block has no error."""
        return _exponential(self.sums, self.sizes)

    def ratio(self, dense: "Losses") -> Estimate:
        """Ratio of this perplexity to the dense model's on the same windows, with its (much smaller) paired error.

        Raises ValueError if the windows have other blocks.
        """
        shorter, longer = sorted((self, dense), key=lambda losses: len(losses.sizes))
        sizes = shorter.sizes
        if longer.sizes[: len(sizes)] != sizes or (shorter.done and longer.sizes != sizes):
            raise ValueError(f"expected windows with the same blocks, got {self.sizes} and {dense.sizes} tokens")
        pairs = zip(self.sums, dense.sums, strict=False)  # one of them may have more windows, or the half of one
        return _exponential([[this - other for this, other in zip(*pair, strict=False)] for pair in pairs], sizes)

    def divergence(self) -> Estimate | None:
        """Mean KL divergence from the dense model in nats per token, with its standard error; None if not measured."""
        if not self.divergences:
            return None
        return mean_over_windows([total / sum(self.sizes) for total in self.divergences])


def mean_over_windows(means: Sequence[float]) -> Estimate:
    """The mean over windows of equal size, with its standard error (None for one). Raises ValueError for none."""
    if not means:
        raise ValueError("expected at least one window, got none")
    windows = torch.tensor(means, dtype=torch.float64)
    error = windows.std().item() / len(windows) ** 0.5 if len(windows) > 1 else None
    return Estimate(windows.mean().item(), error)


def _block_sizes(scored: int) -> tuple[int, ...]:
    """Tokens of each block of a window of which so many tokens are scored."""
    count = max(1, round(scored / BLOCK))
    return tuple(len(block) for block in torch.arange(scored).tensor_split(count))


def _exponential(sums: Sequence[Sequence[float]], sizes: Sequence[int]) -> Estimate:
    totals, counts = torch.tensor(sums, dtype=torch.float64), torch.tensor(sizes, dtype=torch.float64)
    if not len(totals):
        return Estimate(math.nan, None)
    value = (totals.sum() / (len(totals) * counts.sum())).exp().item()  # infinite where math.exp would raise
    blocks = (totals / counts).flatten()
    error = value * blocks.std().item() / len(blocks) ** 0.5 if len(blocks) > 1 else math.nan
    return Estimate(value, error if math.isfinite(error) else None)


@torch.no_grad()
def measure_losses(
    model: PreTrainedModel,
    tokens: Windows,
    stage: str = "evaluate",
    dense: "DenseStates | None" = None,
    so_far: Losses | None = None,
    *,
    progress: ProgressOption = True,
) -> Losses:
    """Losses of all windows. The first token of a window is not scored.

    With `dense`, the dense model's states, which are computed if they are not cached, the divergence from the dense
    model is measured in the same pass; that of the dense model itself is zero. `so_far` are losses of the same model on
    the first windows, what a `partial()` returned, with divergences if `dense` is not None; only the other windows are
    measured. `progress` is called after each layer. With several processes, each evaluates a shard of the windows, to
    which `partial()` and `so_far` refer. Raises UserError where `tokens` has no windows of two or more tokens, or they
    are longer than the model's context, and ValueError where `so_far` is not of whole windows of these.
    """
    require_model(model)
    require_windows(tokens, model.config)
    report = progress_callback(progress)
    shard, sizes = shard_of(len(tokens)), _block_sizes(tokens.shape[1] - 1)
    losses = so_far or Losses(0, shard.stop - shard.start, sizes=sizes)
    if (losses.total, losses.sizes, len(losses.sums)) != (shard.stop - shard.start, sizes, losses.done):
        raise ValueError(f"so_far must be of whole windows with blocks of {sizes} tokens, got {so_far}")

    def event() -> Progress:
        return Progress(stage, losses.done, losses.total, partial=partial(replace, losses))

    report(event())
    left = tokens[shard][losses.done :]
    for batch in left.split(max(1, TOKENS_PER_BATCH // tokens.shape[1])) if len(left) else ():
        first, pause = shard.start + losses.done, partial(report, event())
        states = dense_states = None
        if dense is not None:
            dense_states = dense.model, dense.of(batch, first, pause)
            states = dense_states[1] if model is dense.model else None
        if states is None:
            states = last_states(model, model.model.layers, embed(model, batch), pause)
        token_losses, token_kl = head_losses(model, states, batch[:, 1:].flatten(), dense_states, pause)
        by_block = token_losses.view(len(batch), -1).split(sizes, dim=1)
        sums = torch.stack([block.sum(1) for block in by_block], dim=1).tolist()
        divergences = () if token_kl is None else token_kl.view(len(batch), -1).sum(1).tolist()
        done, measured = losses.done + len(batch), (*losses.sums, *map(tuple, sums))
        losses = Losses(done, losses.total, measured, sizes, (*losses.divergences, *divergences))
        report(event())
    shared = tuple(all_gather(losses.sums))
    return Losses(len(tokens), len(tokens), shared, sizes, tuple(all_gather(losses.divergences)))


@torch.no_grad()
def measure_half_window(model: PreTrainedModel, tokens: Windows, *, progress: ProgressOption = True) -> Losses:
    """Losses on half of the first window's blocks, or its only one, for a first number soon: tokens see no later ones.

    Raises UserError as `measure_losses` does.
    """
    sizes = _block_sizes(tokens.shape[1] - 1)
    sizes = sizes[: max(1, len(sizes) // 2)]
    half = measure_losses(model, tokens[:1, : 1 + sum(sizes)], progress=progress)
    return Losses(0, len(tokens), half.sums, half.sizes)


def perplexity(
    model: PreTrainedModel, tokens: Windows, stage: str = "evaluate", *, progress: ProgressOption = True
) -> float:
    """`exp` of the mean loss over all windows but their first tokens. Raises UserError as `measure_losses` does."""
    return measure_losses(model, tokens, stage, progress=progress).perplexity().value


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
    def of(self, windows: Windows, first: int, pause: Pause = no_pause) -> Float[Tensor, "tokens hidden"]:
        """The states of windows numbered from `first` on; `pause` is called after each layer that has to run."""
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


@dataclass(frozen=True, repr=False)
class Evaluation:
    """The losses of both models on the same windows, and the estimates derived from them."""

    dense: Losses
    sliced: Losses
    window: int  # tokens

    @property
    def dense_perplexity(self) -> Estimate:
        """Perplexity of the dense model, with its standard error."""
        return self.dense.perplexity()

    @property
    def perplexity(self) -> Estimate:
        """Perplexity of the sliced model, with its standard error."""
        return self.sliced.perplexity()

    @property
    def perplexity_ratio(self) -> Estimate:
        """Ratio of sliced to dense perplexity, with its paired standard error."""
        return self.sliced.ratio(self.dense)

    @property
    def divergence(self) -> Estimate:
        """Mean KL divergence of the sliced model from the dense one, in nats per token, with its standard error."""
        divergence = self.sliced.divergence()
        assert divergence is not None  # `evaluate` measures it
        return divergence

    def __repr__(self) -> str:
        dense, sliced = _rounded(self.dense_perplexity, 2), _rounded(self.perplexity, 2)
        width = max(len(dense), len(sliced), len("sliced"))
        return "\n".join(
            [
                f"{'':<12}{'dense':>{width}}  {'sliced':>{width}}",
                f"{'perplexity':<12}{dense:>{width}}  {sliced:>{width}}  {_rounded(self.perplexity_ratio, 3)} times",
                f"KL divergence from the dense model: {_rounded(self.divergence, 4)} nats per token",
                f"on {self.sliced.total * self.window:,} tokens in windows of {self.window:,}; ± is one standard error",
            ]
        )


def evaluate(
    dense: PreTrainedModel, sliced: PreTrainedModel, tokens: Windows, *, progress: ProgressOption = True
) -> Evaluation:
    """Measure both models on held-out windows. The first token of a window is not scored.

    Takes one forward pass of each model, and memory for one hidden state per token. Raises UserError as
    `measure_losses` does.
    """
    report, states = progress_callback(progress), DenseStates(dense)
    dense_losses = measure_losses(dense, tokens, "perplexity dense", states, progress=report)
    sliced_losses = measure_losses(sliced, tokens, "perplexity sliced", states, progress=report)
    return Evaluation(dense_losses, sliced_losses, tokens.shape[1])


def _rounded(estimate: Estimate, digits: int) -> str:
    error = "" if estimate.standard_error is None else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.value:.{digits}f}{error}"
