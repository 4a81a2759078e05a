"""The page's configuration in the language of each request.

Gradio builds a page once and sends the same configuration to everybody; its `gr.I18n` translates labels in the browser
alone, neither values nor what a program reads. Here each `LazyString` of the configuration is translated when a
language is first requested.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_page_config.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..i18n.language import ENGLISH, language, translate


def translated(value: Any) -> Any:
    """A copy of plain lists and dictionaries with all `LazyString`s in them in the current language."""
    if isinstance(value, str):
        return translate(value)
    if isinstance(value, Mapping):
        return {key: translated(inside) for key, inside in value.items()}
    if isinstance(value, list | tuple):
        return [translated(inside) for inside in value]
    return value


class TranslatedConfig:
    """A page's configuration (`gr.Blocks.config`) by language, each made once."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._configs = {ENGLISH: config}

    def current(self) -> dict[str, Any]:
        """The one in the current language. Gradio copies what it changes of it."""
        if language() not in self._configs:
            self._configs[language()] = translated(self._configs[ENGLISH])
        return self._configs[language()]
