"""Exceptions. Each message says what was received, what was expected and what to do next."""

from __future__ import annotations

import re

_FOLDERS = re.compile(r"(?<![\w:/\\])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")


class UserError(ValueError):
    """Invalid input. The message is one line."""


class NoRoomError(UserError):
    """Too little memory is free now; the same may work later."""


class NumericalError(ArithmeticError):
    """A non-finite moment or a singular system. The message says which one, and what to try."""


def first_line(error: BaseException) -> str:
    """An error's message on one line, without the folders of file paths."""
    return (_FOLDERS.sub("", " ".join(str(error).split())) or type(error).__name__)[:200]
