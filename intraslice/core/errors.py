"""What can go wrong, by whose fault: each message says what was received, what was expected and what to do next."""

from __future__ import annotations

import re

_FOLDERS = re.compile(r"(?<![\w:/\\])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")


class UserError(ValueError):
    """Bad input. The message is one line: what was received, what was expected, what to do next."""


class NumericalError(ArithmeticError):
    """A moment that is not finite or a system that is singular. The message says which and what to try."""


def first_line(error: BaseException) -> str:
    """An error's message as part of one line, with the names of files but not of the folders they lie in."""
    return (_FOLDERS.sub("", " ".join(str(error).split())) or type(error).__name__)[:200]
