"""What does one more parameter cost? Measured through the page's own code on a tiny model; chart and words say it."""

import json
from dataclasses import replace
from statistics import median

import plotly.graph_objects as go
import pytest
from tiny_page import SOMEBODY, in_job, in_light

from components.ratios.prices import measure as module
from components.ratios.prices.chart import price_chart
from components.ratios.prices.measure import PriceViews
from components.ratios.prices.panel import catalogue
from components.ratios.prices.views import PriceView


@pytest.fixture(scope="module")
def prices(session) -> PriceViews:
    return PriceViews(session)


@pytest.fixture(scope="module")
def view(prices, tiny) -> PriceView:
    assert prices.known(tiny) is None
    *events, last = prices.measure(tiny, SOMEBODY)
    assert [event.done for event in events if event.total == 12][-1] == 12
    assert prices.known(tiny) is last
    return last


def test_prices_are_over_the_median_modules(view) -> None:
    assert [(one.layer, one.module) for one in view.modules] == [
        (layer, kind) for layer in range(3) for kind in ("attention", "mlp")
    ]
    assert median(one.times for one in view.modules) == pytest.approx(1)
    assert median(one.predicted["pca"] for one in view.modules) == pytest.approx(1)
    assert {other.estimator for other in view.others} <= {"fisher", "uniform"}


def test_what_is_measured_is_known_to_another_page_and_not_of_another_slice(view, session, tiny) -> None:
    assert PriceViews(session).known(tiny) == view
    assert PriceViews(session).known(tiny.with_settings(sparsity=20)) is None
    assert PriceViews(session).known(tiny.with_settings(sparsity=0)) is None


def test_nothing_removed_has_no_price(prices, tiny) -> None:
    *_, last = prices.measure(tiny.with_settings(sparsity=0), SOMEBODY)
    assert last.kind == "error"
    assert "no price" in last.text


@pytest.mark.parametrize("estimator", ["pca", "fisher", "uniform"])
def test_points_are_what_was_measured(view, estimator) -> None:
    chart = price_chart(view, estimator, selected=1)
    sent = json.loads(chart.to_json())
    go.Figure(data=in_light(sent["data"]), layout=in_light(sent["layout"]))
    line, points, *_ = sent["data"]
    measured = [one for one in view.modules if one.module == "attention"]
    assert points["y"] == pytest.approx([one.times for one in measured], rel=1e-3)
    shown = "fisher" if estimator == "fisher" else "pca"
    assert line["y"] == pytest.approx([one.predicted[shown] for one in measured], rel=1e-3)
    assert len(chart.rows) == 6


def test_an_unmeasured_slice_has_a_question_and_no_points() -> None:
    chart = price_chart(None, "pca")
    assert all(trace["x"] == [] for trace in chart.data)
    assert catalogue(None) == ""
    assert chart.layers == 0


def test_the_words_name_an_exchange_and_where_plans_part(view) -> None:
    words = catalogue(view)
    best = view.exchanged
    assert f"from layer {best.giver.layer}'s" in words
    assert f"{best.change:+.4f} ± {best.error:.4f}" in words
    assert best.change < 0
    assert "Uniform ratios of equal size part most" in words


def test_what_is_kept_is_read_as_it_was_written(view, session, tiny, tmp_path, monkeypatch) -> None:
    calibrated, plan = session.calibrated(tiny), session.slice_plan(tiny)
    monkeypatch.setattr(module, "FILE", tmp_path / "prices.json")
    sliced, windows = in_job(session, session.slice, tiny), calibrated.windows
    prices = module.measure_prices(calibrated.loaded, calibrated.stats, sliced, plan, windows, progress=False)
    module.save(prices)
    kept = module._kept(calibrated.source.profile, plan)
    assert "tokens" in kept.measured_on
    assert [one.times for one in kept.modules] == pytest.approx([one.times for one in view.modules], rel=1e-3)
    assert replace(kept.exchanged, change=0, error=0, giver=0, taker=0) == replace(
        view.exchanged, change=0, error=0, giver=0, taker=0
    )
