"""Estimator check: measured through the page's own code on a tiny model; chart and words say what was measured."""

import json
from dataclasses import replace

import pytest
from tiny_page import SOMEBODY, precomputed_for

from components.estimator import measure as check
from components.estimator.charts import check_summary, estimator_check_chart
from components.estimator.measure import EstimatorCheckCache
from components.estimator.views import EstimatorCheckView, Misjudged


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
