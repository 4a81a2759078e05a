"""The Spectra and Activations tabs' handlers, called directly with a real session on a tiny model."""

import json
from dataclasses import astuple, replace
from statistics import fmean

import numpy as np
import pytest
import torch
from tiny_page import SOMEBODY, precomputed_for

from components.activations import panel as activations_panel
from components.activations.charts import MEASURES
from components.activations.measure import ShiftViews
from components.activations.views import ShiftView
from components.assets import ASSETS
from components.spectra import panel as spectra_panel
from components.spectra.measure import (
    CalibratedSpectra,
    PrecomputedSpectra,
    SpectraViews,
    pairs_view,
    precomputed_spectra,
)
from components.spectra.views import Curve
from components.state.precomputed import SHIFT, SPECTRA, UNITS, Precomputed
from components.state.request import Request, parse
from components.state.session import Session
from components.state.settings import Settings
from components.state.units import TOLERANCE, load_units
from intraslice.diagnostics.spectra import LayerSpectra, effective_rank, pair_energies
from intraslice.methods.crossmodule import plan_crossmodule
from intraslice.methods.registry import plan_by
from intraslice.slicing.units import kept_units

ELSE = "somebody else"


@pytest.fixture
def spectra(session) -> SpectraViews:
    return SpectraViews(session)


@pytest.fixture(scope="module")
def activations(session) -> ShiftViews:
    return ShiftViews(session)


@pytest.fixture(scope="module")
def reached(session, tiny) -> dict[bool, Request]:
    """By whether the cross-module method removes as much as is asked, such settings."""
    model, found = session.calibrated(tiny).loaded.model, {}
    for percent in range(20, 60):
        settings = tiny.with_settings(sparsity=percent)
        plan = plan_by("crossmodule", model, None, settings.slicing)
        found[abs(plan.removed_fraction - percent / 100) <= TOLERANCE] = settings
    return found


def traces(chart_json: str, **wanted) -> list[dict]:
    return [one for one in json.loads(chart_json)["data"] if wanted.items() <= one.items()]


def test_curves_and_ranks_are_the_librarys_and_wide_curves_come_when_they_are_found(session, tiny, spectra) -> None:
    stats = session.calibrated(tiny).stats
    assert spectra.view(tiny, 1).curves.mlp is None
    before = spectra_panel.show(spectra, tiny, 1, SOMEBODY)
    assert not traces(before["variance"], name="MLP neurons")
    (map_of_heads,) = traces(before["ranks"], type="heatmap")
    ranks = [effective_rank(LayerSpectra(stats, layer).heads, 0.95).tolist() for layer in range(len(stats.layers))]
    assert np.array(map_of_heads["z"]).T.tolist() == ranks
    spectra.complete(tiny, 1)
    after = spectra_panel.show(spectra, tiny, 1, SOMEBODY)
    assert traces(after["variance"], name="MLP neurons")
    curves, found = spectra.view(tiny, 1).curves, LayerSpectra(stats, 1)
    for name in ("mlp", "residual", "directions"):
        curve, whole = getattr(curves, name), getattr(found, name)
        assert curve.effective_rank == int(effective_rank(whole, 0.95))
        assert curve.at(5) == pytest.approx(whole[4].item(), abs=1e-6)
        assert curve.at(curve.size) == pytest.approx(1, abs=1e-5)
    assert [curve.at(3) for curve in curves.heads] == pytest.approx(found.heads[:, 2].tolist(), abs=1e-6)
    curve = Curve(10, (1, 4, 10), (0.4, 0.7, 1.0), 9)  # which is read off between its points
    assert [curve.at(rank) for rank in (0, 1, 2, 4, 10)] == pytest.approx([0, 0.4, 0.5, 0.7, 1])
    assert spectra.view(tiny, 29).layer == 2  # the last one that there is


def test_marks_follow_the_setting_and_curves_do_not(session, tiny, spectra) -> None:
    spectra.complete(tiny, 0)
    views = [spectra.view(tiny.with_settings(sparsity=percent), 0) for percent in (10, 50)]
    for view, percent in zip(views, (10, 50), strict=True):
        plan = session.slice_plan(tiny.with_settings(sparsity=percent)).layers
        assert (view.heads, view.dims) == ([one.heads for one in plan], [one.dim for one in plan])
        assert view.neurons == plan[0].neurons
    assert views[0].curves is views[1].curves
    assert views[0].neurons > views[1].neurons


def test_cut_pairs_are_struck_out(session, tiny, spectra) -> None:
    every = [tiny.with_settings(sparsity=percent, bias=0.8) for percent in range(20, 61)]
    settings = next(one for one in every if session.slice_plan(one).layers[0].dim < 8)
    calibrated, plan = session.calibrated(tiny), session.slice_plan(settings).layers[0]
    found = pair_energies(calibrated.loaded.model, calibrated.stats, 0, plan)
    crosses = traces(spectra_panel.show(spectra, settings, 0, SOMEBODY)["pairs"], name="pair removed")[0]
    assert len(crosses["x"]) == int((~found.kept).sum()) > 0


@pytest.mark.parametrize("known", ["measured", "kept"])
def test_an_attention_that_goes_whole_keeps_no_pair(tiny, spectra, known) -> None:
    settings = (tiny if known == "measured" else parse(Settings())).with_settings(cap=100, locked="1 attention 100")
    view = spectra.view(settings, 1)
    assert view.heads[1] == ()
    assert not any(map(any, view.pairs.kept))


def test_what_is_not_calibrated_says_what_it_waits_for(spectra, activations, tiny) -> None:
    unknown = tiny.with_settings(seed=5)
    charts = activations_panel.show(activations, unknown, 0, SOMEBODY)
    del charts["summary"]
    charts |= spectra_panel.show(spectra, unknown, 0, SOMEBODY)
    assert len(charts) == 5
    for chart in charts.values():
        assert "calibrated" in json.loads(chart)["layout"]["annotations"][0]["text"]
    assert list(activations_panel.measure(activations, unknown, 0, SOMEBODY)) == []
    impossible = tiny.with_settings(locked="9 mlp 5")
    assert spectra_panel.show(spectra, impossible, 0, SOMEBODY) == {}


def test_both_methods_are_measured_at_equal_parameters_and_where_cross_module_does_not_reach_it_says_so(
    activations, reached
) -> None:
    activations.session.jobs.set_view(SOMEBODY, layer=2)  # chosen while it was measured
    *_, last = activations_panel.measure(activations, settings := reached[True], 1, SOMEBODY)
    assert json.loads(last["shift"])["selected"] == 2
    view = activations.view(settings, "somebody")
    assert "isx-ready" in last["status"]
    assert set(view.methods) == {"intraslice", "crossmodule"}
    for own in view.methods.values():
        assert own.removed == pytest.approx(settings.slicing.sparsity, abs=TOLERANCE)
        assert {len(places) for places in own.places.values()} == {3}
    assert view.missing == ""
    assert f"{view.tokens} held-out tokens" in last["summary"]
    errors = [one.error for one in view.methods["crossmodule"].places["residual"]]
    drawn = traces(last["shift"], name="Cross-module")[0]
    assert drawn["y"] == pytest.approx(errors, rel=1e-4)
    (again, *_) = activations_panel.measure(activations, settings, 1, SOMEBODY)  # and nothing is done twice
    assert again["status"].partition("-->")[2] == last["status"].partition("-->")[2]
    *_, last = activations_panel.measure(activations, reached[False], 0, SOMEBODY)
    assert set(activations.view(reached[False], "somebody").methods) == {"intraslice"}
    assert "No width that is a multiple of 8" in last["summary"]
    assert not traces(last["shift"], name="Cross-module")


def test_another_setting_keeps_what_one_saw_last_and_nobody_else_sees_it(activations, reached) -> None:
    list(activations_panel.measure(activations, settings := reached[True], 0, SOMEBODY))
    other, percent = settings.with_settings(sparsity=11), settings.settings.sparsity
    shown = activations_panel.show(activations, other, 2, SOMEBODY)
    assert f"At {percent:.0f}% sparsity, the relative error of the residual stream" in shown["summary"]
    assert json.loads(shown["shift"])["selected"] == 2
    assert json.loads(activations_panel.show(activations, other, 2, ELSE)["shift"])["data"] == []


def test_what_is_pinned_outlives_a_click_but_not_its_calibration(activations, session, tiny, monkeypatch) -> None:
    pinned = tiny.with_settings(sparsity=61)
    for _ in activations_panel.measure_pinned(activations, tiny, 0, pinned, SOMEBODY):
        session.jobs.set_view(SOMEBODY, request=tiny)  # a click on a layer
    assert set(activations_panel.show_pinned(activations, pinned, 0, SOMEBODY)) == {"shift", "histograms"}
    monkeypatch.setattr(session, "is_calibrated", lambda _: False)
    assert activations_panel.show_pinned(activations, pinned, 0, SOMEBODY) == {}


def test_the_papers_order_waits_for_its_button_and_nothing_removed_for_the_slider(activations, tiny) -> None:
    sequential, nothing = tiny.with_settings(order="sequential"), tiny.with_settings(sparsity=0)
    for settings, words in ((sequential, "Slice sequentially"), (nothing, "Drag the slider.")):
        assert list(activations_panel.measure(activations, settings, 0, SOMEBODY)) == []
        assert words in activations_panel.show(activations, settings, 0, ELSE)["summary"]


def test_what_is_precomputed_is_what_was_measured(session, tiny, activations, reached, tmp_path) -> None:
    list(activations_panel.measure(activations, settings := reached[True], 0, SOMEBODY))
    calibrated, view = session.calibrated(tiny), activations.view(settings, "somebody")
    results = {SPECTRA: precomputed_spectra(calibrated), SHIFT: view, UNITS: calibrated.source.units}
    layer = precomputed_for(tmp_path, tiny, calibrated.loaded.weights_digest, **results)
    measured = CalibratedSpectra(calibrated)
    kept, _, source, _ = layer.find(SPECTRA, tiny.calibration, PrecomputedSpectra)
    units = load_units(tmp_path / "tiny" / f"{UNITS}.npz")
    measured.complete(1)
    assert source.label == "Tiny weights on 8 x 32 tokens of Wikipedia's lead sections, 30 November 2026."
    assert kept.ranks == measured.ranks
    for own, other in zip(flat(kept.curves(1)), flat(measured.curves(1)), strict=True):
        assert (own.size, own.effective_rank, own.ranks) == (other.size, other.effective_rank, other.ranks)
        assert own.explained == pytest.approx(other.explained, rel=1e-6)
    for percent in (20, 50):
        plan = session.slice_plan(tiny.with_settings(sparsity=percent)).layers[1]
        stored, unit = units.layers[1], calibrated.source.units.layers[1]
        assert torch.equal(kept_units(stored, plan)[1], kept_units(unit, plan)[1])
        own = pairs_view(*kept.pair_energies(1), stored, plan)
        other = pair_energies(calibrated.loaded.model, calibrated.stats, 1, plan)
        assert own.kept == other.kept.tolist()
        assert np.array(own.energy) == pytest.approx(other.energy.numpy(), rel=1e-5)
        cross, sliced = units.width(percent / 100), plan_crossmodule(calibrated.loaded.model, percent / 100)
        assert cross == (sliced.width, pytest.approx(sliced.removed_fraction))
    again = layer.find(SHIFT, tiny.calibration, ShiftView).value
    assert replace(again, methods={}) == replace(view, methods={})
    own, other = (one.methods["crossmodule"].places["mlp"][2] for one in (again, view))
    numbers, others = (astuple(replace(one, histogram=None)) for one in (own, other))
    assert numbers == pytest.approx(others, rel=1e-6, nan_ok=True)
    assert own.histogram.density == pytest.approx(other.histogram.density, rel=1e-6)


def flat(curves) -> list[Curve]:
    return [*curves.heads, *curves.groups, curves.mlp, curves.residual, curves.directions]


@pytest.mark.slow
def test_the_precomputed_spectra_are_the_default_models() -> None:
    session = Session()
    opening = parse(Settings())
    list(session.prepare(opening, "somebody"))
    measured = CalibratedSpectra(session.calibrated(opening))
    kept = session.precomputed.find(SPECTRA, opening.calibration, PrecomputedSpectra).value
    measured.complete(7)
    for own, other in zip(flat(kept.curves(7)), flat(measured.curves(7)), strict=True):
        assert own.explained == pytest.approx(other.explained, abs=1e-3)
        assert own.effective_rank == other.effective_rank
    own, other = (found.pair_energies(7)[0].numpy() for found in (kept, measured))
    assert own == pytest.approx(other, rel=1e-3)


def test_the_words_under_the_shift_have_the_precomputed_numbers() -> None:
    text = " ".join((ASSETS / "texts" / "en" / "shift.html").read_text(encoding="utf-8").split())
    view = Precomputed().find(SHIFT, parse(Settings()).calibration, ShiftView).value
    intra, cross = (method.places["residual"] for method in view.methods.values())
    mean = {name: [fmean(getattr(one, name) for one in shifts) for shifts in (intra, cross)] for name in MEASURES}
    assert "{:.0%} against {:.0%}".format(*mean["error"]) in text
    assert "{:.2f} against {:.2f} standard deviations".format(*mean["distance"]) in text
    assert f"to a quarter ({intra[-1].error:.0%})" in text
    assert f"in the {view.order} order" in text
    for own, other in zip(intra, cross, strict=True):  # in every layer, by every measure
        assert (own.error < other.error, own.cosine > other.cosine, own.distance < other.distance) == (True,) * 3
