"""Charts are pure: plain numbers in, valid plotly figures and the same numbers as a table out."""

import json
import re
from dataclasses import replace

import plotly.graph_objects as go
import pytest
from tiny_page import curves, in_light, plan_view

from components.ratios import charts as charts
from components.ratios.convergence import convergence_chart
from components.state.views import ConvergenceView
from components.ui import palette
from components.ui.figure import Chart, thinned

CONVERGENCE = ConvergenceView((1, 2, 4, 8), (0.2, 0.05, 0.01, 0.0), (0.1, 0.03, 0.02, 0.0), (0.4, 0.1, 0.015, 0.0), 32)


def every_chart() -> dict[str, Chart]:
    return {
        "ratios": charts.ratio_chart(plan_view(), selected=2),
        "importances": charts.importance_chart(curves(), layer=1),
        "uniform": charts.importance_chart(curves(None), layer=1),
        "convergence": convergence_chart(CONVERGENCE),
        "no convergence": convergence_chart(None),
    }


@pytest.mark.parametrize("name", list(every_chart()))
def test_figures_are_valid_plotly(name: str) -> None:
    sent = json.loads(every_chart()[name].to_json())
    figure = go.Figure(data=in_light(sent["data"]), layout=in_light(sent["layout"]))
    assert len(figure.data) == len(sent["data"])


@pytest.mark.parametrize("name", list(every_chart()))
def test_every_chart_has_a_heading_a_question_and_a_table_of_full_rows(name: str) -> None:
    chart = every_chart()[name]
    assert chart.title
    assert not chart.title.endswith(("?", "."))
    assert name == "no convergence" or re.match(r"[A-Z][^.?:]*\? [A-Z]", chart.note)
    assert chart.rows
    assert {len(row) for row in chart.rows} == {len(chart.columns)}


def test_bars_are_the_ratios_in_order_of_layers() -> None:
    plan = plan_view()
    bars = {trace["name"]: trace for trace in charts.ratio_chart(plan).data if trace["type"] == "bar"}
    assert bars["Attention"]["y"] == pytest.approx([layer.attention for layer in plan.layers])
    assert bars["MLP"]["y"] == pytest.approx([layer.mlp for layer in plan.layers])
    assert bars["MLP"]["x"] == [0, 1, 2, 3]


def test_bars_say_in_machine_words_which_module_they_are() -> None:
    bars = [trace for trace in charts.ratio_chart(plan_view()).data if trace["type"] == "bar"]
    assert {trace["meta"]["module"]: trace["name"] for trace in bars} == {"attention": "Attention", "mlp": "MLP"}


def test_what_a_click_does_stands_on_the_page_alone() -> None:
    chart = charts.ratio_chart(replace(plan_view(), provisional="Snapshot: A label."))
    shown = (
        "Which layers are pruned, and how much? Bars: planned ratio of each module, before it is rounded to "
        "whole heads, channels and neurons; estimator: PCA-aware. Click a layer. Snapshot: A label."
    )
    assert json.loads(chart.to_json())["note"] == shown
    assert chart.caption(clickable=False) == shown.replace(" Click a layer.", "")


def test_a_method_keeps_its_colour_and_dash() -> None:
    lines = {
        trace["name"]: trace["line"] for trace in charts.ratio_chart(plan_view()).data if trace["type"] == "scatter"
    }
    assert (lines["Uniform"]["color"], lines["Uniform"]["dash"]) == ("@baseline", "dot")
    assert lines["Fisher"]["color"] != lines["Uniform"]["color"]


def test_table_says_what_the_bars_say() -> None:
    row = charts.ratio_chart(plan_view()).rows[3]
    assert row == ["3", "30.0%", "5 of 9 heads, 48 of 64 channels each", "20.0%", "1,000 of 1,536 neurons"]


def test_a_ratio_that_rounding_leaves_without_effect_is_shown_as_planned() -> None:
    plan = plan_view(layers=1)
    chart = charts.ratio_chart(replace(plan, layers=(replace(plan.layers[0], mlp=0.001, neurons=1536),)))
    assert dict(zip(chart.columns, chart.rows[0], strict=True)) | {
        "MLP, planned ratio": "0.1%",
        "MLP kept": "1,536 of 1,536 neurons",
    } == dict(zip(chart.columns, chart.rows[0], strict=True))
    bars = next(trace for trace in chart.data if trace["name"] == "MLP")
    assert "planned ratio: %{y:.1%}<br>kept: %{customdata}" in bars["hovertemplate"]
    assert chart.layout["yaxis2"]["title"]["text"] == "MLP, planned ratio"


def test_a_module_that_goes_whole_is_named() -> None:
    plan = plan_view()
    gone = replace(plan, layers=(replace(plan.layers[0], heads=0), replace(plan.layers[1], neurons=0)))
    (_, _, attention, _, _), (_, _, _, _, mlp) = charts.ratio_chart(gone).rows
    assert attention == mlp == "nothing: the whole module is removed"


def test_what_goes_many_together_is_not_said_to_go_one_by_one() -> None:
    together = {module: replace(curve, one_by_one=False) for module, curve in curves().items()}
    note = charts.importance_chart(curves(), 0).note
    assert "a module's ratio is the fraction of its units below the threshold" in note
    assert "blocks of 32 neurons" in charts.importance_chart(together, 0).note


def test_zoom_is_kept_while_the_model_is_the_same() -> None:
    first, second = (charts.ratio_chart(plan_view(estimator=name)).layout["uirevision"] for name in ("pca", "fisher"))
    assert first == second
    assert charts.ratio_chart(plan_view(layers=5)).layout["uirevision"] != first


def test_dead_units_stay_on_a_logarithmic_axis() -> None:
    heights = [y for trace in charts.importance_chart(curves(), 0).data for y in trace["y"]]
    assert min(heights) > 0


def test_uniform_ratios_have_no_threshold() -> None:
    assert charts.importance_chart(curves(None), 0).layout["shapes"] == []
    assert "threshold" not in charts.importance_chart(curves(None), 0).note


def test_thinning_keeps_both_ends() -> None:
    shares, values = thinned([float(index) for index in range(1000)])
    assert len(values) == len(shares) == 160
    assert (values[0], values[-1], shares[-1]) == (0.0, 999.0, 1.0)
    assert thinned([]) == ([], [])


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio (1 to 21) of two `#rrggbb` colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dim = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


@pytest.mark.parametrize("name", list(palette.COLOURS))
def test_colours_stand_out_on_both_pages(name: str) -> None:
    colour = palette.COLOURS[name]
    assert contrast(colour.light, palette.PAGE.light) >= 4.5
    assert contrast(colour.dark, palette.PAGE.dark) >= 4.5


def test_contrast_of_black_on_white() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


def test_convergence_is_drawn_up_to_the_latest_and_summarized() -> None:
    chart = convergence_chart(CONVERGENCE)
    assert [trace["x"] for trace in chart.data] == [[1, 2, 4]] * 3
    assert chart.data[2]["y"] == [0.4, 0.1, 0.015]
    assert (
        "With 4 or more of the 8 sequences, no module's ratio differs from its latest value by more than 2 percent"
        in chart.caption()
    )
    assert "8 of 32 sequences so far" in chart.caption()
    assert chart.rows[1] == ["2", "5.00%", "3.00%", "10.00%"]
    restless = replace(CONVERGENCE, largest=(0.4, 0.1, 0.05, 0.0), all_sequences=8)
    assert (
        "At least one module's ratio still changes by more than 2 percentage points"
        in convergence_chart(restless).caption()
    )
    assert "so far" not in convergence_chart(restless).caption()
