"""The lesson: eleven questions on the live page. Its texts, and the page's initial state for each step.

Its panel is in `assets/lesson/`.
"""

import json
from functools import cache
from typing import Any

from .assets import ASSETS


@cache
def texts() -> dict[str, Any]:
    """The lesson's texts, and its steps in order."""
    return json.loads((ASSETS / "texts" / "en" / "lesson.json").read_text(encoding="utf-8"))


def state_of(step: Any, phase: Any = 0) -> dict[str, str]:
    """The query parameters of a link to a step's initial state; empty for an unknown step or phase.

    Args:
        step: from 1, as a number or its digits.
        phase: from 0; a step that compares several settings has a phase for each.
    """
    steps = {str(number): content for number, content in enumerate(texts()["steps"], start=1)}
    content = steps.get(str(step), {"states": []})
    states = {str(number): state for number, state in enumerate(content["states"])}
    if str(phase) not in states:
        return {}
    return {**states[str(phase)], "tab": content["tab"]}
