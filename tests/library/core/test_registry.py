"""Registries: what is chosen by name, in order, with words for whoever asks for what is not there."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from intraslice.core.errors import UserError
from intraslice.core.registry import Registry


@dataclass(frozen=True)
class Tea:
    name: str
    label: str = "Tea"
    explanation: str = "leaves in water"


def teas(*names: str) -> Registry[Tea]:
    registry: Registry[Tea] = Registry("tea")
    for name in names:
        registry.register(Tea(name))
    return registry


def test_entries_come_in_the_order_of_registration():
    assert list(teas("green", "black", "white")) == ["green", "black", "white"]
    assert teas("green", "black").help() == "green: leaves in water; black: leaves in water"


def test_an_unknown_name_is_told_the_known_ones():
    assert teas("green").require("green") == Tea("green")
    with pytest.raises(UserError, match="tea must be one of green, black, got 'red'"):
        teas("green", "black").require("red")


@pytest.mark.parametrize("name", ["green", "earl grey", "", " "])
def test_a_name_is_one_word_and_nothing_is_replaced(name):
    registry = teas("green")
    with pytest.raises(ValueError, match=f"tea {name!r}"):
        registry.register(Tea(name))
    assert list(registry) == ["green"]
