"""Settings are validated at birth, in one line that names the field."""

import sys
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import numpy
import pytest

from intraslice.core.cache import cache_folder
from intraslice.core.config import CalibrationConfig, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.registry import Registry


def test_settings_are_values_with_numbers_and_paths_as_pythons_own():
    assert SliceConfig(0.3) == SliceConfig(0.3) != SliceConfig(0.31)
    assert {CalibrationConfig(): "kept"}[CalibrationConfig()] == "kept"
    with pytest.raises(FrozenInstanceError):
        SliceConfig().sparsity = 0.4
    config = SliceConfig(
        numpy.float64(0.5), epochs=numpy.int64(2), locked=[[numpy.int64(1), "mlp", numpy.float32(0.25)]]
    )
    assert repr(config) == repr(SliceConfig(0.5, epochs=2, locked=((1, "mlp", 0.25),)))
    calibration = CalibrationConfig(Path("text.txt"), numpy.int64(16))
    assert repr(calibration) == repr(CalibrationConfig("text.txt", 16))


def test_the_cache_folder_is_the_users_choice_else_the_platforms(monkeypatch, tmp_path):
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("INTRASLICE_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.delenv("INTRASLICE_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "intraslice"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "intraslice"


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


def test_entries_come_in_the_order_of_registration_and_an_unknown_name_is_told_them():
    assert list(teas("green", "black", "white")) == ["green", "black", "white"]
    assert teas("green", "black").help() == "green: leaves in water; black: leaves in water"
    assert teas("green").require("green") == Tea("green")
    with pytest.raises(UserError, match="tea must be one of green, black, got 'red'"):
        teas("green", "black").require("red")


@pytest.mark.parametrize("name", ["green", "earl grey", "", " "])
def test_a_name_is_one_word_and_nothing_is_replaced(name):
    registry = teas("green")
    with pytest.raises(ValueError, match=f"tea {name!r}"):
        registry.register(Tea(name))
    assert list(registry) == ["green"]
