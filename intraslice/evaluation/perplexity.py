"""What a model is worth: the loss of every token, perplexity, and how sure either is."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.distributed.sharing import gathered, share_of
from intraslice.modeling.families import family_of
from intraslice.modeling.hidden_states import HiddenStates, embed
from intraslice.modeling.logits import logits_in_chunks
from intraslice.progress import Progress, repeating

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


def losses_through(
    model: PreTrainedModel,
    layers: Iterable[nn.Module],
    hidden_states: HiddenStates,
    targets: Int[Tensor, "windows scored"],
) -> Generator[None, None, Float[Tensor, " tokens"]]:
    """Every token's loss, in nats, once the hidden states have passed the given layers; they themselves stay.

    Yields after each layer of each batch, and each chunk of logits.
    """
    norm = getattr(model.model, family_of(model.config).final_norm)
    losses = []
    batches = targets.to(model.device).split([len(hidden) for hidden in hidden_states.hidden])
    for hidden, arguments, batch in zip(hidden_states.hidden, hidden_states.arguments, batches, strict=True):
        for layer in layers:
            hidden = layer(hidden, **arguments)
            yield
        scored = norm(hidden)[:, :-1].flatten(0, 1)
        for logits, following in logits_in_chunks(model, scored, batch.flatten()):
            losses.append(functional.cross_entropy(logits, following, reduction="none"))
            yield
    return torch.cat(losses).double()


@torch.no_grad()
def token_losses(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"]
) -> Generator[None, None, Float[Tensor, "windows window_minus_one"]]:
    """Negative log-probability, in nats, of every token but the first of each window; yields after each layer."""
    losses = yield from losses_through(model, model.model.layers, embed(model, windows), windows[:, 1:])
    return losses.view(len(windows), -1)


def measure_losses(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"], stage: str = "evaluate"
) -> Generator[Losses, None, Losses]:
    """Losses of all windows; yields what is known by then after each layer. The first token of a window is not scored.

    Among several processes each reads a share of the windows, and yields what it knows of those.
    """
    share, scored = tokens[share_of(len(tokens))], tokens.shape[1] - 1
    count = max(1, round(scored / BLOCK))
    sizes = tuple(len(block) for block in torch.arange(scored).tensor_split(count))
    known = Losses(stage, 0, len(share), sizes=sizes)
    yield known
    for batch in share.split(max(1, TOKENS_A_BATCH // tokens.shape[1])) if len(share) else ():
        losses = yield from repeating(known, token_losses(model, batch))
        blocks = losses.split(sizes, dim=1)
        sums = torch.stack([block.sum(1) for block in blocks], dim=1).tolist()
        known = Losses(stage, known.done + len(batch), known.total, (*known.sums, *map(tuple, sums)), sizes)
        yield known
    return replace(known, done=len(tokens), total=len(tokens), sums=tuple(gathered(known.sums)))


def perplexity(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"], stage: str = "evaluate"
) -> Generator[Progress, None, float]:
    """`exp` of the mean loss over all windows; yields progress by window. The first token of a window is not scored."""
    losses = yield from measure_losses(model, tokens, stage)
    return losses.perplexity().value
