"""Links, and the lesson, whose states a link may carry: what they restore, and what is left out of them."""

import json
import re
from types import SimpleNamespace
from typing import Any

import pytest

from components import tabs
from components.assets import ASSETS
from components.frame import handlers, link
from components.i18n.language import ENGLISH, long_text, use_language
from components.state.session import Session
from components.state.settings import Settings

STEPS = json.loads(long_text("lesson.json", ENGLISH))["steps"]


def restore(**query: str) -> dict:
    return link.restore(Session(), SimpleNamespace(query_params=query))


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
    opened = restore(lesson="5")
    assert (opened["estimator"], opened["sparsity"], opened["tabs"].selected) == ("uniform", 30, "ratios")
    opened = restore(lesson="5", sparsity="12")
    assert (opened["estimator"], opened["sparsity"]) == ("uniform", 12)


def test_a_link_without_an_estimator_means_the_default_and_the_page_alone_opens_with_the_chosen_one() -> None:
    chosen = Session().opening.settings.estimator
    assert chosen != Settings().estimator
    pages = {}, {"tab": "sweep", "lang": "de"}, {"lesson": "99"}
    assert {restore(**query)["estimator"] for query in pages} == {chosen}
    links = {"sparsity": "20"}, {"dtype": "float32"}, {"lesson": "1"}, {"model": "a/b", "layer": "3"}
    assert {restore(**query)["estimator"] for query in links} == {Settings().estimator}


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


def test_a_link_restores_the_page_and_the_layer_slider_ends_at_the_models_last_layer(session, tiny) -> None:
    query = {"sparsity": "45", "estimator": "fisher", "layer": "7", "prompt": "Hello", "bias": "nonsense"}
    query |= {"shapes": "runtime", "samples": "16", "tab": "compare"}
    restored, usual = restore(**query), restore()
    expected = {"sparsity": 45, "estimator": "fisher", "shapes": "runtime", "samples": 16, "layer": 7}
    assert restored | expected | {"prompt": "Hello"} == restored
    assert (restored["tabs"].selected, usual["samples"]) == ("compare", 0)
    assert restored["bias"] is usual["bias"] is Settings().bias is None
    assert restore(bias="1.35")["bias"] == 1.35

    def layer_of(**query: str) -> Any:
        return link.restore(session, SimpleNamespace(query_params=query))["layer"]

    for layer, kept in {"29": 29, "30": 0, "2.5": 0, "-1": 0, "1e400": 0}.items():  # what the model lacks is left out
        assert layer_of(layer=layer) == kept
    query = {name: str(getattr(tiny.settings, name)) for name in ("model", "text", "sequences", "length")}
    opened, unknown = layer_of(**query, dtype=tiny.calibration.dtype, layer="3"), layer_of(model="a/b", layer="31")
    fitted = handlers.fit_layers(session, tiny, unknown["value"])["layer"]
    assert [(one["value"], one["maximum"]) for one in (opened, unknown, fitted)] == [(0, 2), (31, 31), (2, 2)]


def test_a_link_with_what_was_removed_opens_and_says_what_replaces_it() -> None:
    sentence, usual = "Iterative was removed; use order sequential", restore()
    for query in ({"iterative": "true"}, {"pinned": "sparsity=30&iterative=True"}):
        opened = restore(sparsity="45", order="sequential", **query)
        assert (opened["sparsity"], opened["order"], opened["pinned"]) == (45, "sequential", "")
        assert opened["iterative"] is False
        assert sentence in opened["notice"]
    opened = restore(recovery="distill-ce", iterative="true", sparsity="99")
    assert "distill-ce was removed; use distill" in opened["notice"]
    assert sentence in opened["notice"]
    assert (opened["recovery"], opened["sparsity"]) == (usual["recovery"], usual["sparsity"])
    for query in ({"iterative": "false"}, {"pinned": "sparsity=30&iterative=False"}, {"order": "x"}):
        assert restore(**query)["notice"] == ""
    with use_language("de"):
        assert "gibt es nicht mehr" in restore(iterative="true")["notice"]


def test_a_link_brings_nothing_that_the_page_would_refuse(monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    usual = restore(seed="0")
    files = ["/srv/model", "/srv/secret.csv", "/srv/x.csv"]
    others = ["1e9", "8192", "-1", "nan", "<b>", "inf", "101", "any", "perhaps", "much", "int4"]
    others += ["square", "never", "-2", "-1", "x" * 17_000, "sparsity=1e9"]
    hostile = dict(zip(link.default_link(), [*files, *others], strict=True))
    found = restore(**hostile)
    assert found | {"tabs": None, "notice": ""} == usual | {"tabs": None}
    assert "model" in found["notice"]
    assert "/srv" not in found["notice"]
    assert restore(sparsity="45", unknown="x" * 20_000)["sparsity"] == usual["sparsity"]
