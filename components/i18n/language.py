"""In which language the page speaks: words and numbers in that of whoever is answered at the moment.

English texts are in the code, and are the keys of `assets/texts/LANGUAGE/words.json`. A handler runs in its visitor's
language (`ui/handlers.py`), so what it says with `say` is right at once. What is said once and read by several, such
as the progress of a job that two visitors share or a button's label, is said with `later`: it is told anew to each.
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
    """What it calls itself, and how it writes numbers and days."""

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
    """That of the moment, such as "de"; outside of a visitor's calls it is English."""
    return _current.get()


@contextmanager
def speaking(code: str) -> Iterator[None]:
    """Speak another language meanwhile."""
    token = _current.set(code)
    try:
        yield
    finally:
        _current.reset(token)


def asked_for(query: Mapping[str, str], accepted: str | None) -> str:
    """The `lang` of an address, else the first of a browser's languages (`Accept-Language`) that the page has.

    English where it has none of them.
    """
    wanted = []
    for part in (accepted or "").split(","):
        code, _, weight = part.replace(" ", "").partition(";q=")
        try:
            wanted.append((-float(weight or 1), code.lower()[:2]))
        except ValueError:  # a browser's slip is none of its visitor's
            continue
    codes = [query.get("lang", ""), *(code for weight, code in sorted(wanted, key=lambda pair: pair[0]) if weight)]
    return next((code for code in codes if code in LANGUAGES), ENGLISH)


class Words(str):
    """Words to be said in whatever language they are read in (`spoken`); as a string they are the English ones."""

    made: Callable[[], str]

    def __new__(cls, made: Callable[[], str]) -> Words:
        """Of what says them in the language of the moment."""
        with speaking(ENGLISH):
            words = super().__new__(cls, made())
        words.made = made
        return words

    def __str__(self) -> str:
        return self

    def __deepcopy__(self, _: Any) -> Words:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (self[:],)


def spoken(words: str) -> str:
    """Words in the language of the moment; any other text, such as an error of the library, as it is."""
    return words.made() if isinstance(words, Words) else words


def say(text: str, /, **values: Any) -> str:
    """An English text in the language of the moment, values in their places.

    Places format numbers as Python does, written as the language has it: `say("{share:.1%} removed", share=0.3)`.
    """
    if language() == ENGLISH and not any(isinstance(value, Words) for value in values.values()):
        return text.format(**values)
    return _FORMATTER.vformat(words_of(language()).get(text, text), (), values)


def later(text: str, /, **values: Any) -> Words:
    """As `say`, for whoever reads it."""
    return Words(lambda: say(text, **values))


def term(text: str) -> str:
    """A name that the library gives, such as a method's, in the language of the moment where it is known there."""
    return words_of(language()).get(text, text)


def number(value: float | Number, places: str) -> str:
    """A number formatted as Python does by `places`, such as ".1f" or ".0%", and written as the language has it."""
    written, here = format(value, places), LANGUAGES[language()]
    if language() == ENGLISH:
        return written
    marks: dict[str, str | int | None] = {",": here.thousands, ".": here.decimal, "%": here.percent}
    return written.translate(str.maketrans(marks))


def on_day(written: str) -> Words:
    """A day that is kept in English, "26 November 2026", for whoever reads it."""
    return Words(lambda: day(datetime.datetime.strptime(written, LANGUAGES[ENGLISH].day).date()))


def separators() -> str:
    """Of decimals and of thousands, as plotly wants them."""
    return LANGUAGES[language()].decimal + LANGUAGES[language()].thousands


def day(date: datetime.date) -> str:
    """A day as the language writes it."""
    return f"{date:{LANGUAGES[language()].day}}"


@cache
def words_of(code: str, name: str = "words") -> Mapping[str, str]:
    """A language's words by the English ones: those of the page, or of its "scripts"; none for English."""
    return {} if code == ENGLISH else json.loads(long_text(f"{name}.json", code))


def for_scripts() -> dict[str, Any]:
    """What the browser's scripts need of the language of the moment (`assets/words.js`)."""
    return {"code": language(), **LANGUAGES[language()]._asdict(), "words": words_of(language(), "scripts")}


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
        return format(spoken(value), places)


_FORMATTER = _Localised()
