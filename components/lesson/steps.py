"""The lesson's steps as the server knows them: the state of the page that each one begins with."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from components.assets import ASSETS


@cache
def texts() -> dict[str, Any]:
    """All of the lesson: its words, and its steps in their order."""
    return json.loads((ASSETS / "texts" / "en" / "lesson.json").read_text(encoding="utf-8"))


def state_of(step: Any, phase: Any = 0) -> dict[str, str]:
    """What a link to a step's state would carry; nothing for a step or a phase that there is not.

    Args:
        step: from 1, as a link has it: a number, or its digits.
        phase: from 0; steps that compare several settings have as many.
    """
    steps = {str(number): described for number, described in enumerate(texts()["steps"], start=1)}
    described = steps.get(str(step), {"states": []})
    states = {str(number): state for number, state in enumerate(described["states"])}
    if str(phase) not in states:
        return {}
    return {**states[str(phase)], "tab": described["tab"]}
