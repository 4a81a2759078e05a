"""The inputs of an endpoint by position."""

from collections.abc import Sequence
from typing import Any

from components.ui.handlers import YOUNGER


def inputs_of(settings: Sequence[Any], *others: Any) -> list[Any]:
    """The values of a call: settings, the endpoint's other parameters, then the settings that came after those."""
    first = len(settings) - len(YOUNGER)
    return [*settings[:first], *others, *settings[first:]]
