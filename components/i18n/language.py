"""Translations of the page's texts, and numbers and dates in the client's language.

The English texts in the code are the keys of `assets/texts/LANGUAGE/words.json`. A handler runs in its client's
language, so `gettext` translates at once. A text for several clients, such as a button's label or the progress of a
shared job, is a `lazy_gettext`, which `translate` renders in the language of each client.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from numbers import Number
from typing import Any, NamedTuple

from intraslice.core.errors import Message

from ..assets import ASSETS


class Language(NamedTuple):
    """A language's name in itself, and its formats of numbers and dates."""

    name: str
    decimal: str
    thousands: str
    percent: str  # with the no-break space before it, if any
    day: str  # for strftime


ENGLISH = "en"
LANGUAGES = {
    ENGLISH: Language("English", ".", ",", "%", "%d %B %Y"),
    "de": Language("Deutsch", ",", ".", "\u00a0%", "%d.%m.%Y"),
}
_current: ContextVar[str] = ContextVar("language", default=ENGLISH)


def language() -> str:
    """The code of the current language, such as "de"; "en" outside of a client's call."""
    return _current.get()


@contextmanager
def use_language(code: str) -> Iterator[None]:
    """Set the current language within the context."""
    token = _current.set(code)
    try:
        yield
    finally:
        _current.reset(token)


def requested_language(query: Mapping[str, str], accepted: str | None) -> str:
    """The query's `lang`, else the preferred language of `Accept-Language` that the page has, else English."""
    preferences = []
    for part in (accepted or "").split(","):
        code, _, weight = part.replace(" ", "").partition(";q=")
        try:
            preferences.append((-float(weight or 1), code.lower()[:2]))
        except ValueError:  # a malformed weight; ignore this language
            continue
    codes = [query.get("lang", ""), *(code for weight, code in sorted(preferences, key=lambda pair: pair[0]) if weight)]
    return next((code for code in codes if code in LANGUAGES), ENGLISH)


class LazyString(str):
    """A string with an English text; `render` returns it in the current language."""

    render: Callable[[], str]

    def __new__(cls, render: Callable[[], str]) -> LazyString:
        with use_language(ENGLISH):
            string = super().__new__(cls, render())
        string.render = render
        return string

    def __str__(self) -> str:
        return self

    def __deepcopy__(self, _: Any) -> LazyString:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self[:],)


def translate(text: str) -> str:
    """A lazy string or a message of the library in the current language; any other text unchanged."""
    if isinstance(text, Message):
        return gettext(text.template, **text.values) if text.values else term(text.template)
    return text.render() if isinstance(text, LazyString) else text


def gettext(text: str, /, **values: Any) -> str:
    """The translation of an English text, with values in places such as `{ratio:.1%}` in the language's format."""
    return term(text).format_map({name: _Localised(value) for name, value in values.items()})


def lazy_gettext(text: str, /, **values: Any) -> LazyString:
    """As `gettext`, but translated later by `translate`."""
    return LazyString(lambda: gettext(text, **values))


def term(text: str) -> str:
    """A text without values, such as the library's label of a method, translated if the catalogue contains it."""
    return catalogue(language()).get(text, text)


def number(value: float | Number, code: str) -> str:
    """A number by Python's format `code`, such as ".1f", with the language's separators and a minus sign, no hyphen."""
    formatted = format(value, code)
    if formatted.startswith("-"):
        formatted = f"−{formatted[1:]}"
    return formatted.translate(_marks(language()))


@cache
def _marks(code: str) -> dict[int, str]:
    """A language's characters in place of those of Python's formats."""
    current = LANGUAGES[code]
    return str.maketrans({",": current.thousands, ".": current.decimal, "%": current.percent})


def percentage(value: float) -> str:
    """A number of percent, such as 12.5, with the sign as the language writes it."""
    return f"{number(value, 'g')}{LANGUAGES[language()].percent}"


def separators() -> str:
    """The separators of decimals and thousands, in the form that plotly expects."""
    return LANGUAGES[language()].decimal + LANGUAGES[language()].thousands


def day(date: datetime.date) -> str:
    """A date in the language's format."""
    return f"{date:{LANGUAGES[language()].day}}"


@cache
def catalogue(code: str, name: str = "words") -> Mapping[str, str]:
    """A language's translations by English text: of the page ("words") or its "scripts"; empty for English."""
    return {} if code == ENGLISH else json.loads(long_text(f"{name}.json", code))


def for_scripts() -> dict[str, Any]:
    """The current language's data for the browser's scripts (`assets/isx.js`)."""
    return {"code": language(), **LANGUAGES[language()]._asdict(), "words": catalogue(language(), "scripts")}


@cache
def _read(code: str, file: str) -> str:
    return (ASSETS / "texts" / code / file).read_text(encoding="utf-8")


def long_text(file: str, code: str = "") -> str:
    """A file of `assets/texts/` in the given or the current language."""
    return _read(code or language(), file)


class _Localised:
    """A value that is formatted as the current language writes it."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return repr(self.value)

    def __format__(self, code: str) -> str:
        value = self.value
        return number(value, code) if code and isinstance(value, Number) else format(translate(value), code)
