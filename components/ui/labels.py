"""What estimators, methods and modules are called, and the colours, dashes and symbols that tell them apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from components.session import choices


class Labels(Mapping[str, str]):
    """Labels by name, read off one of the library's registries: what registers itself later is there, too.

    `extra` are names of the page's own; they have a label, but are nothing to choose.
    """

    def __init__(self, registry: Mapping, extra: Mapping[str, str] | None = None) -> None:
        self._registry, self._extra = registry, extra or {}

    def __getitem__(self, name: str) -> str:
        return self._extra[name] if name in self._extra else self._registry[name].label

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)

    def options(self) -> list[tuple[str, str]]:
        """What a radio or checkbox group offers: (label, name)."""
        return [(label, name) for name, label in self.items()]


ESTIMATORS = Labels(choices.ESTIMATORS, {"manual": "By hand"})
METHODS = Labels(choices.METHODS)
MODULES = {"attention": "Attention", "mlp": "MLP"}
MODULES_IN_WORDS = {"attention": "attention", "mlp": "MLP"}  # inside a sentence

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
