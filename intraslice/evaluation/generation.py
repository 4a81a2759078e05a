"""Generates text token by token, greedily or by sampling."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.core.checks import check_fields, integer, number, require_words
from intraslice.core.errors import Message, UserError
from intraslice.core.progress import Pause, no_pause
from intraslice.modeling.hidden_states import next_token_logits, require_model
from intraslice.pretrained.tokenizer import encode
from intraslice.token_windows import CHARACTERS_PER_TOKEN
from intraslice.untrusted.process import Bounds, run_in_subprocess

PREFILL_TOKENS = 128  # tokens of a prompt per forward, between which a caller can cancel
REPLACEMENT_CHARACTER = "\ufffd"  # decoded from a character whose last bytes are not generated yet


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. Greedy at temperature 0; `chat` applies the tokenizer's chat template, if any.

    The same seed gives the same answer, and models with equal logits sample the same tokens. Raises UserError if a
    number is out of range.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    chat: bool = True

    def __post_init__(self) -> None:
        check_fields(self, integer, max_new_tokens=(1,))
        check_fields(self, number, temperature=(0, math.inf))


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str, chat: bool = True) -> list[int]:
    """The token ids of a prompt, through the chat template if there is one and `chat` is set."""
    if chat and tokenizer.chat_template:  # which includes the special tokens
        return encode(tokenizer, render_chat(tokenizer, [{"role": "user", "content": prompt}]))
    return encode(tokenizer, prompt, special=True)


@torch.no_grad()
def stream_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling | None = None,
    *,
    pause: Pause = no_pause,
) -> Iterator[int]:
    """Generate an answer lazily, one token id at a time, including the end token if the model generates it.

    Stops at the model's last position. A long prompt is processed in chunks of `PREFILL_TOKENS` tokens, between which
    `pause` is called. Raises UserError for a prompt that is empty or leaves no position for an answer.
    """
    require_model(model)
    sampling, positions = sampling or Sampling(), model.config.max_position_embeddings
    require_short(prompt, positions)
    tokens = prompt_tokens(tokenizer, prompt, sampling.chat)
    count = len(tokens)
    require_words("the prompt", prompt if count else "")
    if count >= positions:
        raise prompt_too_long(Message("{count:,} tokens", count=count), positions - 1, positions)
    generator, ends = torch.Generator().manual_seed(sampling.seed), end_tokens(model)
    ids, cache = torch.tensor([tokens], device=model.device), dict[str, Any]()
    for _ in range(min(sampling.max_new_tokens, positions - count)):
        logits, cache = prefill(model, ids, cache, pause)
        token = _sample(logits[0], sampling.temperature, generator)
        yield token
        if token in ends:
            return
        ids = torch.tensor([[token]], device=model.device)


def prefill(
    model: PreTrainedModel, ids: Int[Tensor, "batch tokens"], cache: dict[str, Any], pause: Pause = no_pause
) -> tuple[Float[Tensor, "batch vocabulary"], dict[str, Any]]:
    """`next_token_logits` in chunks of `PREFILL_TOKENS` tokens, between which `pause` is called."""
    first, *others = ids.split(PREFILL_TOKENS, dim=1)
    logits, cache = next_token_logits(model, first, cache)
    for chunk in others:
        pause()
        logits, cache = next_token_logits(model, chunk, cache)
    return logits, cache


def _sample(logits: Float[Tensor, " vocabulary"], temperature: float, generator: torch.Generator) -> int:
    """The most likely token at temperature 0, else one that is sampled by adding Gumbel noise."""
    if temperature == 0:
        return int(logits.argmax())
    noise = -torch.empty(len(logits)).exponential_(generator=generator).log()
    return int((logits.float().cpu() / temperature + noise).argmax())


def end_tokens(model: PreTrainedModel) -> set[int]:
    """The token ids that end an answer."""
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def answer_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """The text of an answer's tokens. More tokens only append to it, except to a last character that is incomplete."""
    return text_of(tokenizer, tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def text_of(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], **options: bool) -> str:
    """The text of some tokens, special ones included unless the options of `decode` say otherwise."""
    return str(tokenizer.decode(list(tokens), **options))  # a string, as `tokens` is one sequence


def generate_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    max_new_tokens: int = Sampling.max_new_tokens,
    temperature: float = 0.0,
    seed: int = 0,
    *,
    pause: Pause = no_pause,
) -> Iterator[str]:
    """Generate an answer lazily, as pieces of text; greedy at temperature 0.

    `pause` is called as in `stream_tokens`. Raises UserError as `stream_tokens` does, and if a sampling parameter is
    out of range.
    """
    tokens, emitted = [], ""
    for token in stream_tokens(model, tokenizer, prompt, Sampling(max_new_tokens, temperature, seed), pause=pause):
        tokens.append(token)
        text = answer_text(tokenizer, tokens)
        if len(text) > len(emitted) and not text.endswith(REPLACEMENT_CHARACTER):
            yield text[len(emitted) :]
            emitted = text
    if rest := answer_text(tokenizer, tokens)[len(emitted) :]:
        yield rest


BOUNDS = Bounds(memory=256 * 2**20, seconds=2)  # an ordinary template takes 20 MiB and 0.06 s, mostly Python's start
MAX_RENDERED = 2**21  # characters
MAX_PROMPT = 2**20  # characters, whatever the model's number of positions: tokenising takes 70 bytes per character


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a chat with the generation prompt, the same as `tokenizer.apply_chat_template` returns.

    Messages are such as `{"role": "user", "content": "Hello"}`. Raises UserError where the template is invalid, refuses
    them, or exceeds the bounds on memory, time or length.
    """
    try:
        return run_in_subprocess(
            "template",
            BOUNDS,
            template=tokenizer.get_chat_template(),
            messages=[dict(message) for message in messages],
            special_tokens={
                name: list(map(str, token)) if isinstance(token, list | tuple) else str(token)
                for name, token in tokenizer.special_tokens_map.items()
            },
            max_characters=MAX_RENDERED,
        )
    except ValueError as error:
        message = "the model's chat template fails ({reason}); turn it off, or use another model"
        raise UserError(message, reason=str(error)) from error


def require_short(prompt: str, positions: int) -> None:
    """Raise UserError for a prompt that cannot fit into a model's positions, without tokenising it."""
    max_characters = min(CHARACTERS_PER_TOKEN * positions, MAX_PROMPT)
    if len(prompt) > max_characters:
        raise prompt_too_long(Message("{count:,} characters", count=len(prompt)), max_characters, positions)


def prompt_too_long(received: Message, limit: int, positions: int) -> UserError:
    """The error for a prompt with so many tokens or characters, of which the model's context allows `limit`."""
    message = (
        "the prompt has {received}; expected at most {limit:,}, as the model's maximum context length is "
        "{positions:,} tokens"
    )
    return UserError(message, received=received, limit=limit, positions=positions)
