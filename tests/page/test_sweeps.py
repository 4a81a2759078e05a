"""The page's sweeps: the same numbers as the slider's and the command line's, point by point, and their charts."""

import json
import math
from collections.abc import Iterator

import pandas
import pytest
from tiny_page import options_of

from components.jobs.status import Status
from components.state.request import Request
from components.state.session import Session
from components.sweep import measure as sweeps
from components.sweep import panel
from components.sweep.charts import measured_charts, pick_value, removed_chart, size_chart, speed_chart
from components.sweep.views import SweepChoice, SweepPoint, SweepView
from intraslice.__main__ import main
from intraslice.core.errors import UserError
from intraslice.evaluation import sweep as library

CHOICE = SweepChoice(sparsities=(20, 40))


def run(session: Session, settings: Request, choice: SweepChoice) -> Iterator[Status | SweepView]:
    return session.jobs.run("tests", "sweep", lambda job: sweeps.run_sweep(job, session, settings, choice))


def swept(session: Session, settings: Request, choice: SweepChoice) -> SweepView:
    return [event for event in run(session, settings, choice) if isinstance(event, SweepView)][-1]


def test_a_sweeps_numbers_are_the_sliders(session, tiny) -> None:
    # What is locked belongs to one sparsity, not to a sweep.
    settings = tiny.with_settings(bias=1.1, locked="1 mlp 5", shapes="runtime")
    view = swept(session, settings, CHOICE)
    assert [(p.method, p.estimator, p.target_sparsity) for p in view.points] == [
        (method, estimator, asked)
        for asked in (0.2, 0.4)
        for method, estimator in (("intraslice", "pca"), ("intraslice", "uniform"), ("crossmodule", ""))
    ]
    fresh = Session(evaluation_tokens=256)
    for point in view.points[:2]:
        own = settings.with_settings(sparsity=100 * point.target_sparsity, estimator=point.estimator, locked="")
        list(fresh.measure(own, "somebody"))
        measured = fresh.perplexities(own)
        assert (view.dense, point.perplexity) == pytest.approx(measured.values)
        assert point.removed == pytest.approx(fresh.plan(own).removed)
        assert point.parameters == fresh.plan(own).parameters_sliced


def test_a_sweep_goes_on_out_of_sight_where_the_choice_or_an_option_of_all_points_has_changed(session, tiny) -> None:
    settings, few = tiny.with_settings(bias=1.3), SweepChoice(sparsities=(20,))
    moved = settings.with_settings(sparsity=50)
    for shown, choice, is_drawn in ((moved, few, True), (tiny, few, False), (settings, CHOICE, False)):
        answers = panel.sweep(session, settings, few, "somebody")
        next(answers)
        panel.preview(session, shown, choice, "somebody")
        assert any("removed" in answer or "progress" in answer for answer in answers) == is_drawn


def test_a_sweeps_numbers_are_the_command_lines(session, tiny, capsys, tmp_path) -> None:
    swept(session, tiny, CHOICE)
    sweeps.write_csv(session, tiny, CHOICE, tmp_path / "page.csv")
    words = ["--eval-tokens", "256", "--device", "cpu", "--order", "one-shot", "--no-speed"]
    words += ["--sparsities", "0.2", "0.4", "--csv", str(tmp_path / "line.csv")]
    assert main(["sweep", *options_of(tiny), *words]) == 0
    pandas.testing.assert_frame_equal(pandas.read_csv(tmp_path / "page.csv"), pandas.read_csv(tmp_path / "line.csv"))


def test_points_appear_as_they_come_with_the_time_left_and_a_stopped_sweep_goes_on(fresh, tiny, monkeypatch) -> None:
    session = fresh  # whose cache has no points
    assert list(session.prepare(tiny, "somebody"))[-1].kind == "ready"
    measured, measure = [], library._Sweep.measure
    monkeypatch.setattr(library._Sweep, "measure", lambda *a: measured.append(a[2]) or measure(*a))
    assert sweeps.cached_view(session, tiny, CHOICE).points == ()
    assert sweeps.estimated_seconds(session, tiny, CHOICE) > 0
    stopped = []
    for event in run(session, tiny, CHOICE):
        stopped.append(event)
        if isinstance(event, SweepView) and len(event.points) == 2:
            session.jobs.halt("tests", "sweep")
    assert stopped[-1].text == "Cancelled."
    rest = list(run(session, tiny, CHOICE))
    views = [event for event in stopped + rest if isinstance(event, SweepView)]
    assert [len(view.points) for view in views] == [0, 1, 2, 2, 3, 4, 5, 6]
    assert len(measured) == 6
    busy = [event for event in rest if isinstance(event, Status) and event.total]
    assert [event.done for event in busy] == sorted(event.done for event in busy)
    assert all(event.seconds_left >= 0 for event in busy)
    assert sweeps.estimated_seconds(session, tiny, CHOICE) == 0


def test_what_a_method_cannot_reach_is_said_in_the_table(session, tiny) -> None:
    view = swept(session, tiny.with_settings(cap=60, bias=0.4), SweepChoice(("intraslice",), ("uniform",), (20, 60)))
    assert view.points[1].perplexity is None
    chart = removed_chart(view)
    assert "cannot be reached" in chart.rows[1][2]
    assert len(chart.data[0]["x"]) == 1


def test_speed_is_measured_where_it_is_asked_for(session, tiny) -> None:
    view = swept(session, tiny, SweepChoice(("intraslice",), ("pca",), (30,), speed=True))
    (point,), drawn = view.points, speed_chart(view).data
    assert min(point.prefill, point.decode) > 0
    assert "in turn" in view.speed_protocol
    assert [*drawn[0]["x"], *drawn[1]["x"]] == pytest.approx([point.prefill, point.decode], rel=1e-4)


def test_a_choice_of_nothing_and_a_table_of_nothing_measured_are_refused_in_words(session, tiny, tmp_path) -> None:
    nouns = {"methods": "method", "estimators": "estimator", "sparsities": "sparsity", "quantise": "GGUF type"}
    for name, noun in nouns.items():
        with pytest.raises(UserError, match=f"No {noun} is chosen. Choose at least one."):
            sweeps.cached_view(session, tiny, CHOICE._replace(**{name: ()}))
    with pytest.raises(UserError, match="No point of this sweep has been measured yet"):
        sweeps.write_csv(session, tiny.with_settings(cap=72), CHOICE, tmp_path / "rows.csv")


POINTS = (
    SweepPoint("intraslice", "pca", 0.2, 0.2, 100, 20.0, 1.2, 1.1),
    SweepPoint("intraslice", "uniform", 0.2, 0.2, 100, 21.0, 1.2, 1.1),
    SweepPoint("crossmodule", "", 0.2, 0.21, 99, 24.0, 0.9, 0.8, "capped"),
    SweepPoint("wanda", "", 0.2, 0.2, 100, 40.0, 1.2, 1.1),
    SweepPoint("flap", "", 0.2, None, None, None, None, None, "cannot be reached"),
)
VIEW = SweepView(15.0, POINTS, 8, "On 256 tokens.", "Medians of 5.")
# At equal size the sliced f16 and the dense q8_0 model; no type twice.
SIZED = (
    SweepPoint("dense", "", 0.0, 0.0, 120, 15.0, divergence=0.0, quantise="f16", bytes=240_000_000),
    SweepPoint("dense", "", 0.0, 0.0, 120, 15.1, divergence=0.01, quantise="q8_0", bytes=130_000_000),
    SweepPoint("dense", "", 0.0, 0.0, 120, 17.0, divergence=0.2, quantise="q4_0", bytes=70_000_000),
    SweepPoint("intraslice", "pca", 0.2, 0.2, 100, 20.0, divergence=0.3, quantise="f16", bytes=200_000_000),
    SweepPoint("intraslice", "pca", 0.2, 0.2, 100, 24.0, divergence=0.5, quantise="q4_0", bytes=60_000_000),
    SweepPoint("wanda", "", 0.2, 0.2, 100, math.inf, divergence=9.0, quantise="q4_0", bytes=50_000_000),
    SweepPoint("flap", "", 0.2, None, None, None, note="no file", quantise="q4_0"),
)


def test_the_frontier_has_the_best_model_of_each_size_and_a_broken_one_stands_in_the_table_alone() -> None:
    chart = size_chart(SweepView(15.0, SIZED, 8, "On 256 tokens."))
    steps = {trace["xaxis"]: (trace["x"], trace["y"]) for trace in chart.data if trace["mode"] == "lines"}
    assert steps["x"] == ([60, 70, 130, 240], [24, 17, 15.1, 15])
    assert steps["x2"] == ([50, 60, 70, 130, 240], [9, 0.5, 0.2, 0.01, 0])
    assert [row[-1] for row in chart.rows] == ["yes", "yes", "yes", "no", "yes", "yes"]
    assert ["Dense, q8_0", "0%", "q8_0", "130.0", "15.10", "0.0100", "yes"] in chart.rows
    marks = {trace["name"]: trace["marker"] for trace in chart.data if "ids" in trace}
    kinds = [(marks[f"Dense, {kind}"]["symbol"], marks[f"Dense, {kind}"]["size"]) for kind in ("q8_0", "q4_0")]
    assert kinds[0] > kinds[1]
    assert marks["IntraSlice, PCA-aware, f16"]["symbol"] == "circle-open"
    broken = SweepPoint("wanda", "", 0.6, 0.6, 40, float("inf"), 1.5, 1.4)
    chart = removed_chart(SweepView(15.0, (POINTS[0], broken), 2, ""))
    assert [trace["name"] for trace in chart.data] == ["IntraSlice, PCA-aware"]
    assert "inf" in chart.rows[1]
    json.loads(chart.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_types_are_evaluated_of_one_slice_and_without_a_file_there_is_a_note(session, tiny, monkeypatch) -> None:
    sliced = []
    slice_by = library.slice_by
    monkeypatch.setattr(library, "slice_by", lambda *a, **k: sliced.append(a[0]) or slice_by(*a, **k))
    choice = SweepChoice(("intraslice",), ("pca",), (35,), quantise=("none", "q8_0"))
    assert sweeps.estimated_seconds(session, tiny, choice) > 0
    view = swept(session, tiny, choice)
    assert [(point.method, point.quantise) for point in view.points] == [
        (method, kind) for method in ("dense", "intraslice") for kind in ("none", "q8_0")
    ]
    assert sliced == ["intraslice"]
    plain, without_file = view.points[2:]  # llama.cpp has no tokenizer of words in a table
    assert plain.bytes == plain.parameters * session.calibrated(tiny).loaded.model.dtype.itemsize
    assert (without_file.perplexity, without_file.bytes) == (None, None)
    assert "tokenizer" in without_file.note
    assert measured_charts(view)["size"] is not None
    assert measured_charts(VIEW)["size"] is None


def test_a_point_reserves_its_slice_and_the_copy_that_is_rounded(session, tiny, monkeypatch) -> None:
    list(session.prepare(tiny, "somebody"))
    reserve, reserved = session.slice_memory.reserved, []
    monkeypatch.setattr(session.slice_memory, "reserved", lambda *call: reserved.append(call[1]) or reserve(*call))
    swept(session, tiny, SweepChoice(("intraslice",), ("pca",), (24,), quantise=("none", "q8_0")))
    model = session.calibrated(tiny).loaded.model
    numbers = sum(parameter.numel() for parameter in model.parameters())
    assert 4 * numbers < reserved[-1] - model.dtype.itemsize * numbers < 8 * numbers  # the dense one's may be cached


@pytest.mark.parametrize("chart", [removed_chart(VIEW), speed_chart(VIEW)], ids=["removed", "speed"])
def test_a_method_keeps_its_colour_and_dash_and_a_point_its_setting(chart) -> None:
    kept = {(trace["name"], trace["line"]["color"], trace["line"]["dash"]) for trace in chart.data}
    assert kept == {
        ("IntraSlice, PCA-aware", "@intraslice", "solid"),
        ("IntraSlice, Uniform", "@baseline", "dot"),
        ("Cross-module", "@cross", "dash"),
        ("Wanda-sp", "@crimson", "dash"),
    }
    assert {name for trace in chart.data for name in trace["ids"]} == {"20 pca", "20 uniform", "20"}
    assert [pick_value(point) for point in POINTS[:3]] == ["20 pca", "20 uniform", "20"]
    assert [shape["y0"] for shape in chart.layout["shapes"] if shape.get("y0") == 15.0]
