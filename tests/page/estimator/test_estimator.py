"""The Estimator tab on a tiny model: its check and its ratio search, stopped and taken up again."""

import json
from dataclasses import replace
from itertools import groupby

import gradio as gr
import pytest
from tiny_page import SOMEBODY, precomputed_for

from components.estimator import measure as check
from components.estimator.charts import check_summary, estimator_check_chart, search_chart, search_summary
from components.estimator.measure import EstimatorCheckCache, RatioSearches
from components.estimator.panel import Section, use
from components.estimator.views import EstimatorCheckView, Misjudged, RatioSearchView
from components.state.request import Request
from intraslice.search.evolution import SearchConfig
from intraslice.search.ratio_search import SearchProgress


@pytest.fixture(scope="module")
def view(session, tiny) -> EstimatorCheckView:
    """Stopped after the second module, then taken up again."""
    checks = EstimatorCheckCache(session)
    assert checks.cached(tiny) is None
    texts = []
    for event in checks.measure(tiny, SOMEBODY):
        texts.append(event.text)
        if (event.done, event.total) == (2, 6):
            checks.session.jobs.halt(SOMEBODY)
    assert texts[-1] == "Cancelled."
    assert checks.cached(tiny) is None
    *events, last = checks.measure(tiny, SOMEBODY)
    done = [event.done for event in events if event.total]
    assert done[0] >= 2
    assert done[-1] == 6
    assert checks.cached(tiny) is last
    return last


def drawn(view: EstimatorCheckView) -> str:
    return estimator_check_chart(view, "pca").to_json() + check_summary(view, "pca")


def test_a_stopped_measurement_goes_on_where_it_was_and_has_every_module(view, session, tiny) -> None:
    assert view.agreement.modules[["layer", "module"]].values.tolist() == [
        [layer, module] for layer in range(3) for module in ("attention", "mlp")
    ]
    assert view.agreement.rho["pca"].keys() >= {"attention", "mlp"}
    assert drawn(EstimatorCheckCache(session).cached(tiny)) == drawn(view)  # another page knows it at once


def test_the_default_models_stored_check_stays_when_it_is_loaded(view, session, tiny, tmp_path, monkeypatch) -> None:
    calibrated = session.calibrated(tiny)
    measured = check.cached_sensitivity(calibrated.loaded, calibrated.stats, calibrated.windows, check.RATIO)
    layer = precomputed_for(tmp_path, tiny, calibrated.loaded.weights_digest, sensitivity=measured)
    monkeypatch.setattr(session, "precomputed", layer)
    assert drawn(EstimatorCheckCache(session).cached(tiny)) == drawn(view)  # at once on another page
    monkeypatch.setattr(check, "cached_sensitivity", lambda *_: None)
    kept = EstimatorCheckCache(session).cached(tiny)
    assert "Precomputed: Tiny weights on 8 x 32 tokens" in estimator_check_chart(kept, "pca").caption()
    assert kept.agreement.modules["damage"].tolist() == pytest.approx(view.agreement.modules["damage"], rel=1e-3)


@pytest.mark.parametrize("estimator", ["pca", "fisher", "uniform"])
def test_points_are_what_was_measured(view, estimator) -> None:
    chart = estimator_check_chart(view, estimator, selected=1)
    sent = json.loads(chart.to_json())
    attention = sent["data"][0]
    assert attention["customdata"] == [0, 1, 2]
    measured = view.agreement.modules[view.agreement.modules["module"] == "attention"]
    assert attention["y"] == pytest.approx(measured["damage"], rel=1e-3)
    assert attention["x"] == pytest.approx(measured["fisher" if estimator == "fisher" else "pca"], rel=1e-3)
    assert len(chart.rows) == 6


def test_an_unmeasured_model_has_no_points_and_the_misjudged_are_named(view) -> None:
    chart = estimator_check_chart(None, "pca")
    assert all(trace["x"] == [] for trace in chart.data)
    assert check_summary(None, "pca") == ""
    assert chart.layers == 0
    misjudged = Misjudged("pca", 2, "mlp", 1, 3, 3)
    words = check_summary(replace(view, agreement=replace(view.agreement, misjudged=(misjudged,))), "pca")
    assert "Slicing layer 2's MLP does more damage than PCA-aware predicts: measured rank 1 of 3" in words
    words = check_summary(replace(view, agreement=replace(view.agreement, misjudged=())), "fisher")
    assert "no module's predicted rank (Fisher) differs" in words


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
    *_, last = section.measure(tiny.with_settings(sparsity=0), 0, SOMEBODY)
    assert "Move the slider first" in last["progress"]
    assert section.show(setting, 0, SOMEBODY)["progress"] == ""
