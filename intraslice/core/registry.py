"""Registries of estimators, methods and recoveries by name. Each is registered in the file that defines it."""

from typing import Any, TypeVar

from intraslice.core.checks import one_of

# With a `name` for programs, a `label` for charts and buttons, and an `explanation`, one line of help.
Entry = TypeVar("Entry", bound=Any)


class Registry(dict[str, Entry]):
    """Entries by name, in the order in which they are listed. `kind` names an entry in messages."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def register(self, entry: Entry) -> Entry:
        """Add an entry. Raises ValueError where its name is not one word, or already registered."""
        named = f"{self.kind} {entry.name!r}"
        if len(entry.name.split()) != 1:
            raise ValueError(f"{named} has an invalid name; expected one word, such as 'my-{self.kind}'")
        if entry.name in self:
            raise ValueError(f"{named} is already registered; delete it first, or choose another name")
        self[entry.name] = entry
        return entry

    def require(self, name: str) -> Entry:
        """The entry with this name. Raises UserError, which lists all names, if there is none."""
        return self[one_of(self.kind, name, self)]

    def help(self) -> str:
        """All entries with their explanations, for the command line's help."""
        return "; ".join(f"{name}: {entry.explanation}" for name, entry in self.items())


# Defined here because the configs validate names against them. `planning/estimators` fills the first.
ESTIMATORS: Registry[Any] = Registry("estimator")
RECOVERIES: Registry[Any] = Registry("recovery")  # filled by `recovery`
