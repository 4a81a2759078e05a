"""Checks of single values. Each returns the value, in Python's own type, or raises a UserError: what it must be.

`name` is what the message calls the value. A page that has another word for it, or a translation, passes that.
"""

import math
import os
from collections.abc import Callable, Collection
from numbers import Real
from reprlib import Repr
from typing import Any

from intraslice.core.errors import Message, UserError

MAX_INTEGER = 2**31 - 1
# Removed commands, endpoints, options and methods, each with what replaces it.
RETIRED = {
    "distill-ce": "distill-ce was removed; use distill, after which KL is lower on every text",
    "exchange": "exchange was removed; use search, with --passes instead of --exchanges",
    "iterative": "iterative was removed; use order sequential, or recovery distill, which trains all layers together",
    "prices": "prices was removed; use search, which moves parameters between modules as long as the measured KL "
    "decreases",
    "svd": "svd was removed; use modegpt or flatllm, whose models can also be saved",
    "vllm": "--vllm was removed; use --gguf for llama.cpp, or open the folder with transformers",
}
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether it is a number from `low` to `high`; NaN, infinity and booleans are none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    try:
        return low <= float(value) <= high and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def number(name: str, value: Any, low: float, high: float, hint: str = "") -> float:
    """A number between the two, which `hint` explains."""
    if not is_number(value, low, high):
        message = "{name} must be a number from {low:,} to {high:,}{hint}, got {value}"
        if high == math.inf:
            message = "{name} must be a number of at least {low:,}{hint}, got {value}"
        raise _refusal(message, name, value, low=low, high=high, hint=hint and f" ({hint})")
    return float(value)


def integer(name: str, value: Any, low: float, high: float = MAX_INTEGER) -> int:
    """A whole number between the two."""
    if not is_number(value, low, high) or int(value) != value:
        message = "{name} must be a whole number from {low:,} to {high:,}, got {value}"
        raise _refusal(message, name, value, low=low, high=high)
    return int(value)


def one_of(name: str, value: Any, choices: Collection[str]) -> Any:
    """One of the choices, of whatever literal type they are; of a removed one, the error says what replaces it."""
    if not isinstance(value, str) or value not in choices:
        require_current(value)
        listed = ", ".join(choices)
        raise _refusal("{name} must be one of {choices}, got {value}", name, value, choices=listed)
    return value


def flag(name: str, value: Any) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise _refusal("{name} must be true or false, got {value}", name, value)
    return value


def text(name: str, value: Any, max_length: int) -> str:
    """A text of so many characters at the most, which files and answers can hold."""
    if not isinstance(value, str):
        raise _refusal("{name} must be text, got {value}", name, value)
    if len(value) > max_length:
        message = "{name} may have at most {limit:,} characters, got {count:,}"
        raise _refusal(message, name, value, limit=max_length, count=len(value))
    if "\0" in value or value.encode(errors="ignore").decode() != value:
        raise _refusal("{name} contains an unpaired surrogate or a null character; remove it", name, value)
    return value


def require_words(name: str, text: str) -> None:
    """Raise UserError for a text that is empty or blank."""
    if not text.strip():
        raise _refusal("{name} is empty; expected some text", name, text)


def check_fields(config: object, check: Callable[..., Any], **arguments: tuple[Any, ...]) -> None:
    """Replace fields of a frozen config by what `check(name, value, *arguments)` returns; a default None stays."""
    for name, others in arguments.items():
        value, default = getattr(config, name), getattr(type(config), name)
        if value is not None or default is not None:
            object.__setattr__(config, name, check(name, value, *others))


def from_environment(variable: str, default: int, expected: str, low: int = 0) -> int:
    """An environment variable that is `expected`, a whole number of at least `low`; the default if it is not set."""
    value = os.environ.get(variable, "").strip()
    if value and not (value.isdecimal() and int(value) >= low):
        raise UserError("{name} must be {expected}, got {value}", name=variable, expected=expected, value=quoted(value))
    return int(value or default)


def require_current(name: object) -> None:
    """Raise UserError, which says what replaces it, for the name of something that was removed."""
    if isinstance(name, str) and name in RETIRED:
        raise UserError(RETIRED[name])


def quoted(value: Any) -> str:
    """A value as an error quotes it, cut where it is long."""
    return Message("nothing") if value is None else _SHORT.repr(value)


def _refusal(message: str, name: str, value: Any, **values: Any) -> UserError:
    name = Message(name) if type(name) is str else name
    return UserError(message, name=name, value=quoted(value), **values)
