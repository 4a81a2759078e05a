"""All charts are pure: plain numbers in; a valid plotly figure, a caption and the same numbers as a data table out."""

import importlib
import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pandas
import plotly.graph_objects as go
import pytest
from tiny_page import curves, in_light, plan_view

from components.activations.charts import PLACES, finding, histogram_chart, shift_chart
from components.activations.views import Histogram, MethodShift, PlaceShift, ShiftView
from components.assets import ASSETS
from components.compare.charts import facts_chart
from components.compare.views import FactsColumn, FactsView
from components.estimator.charts import convergence_chart, estimator_check_chart, search_chart
from components.estimator.views import EstimatorCheckView, RatioSearchView
from components.ratios.anatomy_charts import map_chart, opened_chart, packed
from components.ratios.charts import importance_chart, ratio_chart
from components.spectra.charts import pair_chart, rank_chart, variance_chart
from components.spectra.views import Curve, LayerCurves, PairsView, SpectraView, curve_ranks
from components.state.leaderboard import cells, timings
from components.state.plan_views import MapRow, MapView, OpenedView
from components.state.task_scores import comparable, scores
from components.state.units import Width
from components.state.views import ConvergenceView, Provenance
from components.sweep.charts import removed_chart, size_chart, speed_chart
from components.sweep.leaderboard import charts as leaderboard
from components.sweep.views import SweepPoint, SweepView
from components.ui import figure, palette
from components.ui.figure import Chart
from intraslice.core.config import MODULE_KINDS
from intraslice.diagnostics.sensitivity import RankAgreement
from intraslice.evaluation.facts import Fact, Question
from intraslice.planning.sizes import LayerSizes
from intraslice.search.ratio_search import SearchResult

CONVERGENCE = ConvergenceView((1, 2, 4, 8), (0.2, 0.05, 0.01, 0.0), (0.1, 0.03, 0.02, 0.0), (0.4, 0.1, 0.015, 0.0), 32)
START = dict.fromkeys(product(range(3), MODULE_KINDS), 0.15)
FOUND = START | {(0, "attention"): 0.2, (0, "mlp"): 0.1, (1, "attention"): 0.0, (1, "mlp"): 0.3}
SEARCH = RatioSearchView(START, SearchResult(0.15, FOUND, 0.5, 0.4, 9.0, (-0.1, 0.0)), 9.0)
DAMAGE = {"layer": 0, "damage": 0.1, "standard_error": 0.01, "place": 1, "place_pca": 1, "place_fisher": 2}
CHECKED = pandas.DataFrame([DAMAGE | {"module": kind, "pca": 0.2, "fisher": 0.3} for kind in MODULE_KINDS])
RHO = {name: {"attention": 0.9, "mlp": None} for name in ("pca", "fisher")}
AGREEMENT = RankAgreement(CHECKED, RHO, {"attention": 0.95, "mlp": None}, ())
CHECK = EstimatorCheckView(0.25, AGREEMENT, "2,560 held-out tokens")

HEAD = Curve(4, (1, 2, 3, 4), (0.5, 0.8, 0.96, 1.0), 3)
WIDE = Curve(300, curve_ranks(300), [rank / 300 for rank in curve_ranks(300)], 285)


def spectra_view(**changes) -> SpectraView:
    curves = LayerCurves((HEAD,) * 4, (HEAD,) * 2, WIDE, WIDE, WIDE)
    pairs = PairsView([[3.0, 1.0], [0.5, 0.5]], [[True, False], [False, True]], [1.0, 0.001])
    sizes = {"ranks": [[1, 2, 3, 4]] * 3, "heads": [(0, 1, 2, 3), (0, 2), (0, 1, 2, 3)], "dims": [4, 2, 4]}
    view = SpectraView(layer=1, curves=curves, pairs=pairs, dim=4, neurons=200, width=150, **sizes)
    return replace(view, **changes)


NARROW = spectra_view(curves=LayerCurves((HEAD,) * 4, (HEAD,) * 2), width=None)
WITHOUT_GROUPS = spectra_view(curves=LayerCurves((HEAD,) * 4, (HEAD,) * 4, WIDE, WIDE, WIDE))


def shift_view(massive: float = math.nan) -> ShiftView:
    histogram = Histogram(-1.0, 1.0, [0.0, 0.5, 1.0, 0.5], 0.01, 0.4, 12.5)

    def method(error: float) -> MethodShift:
        shift = PlaceShift(error, massive, 1 - error, massive, error / 10, histogram)
        return MethodShift(0.3, {place: [shift] * 3 for place in PLACES}, {place: [histogram] * 3 for place in PLACES})

    return ShiftView(0.3, {"intraslice": method(0.2), "crossmodule": method(0.5)}, 2048, 512, 6, "a text")


SIZES = LayerSizes(8, 4, 2, 4, 10, gated=True, attention_bias=False, mlp_bias=False, fixed=16)
ROW = MapRow(SIZES, (0, 0, 1, 1), (0, 1), 2, 6, (0.5, 0.3, 0.1, 0.1), (0.9, 0.8, 0.9, 0.9), (2.0, 1.0, 0.0), 0.95)
KEPT = {"channels": ((True, False, True, False), (False,) * 4), "neurons": (True,) * 5 + (False,) * 4 + (True,)}
OPENED = OpenedView(layer=1, row=ROW, kv_heads=1, sparsity=0.5, shortcuts=2, cross=Width(4, 0.51), **KEPT)

QUESTIONS = [Question("code", "1 +", ("1", "2", "3")), Question("grammar", "They", ("are", "is"))]
DENSE = FactsColumn([Fact(0, 0.9, "1 …", True), Fact(1, 0.1, "go", False)])
SLICED = FactsColumn([Fact(0, 0.5, "2", False), Fact(0, 0.5, "go", False)], 30)
FACTS = FactsView(QUESTIONS, {"dense": DENSE, "intraslice": SLICED}, percent=33, lost=[0], gained=[1])
POINTS = (
    SweepPoint("intraslice", "pca", 0.2, 0.2, 100, 20.0, 1.2, 1.1, 0.3, quantise="f16", bytes=200_000_000),
    SweepPoint("flap", "", 0.2, None, None, None, note="cannot be reached", quantise="q4_0"),
)
SWEEP = SweepView(15.0, POINTS, 8, "On 256 tokens.", "Medians of 5.")
ON_WIKIPEDIA = [cell for cell in cells() if cell.text == "wikipedia"]
OF_DEFAULT = [cell for cell in ON_WIKIPEDIA if cell.model == "default"]
ALONE = {"intraslice": shift_view().methods["intraslice"]}
# Every function that makes a chart, with states that it must be able to draw.
EVERY: list[tuple[Callable[..., Chart], list[tuple[Any, ...]]]] = [
    (map_chart, [(MapView((ROW,) * 3, True), 2), (MapView((MapRow(*ROW[:5]),), False),)]),
    (opened_chart, [(OPENED,), (replace(OPENED, channels=None, neurons=None, cross=None, ranks_neurons=False),)]),
    (ratio_chart, [(plan_view(), 2), (plan_view(layers=1),)]),
    (importance_chart, [(curves(), 1), (curves(None), 0)]),
    (convergence_chart, [(CONVERGENCE,), (None,)]),
    (search_chart, [(SEARCH, "pca", 1), (None, "pca")]),
    (estimator_check_chart, [(CHECK, "pca"), (CHECK, "uniform"), (CHECK, "fisher"), (None, "pca")]),
    (variance_chart, [(view,) for view in (spectra_view(), NARROW, WITHOUT_GROUPS)]),
    *((make, [(spectra_view(),)]) for make in (rank_chart, pair_chart)),
    (shift_chart, [(shift_view(0.1), 1), (shift_view(),), (replace(shift_view(), methods=ALONE),)]),
    (histogram_chart, [(shift_view(), 2)]),
    *((make, [(SWEEP,)]) for make in (removed_chart, speed_chart, size_chart)),
    (leaderboard.sparsity_chart, [(OF_DEFAULT,)]),
    (leaderboard.accuracy_chart, [(OF_DEFAULT, comparable(scores(), "default"))]),
    (leaderboard.speed_chart, [(timings("default"), comparable(scores(), "default"))]),
    (leaderboard.size_chart, [(ON_WIKIPEDIA,)]),
    (facts_chart, [(None,), (FACTS,), (replace(FACTS, columns={"dense": FACTS.columns["dense"]}, lost=()),)]),
    (figure.waiting, [("Effective rank per head", "It follows.")]),
]


def test_every_function_that_makes_a_chart_is_tried_here() -> None:
    """But for those of a published page, which change a tab's chart (`export/test_published.py`)."""
    found, returns = set(), (Chart, Chart | None)
    for file in (ASSETS.parent / "components").rglob("*.py"):
        if "-> Chart" in file.read_text(encoding="utf-8") and file.parent.name != "export":
            name = ".".join(file.relative_to(ASSETS.parent).with_suffix("").parts)
            functions = inspect.getmembers(importlib.import_module(name), inspect.isfunction)
            found |= {one for _, one in functions if inspect.signature(one, eval_str=True).return_annotation in returns}
    assert found == {function for function, _ in EVERY}


@pytest.mark.parametrize(
    ("make", "values"),
    [(make, values) for make, states in EVERY for values in states],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_figures_are_valid_plotly_with_a_heading_and_a_question_and_tables_are_full(make, values) -> None:
    chart = make(*values)
    sent = json.loads(chart.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    drawn = go.Figure(data=in_light(sent["data"]), layout=in_light(sent["layout"]))
    assert len(drawn.data) == len(sent["data"])
    assert chart.title
    assert not chart.title.endswith(("?", "."))
    is_drawn = make is not figure.waiting and None not in values
    assert not is_drawn or re.match(r"[A-Z][^.?:]*\? [A-Z0-9]", chart.caption())
    assert chart.rows or not is_drawn
    assert {len(row) for row in chart.rows} <= {len(chart.columns)}
    assert not chart.picks or len(chart.picks) == len(chart.rows)
    assert 0 <= chart.selected <= max(0, chart.layers - 1)


def test_bars_and_their_table_are_the_plan_also_where_rounding_leaves_a_ratio_without_effect() -> None:
    plan = replace(plan_view(), source=Provenance("before", label="A label."))
    chart = ratio_chart(plan)
    bars = {trace["name"]: trace for trace in chart.data if trace["type"] == "bar"}
    for name, module in (("Attention", "attention"), ("MLP", "mlp")):
        assert bars[name]["y"] == pytest.approx([getattr(layer, module) for layer in plan.layers])
        assert (bars[name]["x"], bars[name]["meta"]["module"]) == ([0, 1, 2, 3], module)
    assert chart.rows[3] == ["3", "30.0%", "5 of 9 heads, 48 of 64 channels each", "20.0%", "1,000 of 1,536 neurons"]
    shown = (
        "Which layers are pruned, and how much? Bars: planned ratio of each module, before it is rounded to "
        "whole heads, channels and neurons; estimator: PCA-aware. Click a layer. Precomputed: A label."
    )
    assert json.loads(chart.to_json())["note"] == shown
    assert chart.caption(clickable=False) == shown.replace(" Click a layer.", "")  # which the page alone does
    gone = replace(plan, layers=(replace(plan.layers[0], heads=0), replace(plan.layers[1], neurons=0)))
    (_, _, attention, _, _), (_, _, _, _, mlp) = ratio_chart(gone).rows
    assert attention == mlp == "nothing: the whole module is removed"
    plan = plan_view(layers=1)
    chart = ratio_chart(replace(plan, layers=(replace(plan.layers[0], mlp=0.001, neurons=1536),)))
    row = dict(zip(chart.columns, chart.rows[0], strict=True))
    assert (row["MLP, planned ratio"], row["MLP kept"]) == ("0.1%", "1,536 of 1,536 neurons")
    bars = next(trace for trace in chart.data if trace["name"] == "MLP")
    assert "planned ratio: %{y:.1%}<br>kept: %{customdata}" in bars["hovertemplate"]
    assert chart.layout["yaxis2"]["title"]["text"] == "MLP, planned ratio"


def test_the_map_and_the_opened_layer_say_what_is_kept_of_what() -> None:
    gone = ROW._replace(heads=(), neurons=0)
    assert map_chart(MapView((ROW, gone), True)).rows == [
        ["0", "2 of 4", "2, 3", "2 of 4", "6 of 10"],
        ["1", "0 of 4", "0, 1, 2, 3", "0 of 4", "0 of 10"],
    ]
    assert packed([True, False, True, True, False, True]) == "b4"
    chart = opened_chart(OPENED)
    assert {name: tuple(sizes) for name, *sizes in chart.rows} == {
        "q": ("8 × 16 → 8 × 4", "8 × 16 → 4 × 16"),
        "k": ("8 × 8 → 8 × 2", "8 × 8 → 4 × 8"),
        "v": ("8 × 8 → 8 × 2", "8 × 8 → 4 × 8"),
        "o": ("8 × 16 → 8 × 4", "8 × 16 → 4 × 16"),
        **dict.fromkeys(("gate", "up", "down"), ("8 × 10 → 8 × 6", "8 × 10 → 4 × 10")),
        **dict.fromkeys(("shortcut 1", "shortcut 2"), ("–", "4 × 4")),
    }
    inside, across = chart.drawing["panels"]
    kept = {matrix["name"]: matrix["columns"] for row in inside["rows"] for matrix in row}
    assert kept == {"q": "aa00", "k": "a0", "v": "c0", "o": "cc00", **dict.fromkeys(("gate", "up", "down"), "f84")}
    assert (inside["weights"], across["weights"]) == ("624 → 240 weights", "624 → 344 weights")
    assert "4 of 8 numbers" in across["text"]
    for changes, words in (
        ({"cross": None}, "At 0% nothing is removed."),
        ({"cross": None, "shortcuts": 0}, "cannot slice this model"),
        ({"is_comparable": False}, "No width removes as much: this one removes 51.0%."),
    ):
        assert words in opened_chart(replace(OPENED, **changes)).drawing["panels"][1]["text"]
    parallel = opened_chart(replace(OPENED, shortcuts=1, row=ROW._replace(sizes=replace(SIZES, whole_queries=True))))
    assert [row[0] for row in parallel.rows][-1] == "shortcut"
    assert parallel.rows[0][1] == "8 × 16 → 8 × 8"  # normalised queries keep their width


def test_importances_stay_on_a_logarithmic_axis_and_uniform_ones_have_no_threshold() -> None:
    chart, uniform = importance_chart(curves(), 0), importance_chart(curves(None), 0)
    assert min(y for trace in chart.data for y in trace["y"]) > 0  # also of dead units
    assert "a module's ratio is the fraction of its units below the threshold" in chart.note
    assert (uniform.layout["shapes"], "threshold" in uniform.note) == ([], False)
    together = {module: replace(curve, one_by_one=False) for module, curve in curves().items()}
    assert "blocks of 32 neurons" in importance_chart(together, 0).note
    assert chart.data[0]["x"] == [0.25, 0.5, 0.75, 1.0]  # fractions of the units


def test_a_method_keeps_its_colour_and_dash_and_zoom_is_kept_while_the_slider_moves() -> None:
    lines = {trace["name"]: trace["line"] for trace in ratio_chart(plan_view()).data if trace["type"] == "scatter"}
    assert (lines["Uniform"]["color"], lines["Uniform"]["dash"]) == ("@baseline", "dot")
    assert lines["Fisher"]["color"] != lines["Uniform"]["color"]
    for chart in (shift_chart(shift_view()), histogram_chart(shift_view(), 0)):
        styles = {(trace["name"], trace["line"]["color"], trace["line"]["dash"]) for trace in chart.data}
        assert styles >= {("IntraSlice", "@intraslice", "solid"), ("Cross-module", "@cross", "dash")}
    charts = [[ratio_chart(plan_view(estimator=name)) for name in ("pca", "fisher")]]
    for make in (variance_chart, rank_chart, pair_chart):
        charts.append([make(spectra_view(neurons=own)) for own in (200, 100)])
    assert all(first.layout["uirevision"] == second.layout["uirevision"] for first, second in charts)
    assert ratio_chart(plan_view(layers=5)).layout["uirevision"] != charts[0][0].layout["uirevision"]


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio (1 to 21) of two `#rrggbb` colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def test_colours_stand_out_on_both_pages() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for name, colour in palette.COLOURS.items():
        assert contrast(colour.light, palette.PAGE.light) >= 4.5, name
        assert contrast(colour.dark, palette.PAGE.dark) >= 4.5, name


def test_convergence_is_drawn_up_to_the_latest_and_summarized() -> None:
    chart = convergence_chart(CONVERGENCE)
    assert [trace["x"] for trace in chart.data] == [[1, 2, 4]] * 3
    assert chart.data[2]["y"] == [0.4, 0.1, 0.015]
    words = "With 4 or more of the 8 sequences, no module's ratio differs from its latest value by more than 2 percent"
    assert words in chart.caption()
    assert "8 of 32 sequences so far" in chart.caption()
    assert chart.rows[1] == ["2", "5.00%", "3.00%", "10.00%"]
    restless = convergence_chart(replace(CONVERGENCE, largest=(0.4, 0.1, 0.05, 0.0), all_sequences=8)).caption()
    assert "At least one module's ratio still changes by more than 2 percentage points" in restless
    assert "so far" not in restless


def test_rings_and_crosses_mark_what_is_kept_and_removed_but_for_a_module_that_goes_whole() -> None:
    variance, ranks, pairs = (make(spectra_view()) for make in (variance_chart, rank_chart, pair_chart))
    shade, *rings = variance.layout["shapes"]
    assert [ring["xanchor"] for ring in rings] == pytest.approx([2, 2, 200 / 300, 0.5, 0.5])
    assert [ring["yanchor"] for ring in rings] == pytest.approx([0.8, 0.8, 200 / 300, 0.5, 0.5], rel=1e-3)
    assert (shade["x0"], shade["x1"]) == (2, 4)
    lines = [trace for trace in variance.data if trace["name"] == "Query heads removed"]
    assert [line["line"]["dash"] for line in lines] == ["dot", "dot"]
    (crosses,) = (trace for trace in ranks.data if trace["type"] == "scatter")
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(1, 1), (1, 3)]
    assert ranks.rows[1][-2:] == ["1, 3", "2"]
    assert pairs.rows == [["0", "6", "75.0%", "50.0%, removed"], ["1", "6,283", "25.0%, removed", "50.0%"]]
    (crosses,) = (trace for trace in pairs.data if trace["type"] == "scatter")
    assert list(zip(crosses["x"], crosses["y"], strict=True)) == [(1, 0), (0, 1)]
    assert curve_ranks(1) == [1]
    assert curve_ranks(5) == [1, 2, 3, 4, 5]  # many are thinned to both ends
    assert (len(curve_ranks(1536)), curve_ranks(1536)[0], curve_ranks(1536)[-1]) == (120, 1, 1536)
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


def test_the_shift_is_the_mean_over_layers_and_outlier_tokens_wait_in_the_legend() -> None:
    chart, histograms = shift_chart(shift_view()), histogram_chart(shift_view(), 1)
    massive = [trace for trace in chart.data if "outlier" in trace["name"]]
    assert {trace["visible"] for trace in massive} == {"legendonly"}
    assert (massive[0]["y"], chart.rows[0][2]) == ([None] * 3, "–")  # there may be none
    assert finding(shift_view()) == "IntraSlice 20%, Cross-module 50%"
    assert histograms.layout["xaxis"]["range"] == pytest.approx([-0.5, 1.0])  # the middle
    assert histograms.rows[0] == ["Residual stream", "Dense", "0.010", "0.400", "12.5", "–", "–", "–"]
    assert histograms.rows[2][-3:] == ["50.0%", "0.500", "0.050"]
