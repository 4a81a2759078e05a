"""Gradio builds a page once. Here its configuration is told anew in each language: whatever in it is `Words`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.i18n.language import ENGLISH, language, spoken


def translated(value: Any) -> Any:
    """A copy of plain lists and dictionaries with all `Words` in them in the language of the moment."""
    if isinstance(value, str):
        return spoken(value)
    if isinstance(value, Mapping):
        return {key: translated(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [translated(inside) for inside in value]
    return value


class TranslatedConfig:
    """A page's configuration in every language, made when the first visitor wants it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._made = {ENGLISH: config}

    def now(self) -> dict[str, Any]:
        """In the language of the moment. Gradio copies what it changes of it."""
        if language() not in self._made:
            self._made[language()] = translated(self._made[ENGLISH])
        return self._made[language()]
