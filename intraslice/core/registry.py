"""What can be chosen by name. An entry registers itself in the file that it is written in, or from anywhere outside."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from intraslice.core.errors import UserError


@runtime_checkable
class Named(Protocol):
    """What every entry says of itself: to programs, on charts and buttons, and in one line of help."""

    @property
    def name(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def explanation(self) -> str: ...


Entry = TypeVar("Entry", bound=Named)


class Registry(dict[str, Entry]):
    """Entries by name, in the order in which they are offered. `kind` is what messages call an entry."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, entry: Entry) -> Entry:
        """Add an entry. Raises ValueError where its name is no single word or is taken: nothing replaces another."""
        if len(entry.name.split()) != 1:
            raise ValueError(
                f"{self.kind} {entry.name!r} has no name of one word; give it one, such as 'my-{self.kind}'"
            )
        if entry.name in self:
            raise ValueError(f"there is {self.kind} {entry.name!r} already; `del` it first, or take another name")
        self[entry.name] = entry
        return entry

    def require(self, name: str) -> Entry:
        """The entry of that name. Raises UserError, with all names, where there is none."""
        if name not in self:
            raise UserError(f"{self.kind} must be one of {', '.join(self)}, got {name!r}")
        return self[name]

    def help(self) -> str:
        """All entries, each with its explanation, for the command line's help."""
        return "; ".join(f"{name}: {entry.explanation}" for name, entry in self.items())


# The configs check names against it, so it stands below them; `planning/estimators` fills it.
ESTIMATORS: Registry[Any] = Registry("estimator")
RECOVERIES: Registry[Any] = Registry("recovery")  # filled by `recovery`
