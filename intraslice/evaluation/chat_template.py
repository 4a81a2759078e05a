"""A prompt through a model's chat template, which is a stranger's program and runs in a bounded process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from intraslice.core.errors import UserError
from intraslice.data import CHARACTERS_A_TOKEN
from intraslice.untrusted.process import Bounds, run_apart

BOUNDS = Bounds(memory=256 * 2**20, seconds=2)  # an ordinary template takes 20 MiB and 0.06 s, most of it Python's own
MAX_RENDERED = 2**21  # characters
MAX_PROMPT = 2**20  # characters, however many positions a model says it has: tokenising takes 70 bytes for each


def render_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    """The text of a chat up to where the model answers, as `tokenizer.apply_chat_template` gives it.

    Args:
        messages: role and content of each, such as `{"role": "user", "content": "Hello"}`.

    Raises:
        UserError: the template is broken, refuses the messages, or takes too much memory, time or room.
    """
    try:
        return run_apart(
            "template",
            BOUNDS,
            template=tokenizer.get_chat_template(),
            messages=[dict(message) for message in messages],
            special_tokens={name: _plain(token) for name, token in tokenizer.special_tokens_map.items()},
            max_characters=MAX_RENDERED,
        )
    except ValueError as error:
        raise UserError(f"the model's chat template fails ({error}); ask without it, or another model") from error


def require_short(prompt: str, positions: int) -> None:
    """Raise UserError for a prompt that cannot fit into a model's positions, before the work of tokenising it."""
    max_characters = min(CHARACTERS_A_TOKEN * positions, MAX_PROMPT)
    if len(prompt) > max_characters:
        raise UserError(
            f"the prompt has {len(prompt):,} characters; expected at most {max_characters:,}, "
            f"as the model has {positions:,} positions"
        )


def _plain(token: object) -> str | list[str]:
    return list(map(str, token)) if isinstance(token, list | tuple) else str(token)
