"""Marginal cost per parameter: measured through the page's own code on a tiny model; chart and words say it."""

import json
from dataclasses import replace
from statistics import median

import plotly.graph_objects as go
import pytest
from tiny_page import SOMEBODY, in_job, in_light

from components.ratios.marginal_cost import measure as module
from components.ratios.marginal_cost.chart import marginal_cost_chart
from components.ratios.marginal_cost.measure import MarginalCostCache, typical
from components.ratios.marginal_cost.panel import catalogue
from components.ratios.marginal_cost.views import MarginalCostView


@pytest.fixture(scope="module")
def costs(session) -> MarginalCostCache:
    return MarginalCostCache(session)


@pytest.fixture(scope="module")
def view(costs, tiny) -> MarginalCostView:
    assert costs.cached(tiny) is None
    *events, last = costs.measure(tiny, SOMEBODY)
    assert [event.done for event in events if event.total == 12][-1] == 12
    assert costs.cached(tiny) is last
    return last


def test_costs_are_in_multiples_of_the_medians(view) -> None:
    assert [(one.layer, one.module) for one in view.modules] == [
        (layer, kind) for layer in range(3) for kind in ("attention", "mlp")
    ]
    assert median(one.cost for one in view.modules) == pytest.approx(1)
    assert median(one.predicted["pca"] for one in view.modules) == pytest.approx(1)
    assert {other.estimator for other in view.others} <= {"output-error", "fisher", "uniform"}


def test_what_is_measured_is_known_to_another_page_and_not_of_another_slice(view, session, tiny) -> None:
    assert MarginalCostCache(session).cached(tiny) == view
    assert MarginalCostCache(session).cached(tiny.with_settings(sparsity=20)) is None
    assert MarginalCostCache(session).cached(tiny.with_settings(sparsity=0)) is None


def test_nothing_removed_has_no_marginal_cost(costs, tiny) -> None:
    *_, last = costs.measure(tiny.with_settings(sparsity=0), SOMEBODY)
    assert last.kind == "error"
    assert "no marginal cost" in last.text


@pytest.mark.parametrize("estimator", ["pca", "fisher", "uniform"])
def test_points_are_what_was_measured(view, estimator) -> None:
    chart = marginal_cost_chart(view, estimator, selected=1)
    sent = json.loads(chart.to_json())
    go.Figure(data=in_light(sent["data"]), layout=in_light(sent["layout"]))
    line, points, *_ = sent["data"]
    measured = [one for one in view.modules if one.module == "attention"]
    assert points["y"] == pytest.approx([one.cost for one in measured], rel=1e-3)
    shown = "fisher" if estimator == "fisher" else "pca"
    assert line["y"] == pytest.approx([one.predicted[shown] for one in measured], rel=1e-3)
    assert len(chart.rows) == 6


def test_an_unmeasured_slice_has_a_question_and_no_points() -> None:
    chart = marginal_cost_chart(None, "pca")
    assert all(trace["x"] == [] for trace in chart.data)
    assert catalogue(None, "pca") == ""
    assert chart.layers == 0


def test_the_summary_names_a_swap_and_differences_of_plans(view) -> None:
    summary = catalogue(view, "pca")
    best = view.best_swap
    assert f"Pruning layer {best.source.layer}'s" in summary
    assert f"−{-best.change:.4f} ± {best.error:.4f}" in summary
    assert best.change < 0
    assert "At equal model size, the Uniform plan differs most from this one in layer" in summary


def test_what_is_kept_is_read_as_it_was_written(view, session, tiny, tmp_path, monkeypatch) -> None:
    calibrated, plan = session.calibrated(tiny), session.slice_plan(tiny)
    monkeypatch.setattr(module, "FILE", tmp_path / "prices.json")
    sliced, windows = in_job(session, session.slice, tiny), calibrated.windows
    costs = module.measure_marginal_costs(calibrated.loaded, calibrated.stats, sliced, plan, windows, progress=False)
    module.save(costs)
    kept = module._stored_view(calibrated.source.profile, plan)
    assert "tokens" in kept.measured_on
    assert [one.cost for one in kept.modules] == pytest.approx([one.cost for one in view.modules], rel=1e-3)
    assert replace(kept.best_swap, change=0, error=0, source=0, target=0) == replace(
        view.best_swap, change=0, error=0, source=0, target=0
    )


@pytest.mark.parametrize(
    ("costs", "unit"),
    [([1.0, 2.0, 30.0], 2.0), ([-2.0, -1.0, 3.0], 2.0), ([0.0, 0.0, 1.0], 1.0), ([-4.0, 0.0, 4.0], 4.0)],
)
def test_costs_are_shown_in_multiples_of_a_positive_number(costs, unit) -> None:
    assert typical(costs) == unit
