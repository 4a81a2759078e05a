"""Loss increase per token of a passage, and next-token candidates of both models."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.errors import Message, UserError
from intraslice.core.progress import Pause, no_pause
from intraslice.evaluation.generation import prefill, prompt_tokens, prompt_too_long, text_of
from intraslice.evaluation.perplexity import divergences
from intraslice.modeling.hidden_states import logits_in_chunks
from intraslice.pretrained.tokenizer import encode
from intraslice.samples import last_hidden


@dataclass(frozen=True)
class NextToken:
    """One candidate token, and its probability in both models, from 0 to 1."""

    text: str
    token: int
    dense: float
    sliced: float


@dataclass(frozen=True)
class TokenScore:
    """One token of a passage in both models; logarithms are natural. The first token of a passage has no score."""

    text: str
    token: int
    dense: float  # log-probability given the tokens before it
    sliced: float
    divergence: float  # KL, dense to sliced, of the distributions at this position, in nats
    agree: bool  # both models have the same most likely token
    likeliest: tuple[NextToken, ...] = ()  # the best candidates of either model, if requested

    @property
    def extra_loss(self) -> float:
        """Loss increase of this token, in nats; negative where the sliced model predicts it better."""
        return self.dense - self.sliced


@dataclass(frozen=True)
class Passage:
    """A scored passage. Its text is `first` followed by the texts of all tokens."""

    first: str
    tokens: tuple[TokenScore, ...]

    @property
    def agreement(self) -> float:
        """The fraction of positions where both models have the same most likely token."""
        return sum(token.agree for token in self.tokens) / len(self.tokens)

    @property
    def divergence(self) -> float:
        """Mean KL divergence, in nats per token."""
        return sum(token.divergence for token in self.tokens) / len(self.tokens)


@torch.no_grad()
def score_passage(
    dense: PreTrainedModel, sliced: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, candidates: int = 0
) -> Passage:
    """Score every token of a text but the first, without a chat template.

    With `candidates`, each score includes that many of the most likely tokens of either model at its position. Raises
    UserError for fewer than two tokens, or more than the model has positions.
    """
    tokens = encode(tokenizer, text)
    count, positions = len(tokens), dense.config.max_position_embeddings
    if not 2 <= count <= positions:
        raise UserError(f"the passage has {count} tokens; expected 2 to {positions} (the first token is not scored)")
    ids = torch.tensor(tokens)
    # The last token predicts no token of the passage.
    hidden = [last_hidden(model, ids.to(model.device))[:-1] for model in (dense, sliced)]
    dense_chunks = logits_in_chunks(dense.lm_head, hidden[0], ids[1:])
    sliced_chunks = logits_in_chunks(sliced.lm_head, hidden[1])
    scores: list[TokenScore] = []
    for (dense_logits, following), (sliced_logits,) in zip(dense_chunks, sliced_chunks, strict=True):
        tables = [logits.log_softmax(-1) for logits in (dense_logits, sliced_logits)]
        chosen = [table.gather(1, following[:, None].to(table.device))[:, 0].tolist() for table in tables]
        divergence = divergences(dense_logits, sliced_logits.to(dense_logits.device)).tolist()
        best_of_dense, best_of_sliced = (table.argmax(-1).cpu() for table in tables)
        agree = (best_of_dense == best_of_sliced).tolist()
        likeliest = [_best(tokenizer, rows, candidates) for rows in zip(*tables, strict=True)]
        for values in zip(following.tolist(), *chosen, divergence, agree, likeliest, strict=True):
            scores.append(TokenScore(text_of(tokenizer, [values[0]]), *values))
    return Passage(text_of(tokenizer, tokens[:1]), tuple(scores))


@torch.no_grad()
def compare_next_tokens(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    count: int = 10,
    chat: bool = True,
    pause: Pause = no_pause,
) -> tuple[NextToken, ...]:
    """The `count` most likely next tokens of either model with both probabilities, the dense model's best first.

    `pause` is called between chunks of a long prompt. Raises UserError for a prompt without tokens, or with more than
    the model has positions.
    """
    tokens, positions = prompt_tokens(tokenizer, prompt, chat), dense.config.max_position_embeddings
    if not tokens:
        raise UserError("the prompt has no tokens; expected at least one word")
    if len(tokens) > positions:
        raise prompt_too_long(Message("{count:,} tokens", count=len(tokens)), positions, positions)
    logits = [prefill(model, torch.tensor([tokens], device=model.device), {}, pause)[0] for model in (dense, sliced)]
    return _best(tokenizer, [of_model.float().log_softmax(-1)[0] for of_model in logits], count)


def _best(
    tokenizer: PreTrainedTokenizerBase, logs: Sequence[Float[Tensor, " vocabulary"]], count: int
) -> tuple[NextToken, ...]:
    """The `count` most likely tokens by either model's log-probabilities, the dense model's best first."""
    tables = [log_probs.exp().cpu() for log_probs in logs]
    best = {token for table in tables for token in table.topk(min(count, len(table))).indices.tolist()}
    ordered = sorted(best, key=lambda token: (-tables[0][token].item(), -tables[1][token].item()))
    return tuple(
        NextToken(text_of(tokenizer, [token]), token, *(table[token].item() for table in tables)) for token in ordered
    )
