"""Exceptions. Each message says what was received, what was expected and what to do next."""

import re
from typing import Any, Self

_FOLDERS = re.compile(r"(?<![\w:/\\])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")


class Message(str):
    """A text in English that keeps its template and the values in it, from which it can be translated.

    Values may be messages too. Without values the template is the text, braces included.
    """

    template: str
    values: dict[str, Any]

    def __new__(cls, template: str, /, **values: Any) -> Self:
        """`template.format(**values)`."""
        message = super().__new__(cls, template.format(**values) if values else template)
        message.template, message.values = template, values
        return message

    def __str__(self) -> str:
        return self


class UserError(ValueError):
    """Invalid input. The message, `str(error)`, is one line."""

    def __init__(self, template: str, /, **values: Any) -> None:
        """The message is a `Message` of these; a text that translates itself in another way remains as it is."""
        super().__init__(Message(template, **values) if type(template) is str else template)


class NoRoomError(UserError):
    """Too little memory is free now; the same may work later."""


class NumericalError(ArithmeticError):
    """A non-finite moment or a singular system. The message says which one, and what to try."""


def first_line(error: BaseException) -> str:
    """An error's message on one line, without the folders of file paths."""
    return (_FOLDERS.sub("", " ".join(str(error).split())) or type(error).__name__)[:200]
