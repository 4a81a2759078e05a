"""What estimators, methods and modules are called, and the colours, dashes and symbols that tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from components.i18n.language import LazyString, lazy_gettext, term, translate
from components.state import choices


class Labels(Mapping[str, str]):
    """Labels by name, read off one of the library's registries: what registers itself later is there, too.

    Like `Terms` in the language of the moment. `extra` are names of the page's own; they have a label, but are nothing
    to choose.
    """

    def __init__(self, registry: Mapping[str, Any], extra: Mapping[str, str] | None = None) -> None:
        self._registry, self._extra = registry, extra or {}

    def __getitem__(self, name: str) -> str:
        return translate(self._extra[name]) if name in self._extra else term(self._registry[name].label)

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def options(self) -> list[tuple[str, str]]:
        """What a radio or checkbox group offers: (label, name)."""
        return [(LazyString(partial(self.__getitem__, name)), name) for name in self]


class Terms(Mapping[str, str]):
    """Words by name, in the language of the moment."""

    def __init__(self, words: Mapping[str, LazyString]) -> None:
        self._words = words

    def __getitem__(self, name: str) -> str:
        return translate(self._words[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


ESTIMATORS = Labels(choices.ESTIMATORS, {"manual": lazy_gettext("Manual")})
METHODS = Labels(choices.METHODS)
RECOVERIES = Labels(choices.RECOVERIES, {choices.NO_RECOVERY: lazy_gettext("None")})
MODULES = Terms({"attention": lazy_gettext("Attention"), "mlp": lazy_gettext("MLP")})
MODULES_IN_WORDS = Terms({"attention": lazy_gettext("attention"), "mlp": lazy_gettext("MLP")})  # inside a sentence

# Of `palette.py`. An estimator without a line of its own has the line of "other".
LINE_OF = {"uniform": "baseline", "fisher": "other", "pca": "intraslice"}
# Columns and lines that stand for a whole model, whatever estimator it is sliced by.
METHOD_COLOURS = {"dense": "dense", "intraslice": "intraslice", "crossmodule": "cross"}
# Colour and dash tell estimators and kinds of method apart, symbols tell the methods that share these.
SYMBOLS = {
    "intraslice+": "diamond",
    "crossmodule": "square",
    "modegpt": "star",
    "svd": "cross",
    "wanda": "triangle-up",
    "flap": "x",
}
