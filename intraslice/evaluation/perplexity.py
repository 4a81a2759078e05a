"""What a model is worth: the loss of every token, and perplexity."""

from __future__ import annotations

from collections.abc import Generator

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.modeling.logits import logits_in_chunks
from intraslice.progress import Progress

TOKENS_A_BATCH = 2048


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


def perplexity(
    model: PreTrainedModel, tokens: Int[Tensor, "windows window"], stage: str = "evaluate"
) -> Generator[Progress, None, float]:
    """`exp` of the mean loss over all windows; yields progress by window. The first token of a window is not scored."""
    total, done = 0.0, 0
    yield Progress(stage, 0, len(tokens))
    for batch in tokens.split(max(1, TOKENS_A_BATCH // tokens.shape[1])):
        total += token_losses(model, batch).double().sum().item()
        done += len(batch)
        yield Progress(stage, done, len(tokens))
    mean = total / (tokens.shape[0] * (tokens.shape[1] - 1))
    return torch.tensor(mean, dtype=torch.float64).exp().item()  # infinite where math.exp would raise
