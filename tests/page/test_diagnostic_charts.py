"""The charts of the Spectra and Activations tabs: plain numbers in, valid plotly figures and tables out."""

import json
import math
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from tiny_page import in_light

from components.activations.charts import PLACES, finding, histogram_chart, shift_chart
from components.activations.views import Histogram, MethodShift, PlaceShift, ShiftView
from components.spectra.charts import variance_chart
from components.spectra.head_charts import pair_chart, rank_chart
from components.spectra.views import Curve, LayerCurves, PairsView, SpectraView, curve_ranks
from components.ui import figure
from components.ui.figure import Chart

HEAD = Curve(4, (1, 2, 3, 4), (0.5, 0.8, 0.96, 1.0), 3)
WIDE = Curve(300, curve_ranks(300), [rank / 300 for rank in curve_ranks(300)], 285)


def spectra_view(**changes) -> SpectraView:
    view = SpectraView(
        layer=1,
        curves=LayerCurves((HEAD,) * 4, (HEAD,) * 2, WIDE, WIDE, WIDE),
        pairs=PairsView([[3.0, 1.0], [0.5, 0.5]], [[True, False], [False, True]], [1.0, 0.001]),
        dim=4,
        ranks=[[1, 2, 3, 4]] * 3,
        heads=[(0, 1, 2, 3), (0, 2), (0, 1, 2, 3)],
        dims=[4, 2, 4],
        neurons=200,
        width=150,
    )
    return replace(view, **changes)


def shift_view(massive: float = math.nan) -> ShiftView:
    histogram = Histogram(-1.0, 1.0, [0.0, 0.5, 1.0, 0.5], 0.01, 0.4, 12.5)

    def method(error: float) -> MethodShift:
        shift = PlaceShift(error, massive, 1 - error, massive, error / 10, histogram)
        return MethodShift(0.3, {place: [shift] * 3 for place in PLACES}, {place: [histogram] * 3 for place in PLACES})

    return ShiftView(0.3, {"intraslice": method(0.2), "crossmodule": method(0.5)}, 2048, 512, 6, "a text")


def every_chart() -> dict[str, Chart]:
    alone = replace(shift_view(), methods={"intraslice": shift_view().methods["intraslice"]})
    return {
        "variance": variance_chart(spectra_view()),
        "heads first": variance_chart(spectra_view(curves=LayerCurves((HEAD,) * 4, (HEAD,) * 2), width=None)),
        "own value heads": variance_chart(spectra_view(curves=LayerCurves((HEAD,) * 4, (HEAD,) * 4, WIDE, WIDE, WIDE))),
        "ranks": rank_chart(spectra_view()),
        "pairs": pair_chart(spectra_view()),
        "shift": shift_chart(shift_view(0.1), 1),
        "intraslice alone": shift_chart(alone),
        "histograms": histogram_chart(shift_view(), 2),
        "waiting": figure.waiting("Effective rank per head", "It follows."),
    }


@pytest.mark.parametrize("name", list(every_chart()))
def test_figures_are_valid_plotly_with_a_heading_and_a_question_and_tables_are_full(name: str) -> None:
    chart = every_chart()[name]
    sent = json.loads(chart.to_json())
    drawn = go.Figure(data=in_light(sent["data"]), layout=in_light(sent["layout"]))
    assert len(drawn.data) == len(sent["data"])
    assert chart.title
    assert not chart.title.endswith(("?", "."))
    assert name == "waiting" or re.match(r"[A-Z][^.?:]*\? [A-Z]", chart.note)
    assert chart.rows
    assert {len(row) for row in chart.rows} == {len(chart.columns)}


def test_rings_mark_what_is_kept() -> None:
    shade, *rings = variance_chart(spectra_view()).layout["shapes"]
    assert [ring["xanchor"] for ring in rings] == pytest.approx([2, 2, 200 / 300, 0.5, 0.5])
    assert [ring["yanchor"] for ring in rings] == pytest.approx([0.8, 0.8, 200 / 300, 0.5, 0.5], rel=1e-3)
    assert (shade["x0"], shade["x1"]) == (2, 4)


def test_heads_that_go_are_dotted_and_crossed() -> None:
    lines = [trace for trace in variance_chart(spectra_view()).data if trace["name"] == "Query heads removed"]
    assert [line["line"]["dash"] for line in lines] == ["dot", "dot"]
    (crosses,) = (trace for trace in rank_chart(spectra_view()).data if trace["type"] == "scatter")
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(1, 1), (1, 3)]
    assert rank_chart(spectra_view()).rows[1][-2:] == ["1, 3", "2"]


def test_a_module_that_goes_whole_has_no_rings() -> None:
    gone = spectra_view(
        heads=[(0, 1), (), (0,)], dims=[4] * 3, neurons=0, pairs=PairsView([[3.0], [0.5]], [[False]] * 2, [1.0])
    )
    chart = variance_chart(gone)
    shade, *rings = chart.layout["shapes"]
    assert (shade["x0"], shade["x1"], len(rings)) == (0, 4, 2)  # those of the residual stream
    assert [note["text"].count("the whole module is removed") for note in chart.layout["annotations"]] == [1, 1]
    assert [row[-1] for row in chart.rows] == ["removed"] * 7 + ["150"] * 2
    assert rank_chart(gone).rows[1][-2:] == ["0, 1, 2, 3", "0"]
    assert "no key head is kept" in pair_chart(gone).note


def test_pairs_say_how_long_they_turn_and_which_are_cut() -> None:
    chart = pair_chart(spectra_view())
    assert chart.rows == [["0", "6", "75.0%", "50.0%, removed"], ["1", "6,283", "25.0%, removed", "50.0%"]]
    (crosses,) = (trace for trace in chart.data if trace["type"] == "scatter")
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(1, 0), (0, 1)]


def test_zoom_is_kept_while_the_slider_moves() -> None:
    for chart in (variance_chart, rank_chart, pair_chart):
        first, second = (chart(spectra_view(neurons=own)).layout["uirevision"] for own in (200, 100))
        assert first == second


def test_methods_keep_their_colours_and_dashes() -> None:
    for chart in (shift_chart(shift_view()), histogram_chart(shift_view(), 0)):
        lines = {trace["name"]: trace["line"] for trace in chart.data}
        assert (lines["IntraSlice"]["color"], lines["IntraSlice"]["dash"]) == ("@intraslice", "solid")
        assert (lines["Cross-module"]["color"], lines["Cross-module"]["dash"]) == ("@cross", "dash")


def test_massive_tokens_wait_in_the_legend_and_may_be_none() -> None:
    massive = [trace for trace in shift_chart(shift_view()).data if "massive" in trace["name"]]
    assert {trace["visible"] for trace in massive} == {"legendonly"}
    assert massive[0]["y"] == [None, None, None]
    assert "NaN" not in shift_chart(shift_view()).to_json()
    assert shift_chart(shift_view()).rows[0][2] == "–"


def test_histograms_show_the_middle_and_tell_the_moments() -> None:
    chart = histogram_chart(shift_view(), 1)
    assert chart.layout["xaxis"]["range"] == pytest.approx([-0.5, 1.0])
    assert chart.rows[0] == ["Residual stream", "Dense", "0.010", "0.400", "12.5", "–", "–", "–"]
    assert chart.rows[2][-3:] == ["50.0%", "0.500", "0.050"]


def test_the_finding_is_the_mean_over_layers() -> None:
    assert finding(shift_view()) == "IntraSlice 20%, Cross-module 50%"


def test_few_axes_are_all_drawn_and_many_are_thinned_to_both_ends() -> None:
    assert curve_ranks(5) == [1, 2, 3, 4, 5]
    assert (len(curve_ranks(1536)), curve_ranks(1536)[0], curve_ranks(1536)[-1]) == (120, 1, 1536)
    assert curve_ranks(1) == [1]
