"""The ratio search through the page's own code on a tiny model: live views, a stop, and ratios that can be locked."""

import json
from dataclasses import replace
from itertools import groupby

import gradio as gr
import pytest
from tiny_page import SOMEBODY

from components.estimator.charts import search_chart, search_summary
from components.estimator.measure import RatioSearches
from components.estimator.panel import Section, use
from components.estimator.views import RatioSearchView
from components.state.request import Request
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import SearchProgress

FEW = SearchConfig(passes=9, children=3, windows=1)


@pytest.fixture(scope="module")
def searches(session) -> RatioSearches:
    return RatioSearches(session, FEW)


@pytest.fixture(scope="module")
def setting(tiny) -> Request:
    return tiny.with_settings(sparsity=25)


@pytest.fixture(scope="module")
def views(searches, setting) -> list[RatioSearchView]:
    assert searches.cached(setting) is None
    found = [event for event in searches.measure(setting, SOMEBODY) if isinstance(event, RatioSearchView)]
    assert searches.cached(setting) is found[-1]
    return found


def test_every_generation_is_shown_and_the_end_stays_for_everybody(views, searches, setting) -> None:
    assert views[0].found.ratios == views[0].start
    generations = [count for count, _ in groupby(len(view.found.changes) for view in views)]
    assert generations == [*range(generations[-1] + 1)]
    assert [view.is_complete for view in views] == [False] * (len(views) - 1) + [True]
    assert views[-1].found.passes >= FEW.passes
    assert views[-1].found.ratios != views[-1].start
    assert [*searches.measure(setting, "another")] == [views[-1]]
    assert searches.cached(setting) is views[-1]


def test_the_ratios_found_can_be_locked_and_are_the_plans(views, searches, session, setting) -> None:
    locked = setting.with_settings(locked=use(searches, session, setting)["locked"])
    plan, before = session.slice_plan(locked), session.slice_plan(setting)
    found = views[-1].found.ratios
    ratios = [getattr(plan.layers[layer], f"{module}_ratio") for layer, module in found]
    differing = [place for place, ratio in zip(found, ratios, strict=True) if abs(found[place] - ratio) > 1e-6]
    assert len(differing) <= 1  # the MLP that absorbs the remainder
    assert plan.removed_fraction == pytest.approx(before.removed_fraction, abs=0.01)
    assert searches.cached(locked) is views[-1]  # which the search does not see


def test_a_stopped_search_goes_on(searches, session, tiny) -> None:
    setting = tiny.with_settings(sparsity=45)
    running = searches.measure(setting, SOMEBODY)
    stopped = next(event for event in running if isinstance(event, RatioSearchView) and len(event.found.changes) == 1)
    running.close()
    again = next(event for event in searches.measure(setting, SOMEBODY) if isinstance(event, RatioSearchView))
    assert again == stopped


def test_what_cannot_be_searched_or_locked_is_said(searches, session, tiny) -> None:
    for changes, words in (({"sparsity": 0}, "no ratios to search"), ({"estimator": "uniform"}, "got uniform")):
        *_, last = searches.measure(tiny.with_settings(**changes), SOMEBODY)
        assert (last.kind, words in last.text) == ("error", True)
    refused = use(searches, session, tiny.with_settings(sparsity=10))
    assert "Press “Search for better ratios” first" in refused["progress"]


def test_the_chart_and_its_words_say_what_was_found(views) -> None:
    sent = json.loads(search_chart(views[-1], "pca", selected=1).to_json())
    bars, line, *_ = sent["data"]
    found, start = views[-1].found, views[-1].start
    assert bars["y"] == pytest.approx([found.ratios[layer, "attention"] for layer in bars["x"]], abs=1e-4)
    assert line["y"] == pytest.approx([start[layer, "attention"] for layer in line["x"]], abs=1e-4)
    assert len(sent["table"]["rows"]) == len(bars["x"]) == len(found.ratios) / 2
    assert f"{found.after:.3f}" in search_summary(views[-1], "pca")
    running = replace(views[-1], found=SearchProgress(found.ratios, start, 3, found.passes, (-0.1, 0.0, -0.1)))
    assert "changed by <b>−19%</b>" in search_summary(running, "pca")
    assert search_summary(None, "pca") == ""
    assert search_chart(None, "pca").rows == []


def test_a_measurement_goes_on_out_of_sight_where_the_settings_have_changed(searches, session, tiny) -> None:
    with gr.Blocks():
        section = Section(searches, search_chart, search_summary, "search", "search", "Search", 440)
    setting = tiny.with_settings(sparsity=35)
    answers = section.measure(setting, 0, SOMEBODY)
    shown = next(answer for answer in answers if "summary" in answer)
    session.jobs.set_view(SOMEBODY, request=tiny)
    hidden = [*answers]
    assert shown["summary"]
    assert {answer["summary"] for answer in hidden if "summary" in answer} == {""}  # nothing of these settings
    assert searches.cached(setting).is_complete
