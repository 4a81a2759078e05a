"""The pinned setting A: its text, what a link carries of it, its overlays, and the differences to it."""

import json
from dataclasses import replace
from functools import reduce
from operator import or_
from types import SimpleNamespace

import gradio as gr
import plotly.graph_objects as go
import pytest
from calling import inputs_of
from tiny_page import SOMEBODY, curves, in_light, plan_view

from components.compare import panel as compare
from components.compare.models import Columns
from components.compare.views import Question
from components.frame import handlers, link, pinning
from components.gradio_compat.signatures import partial_handler
from components.ratios import panel as ratios
from components.ratios.charts import importance_chart, ratio_chart
from components.state.request import Request, parse
from components.state.session import Session
from components.state.settings import CONTROLS, Settings
from components.state.views import Perplexities, PinnedView, Reading
from components.sweep import panel as sweep
from components.ui import formatting
from components.ui import pinned_text as pinned
from components.ui.chart_bridge import overlay
from components.ui.figure import OVERLAY_ALWAYS, Chart, Figure
from components.ui.formatting import signed
from components.ui.handlers import LiveOutput, spread_settings
from components.ui.pinned_text import name_of
from components.ui.screen import headline
from intraslice.core.errors import UserError

OTHER = Settings(sparsity=45, estimator="fisher", bias=1.2, cap=70, order="sequential", seed=3)


@pytest.mark.parametrize(
    "settings",
    [Settings(), OTHER, Settings(locked="7 attention 25, 3 attention head 5 keep", dtype="float32", samples=3)],
)
def test_a_setting_is_read_as_it_was_written(settings) -> None:
    request = parse(settings)
    assert pinned.read(pinned.write(request)) == settings
    query = {"pinned": pinned.write(request), "sparsity": "20"}
    restored = link.restore(Session(), SimpleNamespace(query_params=query))
    assert pinned.read(restored["pinned"]) == settings._replace(dtype=request.calibration.dtype)
    assert restored["sparsity"] == 20


NO_SETTINGS = [
    *("sparsity=99", "sparsity=61", "sparsity=30&cap=50", "sparsity=30&estimator=none", "sparsity=30&nonsense=1"),
    *("sparsity=30&locked=much", "sparsity=30&sequences=100000", "sparsity=30&dtype=int3", "x", "\0=1"),
    *("sparsity=30&upload=%2Fetc%2Fpasswd", "sparsity=30&order=sequential&iterative=True"),
]


def test_what_is_no_setting_is_refused_in_words_and_a_link_does_not_pin_it() -> None:
    def percents(request: Request, pinned: Request | None) -> tuple:
        return request.slicing.sparsity, pinned and pinned.slicing.sparsity

    for text in NO_SETTINGS:
        if "=" in text and "upload" not in text:  # neither does a measured setting from a file set the controls
            with pytest.raises(UserError):
                sweep.pick(SimpleNamespace(pick=text))
        assert link.restore(Session(), SimpleNamespace(query_params={"pinned": text}))["pinned"] == ""
    refusals = {"sparsity=99": "sparsity must be", "much=1": "must be one of model, text", 7: "must be text, got 7"}
    refusals["sparsity=30&iterative=True"] = "iterative was removed; use order sequential"
    for text, words in refusals.items():
        for read in (pinned.read, lambda text: spread_settings(percents)(*inputs_of(Settings(), text))):
            with pytest.raises(UserError, match=words):
                read(text)
    assert pinned.read("") is pinned.read(None) is None
    assert spread_settings(percents)(*inputs_of(Settings(), pinned.write(parse(OTHER)))) == (0.2, 0.45)
    assert spread_settings(percents)(*inputs_of(Settings(), "")) == (0.2, None)


def test_a_pinned_upload_is_known_again_and_never_named() -> None:
    mine, usual = parse(Settings(upload="/tmp/somewhere/mine.txt")), parse(Settings())
    text = pinned.write(mine)
    assert "mine" not in text
    assert pinned.comparable_request(text, mine.with_settings(sparsity=50)) == mine
    assert pinned.comparable_request(text, usual) is None
    assert pinned.comparable_request(text, mine.with_settings(upload="/tmp/somewhere/other.txt")) is None
    assert "is calibrated on a file that is no longer available" in pinning.describe(usual, text)["description"]
    assert pinned.comparable_request(pinned.write(usual), mine) == usual  # A was calibrated without it


def test_a_setting_of_another_model_waits_for_that() -> None:
    text, elsewhere = pinned.write(parse(Settings())), parse(Settings(model="other/model"))
    assert pinned.comparable_request(text, elsewhere) is None
    words = "is a setting of default; it is shown when that model is chosen again"
    assert words in pinning.describe(elsewhere, text)["description"]
    assert "20%, PCA-aware" in pinning.describe(parse(OTHER), text)["description"]
    assert pinning.describe(parse(OTHER), "")["description"] == ""


def test_a_is_told_by_what_tells_it_from_the_current_setting() -> None:
    for pinned_setting, current, name in (
        (Settings(), Settings(sparsity=50), "20%, PCA-aware"),
        (OTHER, Settings(cap=70, bias=1.2), "45%, Fisher, sequential, seed 3"),
        (Settings(locked="3 mlp 0"), Settings(locked="3 mlp 0"), "20%, manual"),
        (Settings(recovery="distill"), Settings(), "20%, PCA-aware, recovery: Distillation"),
        (Settings(shapes="runtime", samples=16), Settings(), "20%, PCA-aware, runtime shapes, 16 samples"),
    ):
        assert name_of(pinned_setting, current) == name
    described = {name for name, control in CONTROLS.items() if control.describe}
    assert described == set(Settings._fields) - {"model", "sparsity", "estimator", "locked", "iterative"}
    signs = {-3.04: "−3.0", 2.5: "+2.5", 0.0: "0", 0.01: "0", -0.01: "0"}
    assert {change: signed(change, lambda value: f"{value:.1f}") for change in signs} == signs


def reading(value: float, windows: int = 4) -> Reading:
    return Reading(value, 0.1, windows, 4)


def test_headline_and_readout_give_the_differences() -> None:
    now = Perplexities(dense=reading(20), sliced=reading(30), ratio=reading(1.5))
    before = Perplexities(dense=reading(20), sliced=reading(26), ratio=reading(1.3))
    plan = plan_view()
    smaller = PinnedView("30%, <Fisher>", replace(plan_view(), parameters_sliced=900), before)
    words = headline(plan, now, "", smaller)
    assert "Against <b>A</b> (30%, &lt;Fisher&gt;): 200 fewer parameters, perplexity <b>+4.0</b>." in words
    table = formatting.readout(plan, now, smaller)
    assert all(f"<td>{change}</td>" in table for change in ("−200", "+4.00", "+0.20"))
    growing = Perplexities(dense=reading(20), sliced=reading(30, windows=2))
    assert "about <b>+4.0</b>" in headline(plan, growing, "", smaller)
    unknown = PinnedView("A", plan, Perplexities())
    assert "the same number of parameters; perplexities are compared when" in headline(plan, now, "", unknown)
    assert "A" not in headline(plan, now)
    assert "against" not in formatting.readout(plan, now)


@pytest.mark.parametrize("chart", [ratio_chart(plan_view()), importance_chart(curves(), 1)], ids=["bars", "curves"])
def test_an_overlay_is_valid_plotly_and_has_the_charts_numbers(chart) -> None:
    sent = json.loads(overlay(chart.to_json()))
    figure = go.Figure(data=in_light(sent["data"]), layout={"shapes": in_light(sent["shapes"])})
    assert len(figure.data) == 2
    assert sent["rows"] == chart.rows
    for trace in sent["data"]:
        assert trace["y"] in [one["y"] for one in chart.data if f"A: {one['name']}" == trace["name"]]
        assert not trace["showlegend"]
    # The others' lines are no part of a setting.
    assert {trace["name"] for trace in sent["data"]} <= {"A: Attention", "A: MLP", "A: Layer 1"}


def test_bars_are_outlines_markers_hollow_curves_thin_and_rings_wide() -> None:
    bars = json.loads(overlay(ratio_chart(plan_view()).to_json()))["data"]
    assert all(bar["marker"]["color"] == "rgba(0,0,0,0)" and bar["marker"]["line"]["width"] > 0 for bar in bars)
    marks = {"type": "scatter", "mode": "lines+markers", "name": "line", "x": [1], "y": [2], "meta": OVERLAY_ALWAYS}
    marks |= {"line": {"width": 3, "color": "@mlp"}, "marker": {"size": 9}, "fill": "tozeroy"}
    hidden = {**marks, "visible": "legendonly"}
    ring = {"type": "circle", "name": "follows-the-setting", "x0": -5, "x1": 5, "y0": -5, "y1": 5}
    ring |= {"fillcolor": "@page", "line": {"color": "@mlp", "width": 2}}
    layout = Figure(1, "test").layout | {"shapes": [ring]}
    sent = json.loads(overlay(Chart("A?", "", ["a"], [["b"]], [marks, hidden], layout).to_json()))
    (trace,), (shape,) = sent["data"], sent["shapes"]
    assert (trace["marker"]["symbol"], trace["line"]["width"] < 3, "fill" in trace) == ("circle-open", True, False)
    assert (shape["fillcolor"], shape["x1"]) == ("rgba(0,0,0,0)", 8.5)
    assert sent["kinds"] == ["hollow rings"]
    assert overlay(Chart("A?", "", ["a"], [["b"]], [], Figure(1, "test").layout).to_json()) == ""


def test_only_the_open_tab_is_drawn_and_nothing_where_nothing_is_pinned(session, tiny) -> None:
    with gr.Blocks():
        panel, swept = ratios.RatiosPanel(session, tiny), sweep.SweepPanel(session, tiny)
    live_outputs = [panel.live_output, LiveOutput("sweep", partial_handler(sweep.show_pinned, session), swept.charts)]
    drawn = pinning.overlays(live_outputs, tiny, 1, "ratios", tiny.with_settings(sparsity=50), SOMEBODY)
    bars = json.loads(drawn["ratio-chart"]["overlay"])["data"][0]
    plan = session.plan(tiny.with_settings(sparsity=50))
    assert bars["y"] == pytest.approx([layer.attention for layer in plan.layers], rel=1e-4)
    assert drawn.keys() == {"ratio-chart", "importance-chart"}
    none = pinning.overlays(live_outputs, tiny, 1, "ratios", None, SOMEBODY)
    assert [update["overlay"] for update in none.values()] == ["", ""]
    beyond = tiny.with_settings(locked="9 mlp 5")
    assert pinning.overlays(live_outputs, tiny, 1, "ratios", beyond, SOMEBODY)["ratio-chart"]["overlay"] == ""
    unmeasured = pinning.overlays(live_outputs, tiny, 1, "sweep", tiny, SOMEBODY)
    assert [update["overlay"] for update in unmeasured.values()] == ["", "", ""]


def test_what_is_pinned_is_measured_where_it_is_not_known(session, tiny) -> None:
    other, mine = tiny.with_settings(sparsity=57), tiny.with_settings(sparsity=25)  # which no other test measures
    list(session.measure(mine, "somebody"))
    answers = list(handlers.measure_pinned(session, mine, 0, other, "ada"))
    own, other_value = (session.perplexities(which).sliced.value for which in (mine, other))
    change = own - other_value
    *_, last = [answer["headline"] for answer in answers if "headline" in answer]
    assert f"<b>{signed(change, lambda value: f'{value:.1f}')}</b>" in last
    sequential = tiny.with_settings(order="sequential", sparsity=33)  # only its button slices that
    for setting in (other, None, sequential):  # the first is known by now
        assert not list(handlers.measure_pinned(session, mine, 0, setting, "ada"))


def test_compare_has_a_column_for_a(session: Session, tiny) -> None:
    columns, other = Columns(session), tiny.with_settings(sparsity=55)
    mine = tiny.with_settings(sparsity=25)
    question = Question("w10 w20 w30", 12)
    shown = reduce(or_, compare.answer(columns, mine, question, other, "", SOMEBODY))
    alone = reduce(or_, compare.answer(columns, other, question, None, "", SOMEBODY))
    assert "55% removed" in shown["pinned"]
    assert shown["pinned"].split("</h3>")[1] == alone["intraslice"].split("</h3>")[1]
    assert "pinned" not in alone
    *_, costs = compare.costs(columns, mine, other, "", SOMEBODY)
    assert f"{columns.cached_costs(other).columns['intraslice'].perplexity:.2f}" in costs["pinned"]
    assert costs["pinned"].count("tokens/s") == 2
    assert columns.cached_costs(other).columns["intraslice"].divergence is not None
    assert compare.cached_costs(columns, mine, None, "", SOMEBODY)["pinned"] == ""
