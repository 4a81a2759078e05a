"""What a move of the slider shows is made once for all clients, and is never that of another state."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr
import pytest
from tiny_page import SOMEBODY, in_job

from components.activations import panel as activations
from components.activations.measure import ShiftViews
from components.compare import panel as compare
from components.compare.models import Columns
from components.frame import handlers
from components.i18n.language import use_language
from components.jobs.job import Caller
from components.jobs.status import Status
from components.ratios import panel
from components.state.request import Request
from components.state.session import Session
from components.ui import formatting, screen


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def noted(*values: Any, name: str, make: Callable) -> Any:
        made.append(name)
        return make(*values)

    made: list[str] = []
    for name in ("ratio_chart", "importance_chart"):
        monkeypatch.setattr(panel, name, partial(noted, name=name, make=getattr(panel, name)))
    return made


def moved(session: Session, request: Request, client: str = SOMEBODY, layer: int = 0) -> tuple[Any, ...]:
    view = replace(session.view(request, client), status=Status(""))  # without its number
    return (*panel.show(session, request, layer, client).values(), *handlers.moved(session, view).values())


def begun(answers: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The answers of a handler once its job has begun."""
    assert next(answer for answer in answers if "isx-busy" in answer.get("status", ""))
    return answers


def test_the_second_client_gets_what_was_made_for_the_first_and_a_measurement_appears_at_once(session, tiny, made):
    request = tiny.with_settings(sparsity=21)
    first = moved(session, request)
    assert sorted(made) == ["importance_chart", "ratio_chart"]
    assert moved(session, request, "another") == first
    assert len(made) == 2
    in_job(session, session.measure_perplexities, request)
    measured = moved(session, request)
    assert measured[:2] == first[:2]
    assert ["data-sliced" in shown[2] for shown in (first, measured)] == [False, True]
    assert made.count("ratio_chart") == 1


def test_other_settings_have_their_own_and_so_have_another_layer_and_another_language(session, tiny) -> None:
    english = moved(session, tiny)
    for other in ({"sparsity": 23}, {"estimator": "uniform"}, {"locked": "0 mlp 0"}, {"cap": 50}):
        assert moved(session, tiny.with_settings(**other)) != english
    assert moved(session, tiny, layer=1)[:2] != english[:2]
    with use_language("de"):
        german = moved(session, tiny)
    assert all(one != other for one, other in zip(english[:5], german[:5], strict=True))
    assert moved(session, tiny) == english


def test_a_model_without_ratios_is_never_said_to_be_loading(session, tiny) -> None:
    """It may have been refused: the status says what happens."""
    words = screen.texts(session.view(tiny.with_settings(model="nobody/nothing"), SOMEBODY))["headline"]
    assert "There is nothing to show for this model" in words


def test_what_a_button_measures_says_nothing_of_its_setting_once_the_slider_has_moved(session, tiny) -> None:
    began, moved = tiny.with_settings(order="sequential", sparsity=33), tiny.with_settings(sparsity=20)
    answers = handlers.measure(session, began, 0, None, "ada")
    assert next(answer for answer in answers if "headline" in answer)
    handlers.move(session, [], [], moved, 0, "ratios", None, "ada")
    later = list(answers)
    assert "Calibrated" in later[-1]["status"]
    assert all(answer.keys() == {"status"} for answer in later)
    session.jobs.set_view("ada", request=began)
    assert "headline" in list(handlers.measure(session, began, 0, None, "ada"))[-1]


def test_what_ends_with_its_setting_shows_nothing_of_it_afterwards(session, tiny) -> None:
    began, moved = tiny.with_settings(sparsity=17), tiny.with_settings(sparsity=18)
    costs = compare.costs(Columns(session), began, None, "", "ada")
    shifts = activations.measure(ShiftViews(session), began, 0, "ada")

    for answers in (handlers.measure(session, began, 0, None, "ada"), costs, shifts):
        assert next(answer for answer in answers if "isx-busy" in str(answer))
        job = session.jobs._running[-1].job
        session.jobs.set_view("ada", request=moved)
        with job._changed:
            assert job._changed.wait_for(lambda job=job: job.ended, 30)
        session.jobs.prefetch("ada", lambda job: None, request=moved)  # as a move does
        *_, last = answers
        last = last if isinstance(last, dict) else last._asdict()
        assert "Calibrated" in last["status"]
        assert all(value == gr.skip() for name, value in last.items() if name != "status")


@pytest.mark.parametrize("how", ["done", "failed", "stopped", "moved", "replaced", "gone"])
def test_whatever_ends_a_measurement_nothing_of_it_is_in_the_view(session, tiny, monkeypatch, how) -> None:
    ended, request = set(), tiny.with_settings(sparsity=59)

    def work(job, request, whole):
        while not ended & {"done", "replaced"}:
            job.emit(Status("Slicing", "busy", 1, 2))
            if "failed" in ended:
                raise OSError("the disk is full")

    monkeypatch.setattr(session, "measure_perplexities", work)
    monkeypatch.setattr(session.jobs, "caller", lambda: Caller(is_connected=lambda: "gone" not in ended))
    session.jobs.set_view("ada", request=request)
    answers = handlers.measure(session, request, 0, None, "ada")
    first = next(answers)
    assert "<progress" in first["status"]
    assert "being measured" in first["headline"]
    ended.add(how)
    if how == "stopped":
        session.jobs.halt("ada")
    elif how == "moved":
        session.jobs.set_view("ada", request=tiny)
        assert not session.view(request, "ada").is_measuring
        session.jobs.set_view("ada", request=request)
    elif how == "replaced":
        list(handlers.measure(session, request, 0, None, "ada"))
    *_, last = answers
    view = session.view(request, "ada")
    assert view.status.kind != "busy"
    assert not view.is_measuring
    assert formatting.status_line(view.status).partition("-->")[2] == last["status"].partition("-->")[2]
    assert "release the slider" in last["headline"]


@pytest.mark.parametrize("ending", ["late move", "next move", "stop"])
def test_a_release_is_repeated_only_where_a_late_move_has_ended_it(session, tiny, ending) -> None:
    before, released = tiny.with_settings(sparsity=44), tiny.with_settings(sparsity=46)
    session.jobs.set_view("ada", request=released if ending == "next move" else before)
    answers = begun(handlers.on_release(session, released, 0, None, "ada"))
    handlers.stop(session, [""], "ada") if ending == "stop" else session.jobs.set_view("ada", request=before)
    list(answers)
    moves = [handlers.move(session, [], [], released, 0, "ratios", None, "ada") for _ in range(2)]
    assert ["again" in move for move in moves] == [ending == "late move", False]


def test_a_setting_that_is_measured_is_not_measured_again(session, tiny) -> None:
    """Else the measurement would begin once more when the client stops it."""
    request = tiny.with_settings(sparsity=49)
    session.jobs.set_view("ada", request=request)
    answers = begun(handlers.on_release(session, request, 0, None, "ada"))
    assert list(handlers.measure_again(session, request, 0, None, "ada")) == []
    handlers.stop(session, [""], "ada")
    assert any("Cancelled." in answer.get("status", "") for answer in answers)
    assert session.perplexities(request).source.kind != "here"
    assert list(handlers.measure_again(session, request, 0, None, "ada"))
    assert session.perplexities(request).source.kind == "here"


@pytest.mark.usefixtures("one_by_one")
def test_the_charts_follow_a_release_that_calibrates_since_the_first_calibration_was_cancelled(fresh, tiny) -> None:
    """Each answer with numbers of another calibration tells the charts, and none of a job `prepare` is told twice."""
    session, request = fresh, tiny.with_settings(sequences=8)
    answers = handlers.prepare(session, request, "ada")
    assert next(answer for answer in answers if "again" in answer)
    seen = session.sequences(request)
    session.jobs.halt("ada", "prepare")
    assert "again" not in [*answers][-1]
    assert (seen, session.is_calibrated(request)) == (1, False)

    told = [seen]
    for answer in handlers.on_release(session, request, 0, None, "ada"):
        told += [session.sequences(request)] if "again" in answer else []
        assert told[-1] == session.sequences(request)
    assert told == [1, 2, 4, 8]
    assert not any("again" in answer for answer in handlers.on_release(session, request, 0, None, "ada"))


def test_of_two_calls_of_a_program_the_second_replaces_the_first(session, tiny) -> None:
    """A program has no page that says what it views."""
    settings = [tiny.with_settings(sparsity=percent) for percent in (41, 42)]
    first, second = (handlers.on_release(session, request, 0, None, "a program") for request in settings)
    begun(first)
    assert next(second)
    for answers in (first, second):
        list(answers)
    assert [session.perplexities(request).source.kind == "here" for request in settings] == [False, True]
