"""Translations of the page's texts, and numbers and dates in the language of the client that is being answered.

English texts stand in the code and are the keys of `assets/texts/LANGUAGE/words.json`. A handler runs in its client's
language (`ui/handlers.py`), so `gettext` translates at once. A text that several clients read, such as a button's label
or the progress of a shared job, is a `lazy_gettext`, which `translate` turns into the language of each reader.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from numbers import Number
from string import Formatter
from typing import Any, NamedTuple

from components.assets import ASSETS


class Language(NamedTuple):
    """A language's own name, and how it writes numbers and dates."""

    name: str
    decimal: str
    thousands: str
    percent: str  # a no-break space before the sign, where it has one
    day: str


ENGLISH = "en"
LANGUAGES = {
    ENGLISH: Language("English", ".", ",", "%", "%d %B %Y"),
    "de": Language("Deutsch", ",", ".", "\u00a0%", "%d.%m.%Y"),
}
_current: ContextVar[str] = ContextVar("language", default=ENGLISH)


def language() -> str:
    """The code of the current language, such as "de"; English outside of a client's call."""
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
    """The language in the query's `lang`, else the first of `Accept-Language` that the page has, else English."""
    preferences = []
    for part in (accepted or "").split(","):
        code, _, weight = part.replace(" ", "").partition(";q=")
        try:
            preferences.append((-float(weight or 1), code.lower()[:2]))
        except ValueError:  # a malformed weight is the browser's error, not the client's
            continue
    codes = [query.get("lang", ""), *(code for weight, code in sorted(preferences, key=lambda pair: pair[0]) if weight)]
    return next((code for code in codes if code in LANGUAGES), ENGLISH)


class LazyString(str):
    """A string whose text is English and which `translate` renders in the current language."""

    render: Callable[[], str]

    def __new__(cls, render: Callable[[], str]) -> LazyString:
        """A string from a function that renders it in the current language."""
        with use_language(ENGLISH):
            words = super().__new__(cls, render())
        words.render = render
        return words

    def __str__(self) -> str:
        return self

    def __deepcopy__(self, _: Any) -> LazyString:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self[:],)


def translate(words: str) -> str:
    """A lazy string in the current language; any other text, such as an error of the library, unchanged."""
    return words.render() if isinstance(words, LazyString) else words


def gettext(text: str, /, **values: Any) -> str:
    """The translation of an English text into the current language, with `values` in its placeholders.

    Numbers are formatted by Python's format codes and written as in the language: `gettext("{ratio:.1%}", ratio=0.3)`.
    """
    if language() == ENGLISH and not any(isinstance(value, LazyString) for value in values.values()):
        return text.format(**values)
    return _FORMATTER.vformat(catalogue(language()).get(text, text), (), values)


def lazy_gettext(text: str, /, **values: Any) -> LazyString:
    """As `gettext`, but translated when it is read."""
    return LazyString(lambda: gettext(text, **values))


def term(text: str) -> str:
    """A label of the library, such as a method's, translated if the catalogue has it."""
    return catalogue(language()).get(text, text)


def number(value: float | Number, places: str) -> str:
    """A number formatted as Python does by `places`, such as ".1f" or ".0%", and written as the language has it."""
    written, here = format(value, places), LANGUAGES[language()]
    if language() == ENGLISH:
        return written
    marks: dict[str, str | int | None] = {",": here.thousands, ".": here.decimal, "%": here.percent}
    return written.translate(str.maketrans(marks))


def on_day(written: str) -> LazyString:
    """A day that is kept in English, "26 November 2026", for whoever reads it."""
    return LazyString(lambda: day(datetime.datetime.strptime(written, LANGUAGES[ENGLISH].day).date()))


def separators() -> str:
    """Of decimals and of thousands, as plotly wants them."""
    return LANGUAGES[language()].decimal + LANGUAGES[language()].thousands


def day(date: datetime.date) -> str:
    """A day as the language writes it."""
    return f"{date:{LANGUAGES[language()].day}}"


@cache
def catalogue(code: str, name: str = "words") -> Mapping[str, str]:
    """A language's words by the English ones: those of the page, or of its "scripts"; none for English."""
    return {} if code == ENGLISH else json.loads(long_text(f"{name}.json", code))


def for_scripts() -> dict[str, Any]:
    """What the browser's scripts need of the language of the moment (`assets/words.js`)."""
    return {"code": language(), **LANGUAGES[language()]._asdict(), "words": catalogue(language(), "scripts")}


@cache
def _read(code: str, file: str) -> str:
    return (ASSETS / "texts" / code / file).read_text(encoding="utf-8")


def long_text(file: str, code: str = "") -> str:
    """A file of `assets/texts/` in a language, or in that of the moment."""
    return _read(code or language(), file)


class _Localised(Formatter):
    def format_field(self, value: Any, places: str) -> str:
        if isinstance(value, Number) and places:
            return number(value, places)
        return format(translate(value), places)


_FORMATTER = _Localised()
