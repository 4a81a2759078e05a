"""A tiny model in a folder, its text, and a recipe for it."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import VOCABULARY
from transformers import AutoTokenizer

from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.reporting import Recipe


@pytest.fixture
def recipe_for(tmp_path, own_cache, monkeypatch) -> Callable[..., Recipe]:
    """Writes a case's model into a folder, and makes a one-shot recipe for it."""

    def make(case, dtype: str = "float32", method: str = "intraslice", **slicing) -> Recipe:
        folder, text = tmp_path / case.name, tmp_path / "text.txt"
        case.original.save_pretrained(folder)
        case.loaded.tokenizer.save_pretrained(folder)
        if case.name == "qwen2":  # for which transformers opens a tokenizer of its own kind
            monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: copy.deepcopy(case.loaded.tokenizer))
        words = [f"w{index}" for index in range(4, VOCABULARY)]
        draw = random.Random(0)
        text.write_text("\n\n".join(" ".join(draw.choices(words, k=30)) for _ in range(30)))
        config = SliceConfig(0.3, **({"order": "one-shot"} | slicing))
        calibration, evaluation = CalibrationConfig(str(text), 6, 24), EvaluationConfig(str(text), 48, 24)
        return Recipe(str(folder), config, calibration, evaluation, method, dtype)

    return make


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "sliced"
