"""Renders a prompt through a model's chat template, an untrusted program, in a subprocess with bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from intraslice.core.errors import UserError
from intraslice.data import CHARACTERS_PER_TOKEN
from intraslice.untrusted.process import Bounds, run_in_subprocess

BOUNDS = Bounds(memory=256 * 2**20, seconds=2)  # an ordinary template takes 20 MiB and 0.06 s, mostly Python's start
MAX_RENDERED = 2**21  # characters
MAX_PROMPT = 2**20  # characters, whatever the model's number of positions: tokenising takes 70 bytes per character


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a chat with the generation prompt, the same as `tokenizer.apply_chat_template` returns.

    Args:
        messages: role and content of each, such as `{"role": "user", "content": "Hello"}`.

    Raises:
        UserError: the template is invalid, refuses the messages, or exceeds the bounds on memory, time or length.
    """
    try:
        return run_in_subprocess(
            "template",
            BOUNDS,
            template=tokenizer.get_chat_template(),
            messages=[dict(message) for message in messages],
            special_tokens={name: _plain(token) for name, token in tokenizer.special_tokens_map.items()},
            max_characters=MAX_RENDERED,
        )
    except ValueError as error:
        raise UserError(f"the model's chat template fails ({error}); turn it off, or use another model") from error


def require_short(prompt: str, positions: int) -> None:
    """Raise UserError for a prompt that cannot fit into a model's positions, without tokenising it."""
    max_characters = min(CHARACTERS_PER_TOKEN * positions, MAX_PROMPT)
    if len(prompt) > max_characters:
        raise UserError(
            f"the prompt has {len(prompt):,} characters; expected at most {max_characters:,}, "
            f"as the model's maximum context length is {positions:,} tokens"
        )


def _plain(token: object) -> str | list[str]:
    return list(map(str, token)) if isinstance(token, list | tuple) else str(token)
