"""Answers as they are generated, token by token."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.errors import UserError
from intraslice.core.progress import Pause, no_pause
from intraslice.evaluation.chat_template import render_chat, require_short
from intraslice.modeling.logits import read_on

PREFILL_TOKENS = 128  # of a prompt in one forward, so that whoever cancels waits for no more
HALF = "\ufffd"  # what a character decodes to whose other bytes are still to come


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Greedy at temperature 0; `chat` puts the prompt into the tokenizer's template, if any.

    The same seed gives the same answer, and two models that agree draw the same tokens. Raises UserError when a number
    is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    chat: bool = True

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be 1 or more, got {self.max_new_tokens!r}")
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"temperature must be 0 (greedy) or more, got {self.temperature!r}")


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool = True) -> dict[str, Tensor]:
    """The prompt as input ids and attention mask: through the chat template where there is one and `chat`, else raw."""
    if chat and tokenizer.chat_template:
        text = render_chat(tokenizer, [{"role": "user", "content": prompt}])
        encoding = tokenizer(text, add_special_tokens=False, return_tensors="pt")  # the template writes its own
    else:
        encoding = tokenizer(prompt, return_tensors="pt")
    return {name: encoding[name] for name in ("input_ids", "attention_mask")}  # some add token types: nobody reads them


@torch.no_grad()
def stream_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    pause: Pause = no_pause,
) -> Iterator[int]:
    """The model's answer, one token id at a time, the end token last if the model generates it.

    Computes a token only when it is asked for. Ends where the model's positions do. A long prompt is read in pieces of
    `PREFILL_TOKENS` tokens, between which `pause` is called. Raises UserError for a prompt that is empty or leaves no
    position for an answer.
    """
    sampling, positions = sampling or Sampling(), model.config.max_position_embeddings
    require_short(prompt, positions)
    ids = prompt_tokens(tokenizer, prompt, sampling.chat)["input_ids"].to(model.device).long()
    count = ids.shape[1]
    if not prompt.strip() or not count:
        raise UserError("the prompt is empty; expected some text")
    if count >= positions:
        raise UserError(
            f"the prompt has {count:,} tokens; expected at most {positions - 1:,}, "
            f"as the model has {positions:,} positions"
        )
    choose, ends = _chooser(sampling), end_tokens(model)
    unread = list(ids.split(PREFILL_TOKENS, dim=1))
    cache: dict[str, Any] = {}
    for _ in range(min(sampling.max_new_tokens, positions - count)):
        for index, piece in enumerate(unread):
            if index:
                pause()
            logits, cache = read_on(model, piece, cache)
        token = choose(logits[0])
        yield token
        if token in ends:
            return
        unread = [torch.tensor([[token]], device=model.device)]


def _chooser(sampling: Sampling) -> Callable[[Tensor], int]:
    """The likeliest token, or a draw: the greatest once Gumbel noise is added. It has random numbers of its own."""
    generator = torch.Generator().manual_seed(sampling.seed)

    def choose(logits: Float[Tensor, " words"]) -> int:
        if sampling.temperature == 0:
            return int(logits.argmax())
        noise = -torch.empty(len(logits)).exponential_(generator=generator).log()
        return int((logits.float().cpu() / sampling.temperature + noise).argmax())

    return choose


def end_tokens(model: PreTrainedModel) -> set[int]:
    """The tokens that end an answer."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens. It only ever grows at its end, but for a character that is not whole yet."""
    return text_of(tokenizer, tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], **options: bool) -> str:
    """The text of some tokens, special ones included unless the options of `decode` say otherwise."""
    return str(tokenizer.decode(list(tokens), **options))  # a string, as `tokens` is one sequence


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    pause: Pause = no_pause,
) -> Iterator[str]:
    """The model's answer as text, piece by piece; greedy at temperature 0.

    Computes a piece only when it is asked for; `pause` as in `stream_tokens`. Raises UserError as that does, and for
    numbers out of range.
    """
    tokens, shown = [], ""
    for token in stream_tokens(model, tokenizer, prompt, Sampling(max_new_tokens, temperature, seed), pause=pause):
        tokens.append(token)
        text = answer_text(tokenizer, tokens)
        if len(text) > len(shown) and not text.endswith(HALF):
            yield text[len(shown) :]
            shown = text
    if rest := answer_text(tokenizer, tokens)[len(shown) :]:
        yield rest
