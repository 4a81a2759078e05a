"""Labels of estimators, methods and modules, and their colours, dashes and symbols."""

from collections import UserDict
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from ..i18n.language import LazyString, lazy_gettext, term, translate
from ..state import choices


class Labels(Mapping[str, str]):
    """Labels of a registry's entries in the current language; `extra` has labels of names that are no options."""

    def __init__(self, registry: Mapping[str, Any], extra: Mapping[str, str]) -> None:
        self._registry, self._extra = registry, extra

    def __getitem__(self, name: str) -> str:
        return translate(self._extra[name]) if name in self._extra else term(self._registry[name].label)

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def options(self) -> list[tuple[str, str]]:
        """The options of a radio or checkbox group: (label, name)."""
        return [(LazyString(partial(self.__getitem__, name)), name) for name in self]


class Terms(UserDict[str, str]):
    """Texts by name, in the current language."""

    def __getitem__(self, name: str) -> str:
        return translate(self.data[name])


ESTIMATORS = Labels(
    choices.ESTIMATORS, {"manual": lazy_gettext("Manual"), choices.AUTO: lazy_gettext("By measurement")}
)
METHODS = Labels(choices.METHODS, {"dense": lazy_gettext("Dense")})
MODULES = Terms({"attention": lazy_gettext("Attention"), "mlp": lazy_gettext("MLP")})
MODULES_IN_WORDS = Terms({"attention": lazy_gettext("attention"), "mlp": lazy_gettext("MLP")})  # inside a sentence

# Colours of `palette.py` for estimators; those that are not listed have the colour "other".
ESTIMATOR_COLOURS = {"uniform": "baseline", "fisher": "other", "output-error": "indigo", "pca": "intraslice"}
# Colours of methods, for columns and lines that do not depend on an estimator.
METHOD_COLOURS = {
    "dense": "dense",
    "intraslice": "intraslice",
    "paper": "olive",
    "paper-direct": "teal",
    "crossmodule": "cross",
    "wanda": "crimson",
    "modegpt": "olive",
    "flatllm": "teal",
    "shortgpt": "indigo",
    "shortgpt-rescaled": "indigo",
}
# Symbols of methods; some methods share a colour and a dash.
SYMBOLS = {
    "intraslice+": "diamond",
    "paper": "pentagon",
    "paper-direct": "hexagon",
    "crossmodule": "square",
    "modegpt": "star",
    "flatllm": "hexagram",
    "shortgpt": "diamond-wide",
    "shortgpt-rescaled": "diamond-tall",
    "wanda": "triangle-up",
    "flap": "x",
}
