"""The lesson on the server: its texts are whole, its states are ones that a link may carry, its links open them."""

import json
import re
from types import SimpleNamespace

import pytest

from components import tabs
from components.assets import ASSETS
from components.frame import link
from components.i18n.language import ENGLISH, long_text
from components.state.settings import Settings

STEPS = json.loads(long_text("lesson.json", ENGLISH))["steps"]


def begun(step: object, phase: object = 0) -> dict:
    return link.begin_step(SimpleNamespace(step=step, phase=phase))


@pytest.mark.parametrize("number", range(1, len(STEPS) + 1))
def test_every_state_is_one_that_the_page_takes(number) -> None:
    step = STEPS[number - 1]
    for phase, state in enumerate(step["states"]):
        values = begun(number, phase)
        for name, wanted in state.items():
            assert str(values[name]).removesuffix(".0") == wanted
        assert link.state_of(number, phase)["tab"] in tabs.TABS
        assert not values.keys() & set(link.KEPT) - state.keys()
        assert values["locked"] == ""
        assert values["refresh"]


@pytest.mark.parametrize(("step", "phase"), [(0, 0), (12, 0), (1, 1), ("x", 0), (None, 0), (5, "-1"), ([], {})])
def test_a_step_that_there_is_not_changes_nothing(step, phase) -> None:
    assert begun(step, phase) == {}


def test_a_link_opens_a_step_and_what_it_says_itself_goes_first() -> None:
    opened = link.restore(SimpleNamespace(query_params={"lesson": "5"}))
    assert (opened["estimator"], opened["sparsity"], opened["tabs"].selected) == ("uniform", 30, "ratios")
    opened = link.restore(SimpleNamespace(query_params={"lesson": "5", "sparsity": "12"}))
    assert (opened["estimator"], opened["sparsity"]) == ("uniform", 12)
    assert link.restore(SimpleNamespace(query_params={"lesson": "99"}))["estimator"] == Settings().estimator


def test_every_step_asks_answers_and_tells_of_large_models() -> None:
    script = (ASSETS / "lesson" / "answers.js").read_text(encoding="utf-8")
    known = re.search(r"lesson\.answers = \{(.*?)\}", script)[1]
    kinds = re.search(r"controls = \{(.*?)\}", (ASSETS / "lesson" / "controls.js").read_text(encoding="utf-8"))[1]
    assert len(STEPS) == 11
    for step in STEPS:
        assert step["id"] in [name.split(":")[0].strip() for name in known.split(",")]
        assert step["control"]["kind"] in [name.strip() for name in kinds.split(",")]
        assert all(step[part] for part in ("title", "question", "answer", "meaning", "large", "notes"))
        for name in re.findall(r"\{(\w+)\}", step["answer"]):  # every gap is filled by the script
            assert re.search(rf"\b{name}\b", script)
