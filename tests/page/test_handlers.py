"""One contract over all handlers of all tabs and the frame, as the page wires them; and which event calls which."""

import inspect
from collections import Counter
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from gradio.utils import get_type_hints, is_special_typed_parameter
from tiny_page import SOMEBODY

from components.frame import handlers
from components.page import build_app
from components.state.request import Request
from components.state.settings import Settings
from components.ui.handlers import spread_settings
from intraslice.core.errors import UserError
from intraslice.size_target import planned_folder

IMPOSSIBLE = {"sparsity": 75, "cap": 60}  # more than the cap lets go
NOTHING = (gr.skip(), {"__type__": "update"})


@pytest.fixture(scope="module")
def page(session) -> gr.Blocks:
    return build_app(session)


@pytest.fixture(scope="module")
def wired(page) -> list[Any]:
    """The page's functions that run here, and not in the browser."""
    wired = [function for function in page.fns.values() if function.fn is not None]
    assert len(wired) > 60
    return wired


def call(function: Any, **named: Any) -> list[tuple[Any, ...]]:
    """The answers of a handler to its inputs' values, but for those that are named; each as a tuple of outputs."""
    values = []
    inputs = iter(function.inputs)
    for name, parameter in inspect.signature(function.fn).parameters.items():
        is_given = is_special_typed_parameter(name, get_type_hints(function.fn))
        component = None if is_given else next(inputs, None)
        default = None if parameter.default is parameter.empty else parameter.default
        values.append(None if is_given else named.get(name, getattr(component, "value", default)))
    answer = function.fn(*values)
    answers = list(answer) if isinstance(answer, Iterator) else [answer]
    # One value that is no tuple is the only output's, or leaves all as they are.
    return [one if isinstance(one, tuple) else (one,) * len(function.outputs) for one in answers]


def test_gradio_shows_no_progress_of_its_own(page) -> None:
    # For its progress the browser copies all outputs.
    calls = [call for call in page.fns.values() if call.targets and call.outputs]
    assert len(calls) > 70
    assert {call.name for call in calls if call.show_progress_on != []} == {"load_example"}  # gradio's own


def test_every_handler_answers_to_impossible_settings_in_words_and_begins_no_work(wired, session, monkeypatch) -> None:
    monkeypatch.setattr(session.jobs.scheduler, "start", None)
    told = {}
    for function in wired:
        if "sparsity" not in inspect.signature(function.fn).parameters:
            continue
        try:
            answers = call(function, **Settings()._asdict() | IMPOSSIBLE, layer=0, pinned="")
        except (UserError, gr.Error) as error:  # which gradio shows
            answers = [(str(error),) * len(function.outputs)]
        words = told[function] = [value for answer in answers for value in answer if value not in NOTHING]
        assert all(len(answer) == len(function.outputs) for answer in answers), function.api_name
        assert all("raise the cap" in str(value) or value in ("", None) for value in words), (function.api_name, words)
    assert len(told) > 25
    (words,) = (words for function, words in told.items() if function.api_name == "ratios")
    assert ["raise the cap" in value for value in words] == [True]  # no chart changes


def test_what_only_another_tab_shows_is_not_made(wired, session, monkeypatch) -> None:
    monkeypatch.setattr(session.jobs.scheduler, "start", None)
    guarded = [function for function in wired if "active_tab" in inspect.signature(function.fn).parameters]
    always = {"headline", "removed", "ratio-chart"}  # what is in view, or drawn, whichever tab is open
    guarded = [function for function in guarded if not always & {one.elem_id for one in function.outputs}]
    assert len(guarded) > 6
    for function in guarded:
        answers = call(function, **Settings()._asdict(), layer=0, pinned="", active_tab="no such tab")
        assert all(value in NOTHING for answer in answers for value in answer), function.api_name


def test_the_configuration_that_every_browser_gets_stays_small(page) -> None:
    assert len(page.config["components"]) * len(page.config["dependencies"]) <= 239 * 324 / 2  # before the signals


def test_no_two_listeners_keep_each_other_going(page) -> None:
    # An event that came while a listener in this mode ran is sent to all its listeners again (gradio 6.31).
    keeping = [function for function in page.fns.values() if function.trigger_mode == "always_last"]
    events = Counter(target for function in keeping if function.fn is not None for target in function.targets)
    assert len(keeping) > 15
    assert [event for event, listeners in events.items() if event[0] is not None and listeners > 1] == []


def test_one_listener_draws_what_follows_the_slider(page) -> None:
    # Of two calls on their way at once the older setting's answer may come last, and stay.
    shown = {one for one in page.blocks.values() if one.elem_id in ("ratio-chart", "removed")}
    drawing = [function for function in page.fns.values() if shown <= set(function.outputs)]
    assert len(shown) == 2
    # What the link is set to is drawn before there is a slider to move.
    assert [one.trigger_mode for one in drawing if one.api_name != "ratios"] == ["always_last"]


def test_which_tab_is_in_view_is_the_browsers_to_say_and_is_told_in_order(page) -> None:
    # Of two tabs opened in a row the first one's late answer would leave the second without its content.
    [row] = [one for one in page.blocks.values() if one.elem_id == "tabs"]
    labels = {one._id: one.id for one in row.children}
    noted = {target: function for function in page.fns.values() for target, _ in function.targets if target in labels}
    assert noted.keys() == labels.keys()
    [tab] = {output for function in noted.values() for output in function.outputs}
    assert all(function.fn is None and f'"{labels[one]}"' in function.js for one, function in noted.items())
    assert [one.fn for one in page.fns.values() if tab in one.outputs and one.fn is not None] == []
    assert [one.trigger_mode for one in page.fns.values() if one.inputs == [tab]] == ["always_last"]


def test_an_answer_by_names_is_a_value_for_each_output_or_that_of_a_single_one(tiny) -> None:
    def show(request: Request) -> dict[str, str]:
        return {"words": request.slicing.estimator}

    assert spread_settings(show, outputs=["words"])(*tiny.settings) == "pca"
    assert spread_settings(show, outputs=["number", "words"])(*tiny.settings) == (gr.skip(), "pca")
    assert spread_settings(show, outputs=["words"], tab="mine")(*tiny.settings, "other") == gr.skip()
    with pytest.raises(ValueError, match="words must be among the outputs number"):
        spread_settings(show, outputs=["number"])(*tiny.settings)


def test_the_sparsity_of_a_size_is_the_smallest_that_fits(session, tiny) -> None:
    list(session.prepare(tiny, SOMEBODY))
    model = session.calibrated(tiny).loaded.model

    def fit(size: str, context: int = 0) -> list[dict[str, Any]]:
        return list(handlers.fit_size(session, tiny, size, context, SOMEBODY))

    for context in (0, 512):
        count = planned_folder(model, "bfloat16", True, context)
        target = count(session.slice_plan(tiny.with_settings(sparsity=25)))
        answers = fit(f"{target / 1e6:.6f} MB bfloat16", context)
        [percent] = [answer["sparsity"] for answer in answers if "sparsity" in answer]
        assert 0.985 * target <= count(session.slice_plan(tiny.with_settings(sparsity=percent))) <= target
        assert percent <= 25
    refusals = {"1 kB": "the smallest that these settings reach is", "9" * 400 + " MB": "such as 200 MB"}
    for size, words in refusals.items():
        answers = fit(size)
        assert not any("sparsity" in answer for answer in answers)
        assert words in answers[-1]["status"]


def test_opening_a_tab_signals_that_tab_alone_and_ends_what_another_shows(session) -> None:
    events = session.jobs.run("ada", "shifts", lambda job: job.emit(job) or job.sleep(60), tab="activations")
    job = next(events)
    assert not job.stopped
    assert handlers.open_tab(session, ["ratios", "sweep"], "sweep", "ada").keys() == {"sweep"}
    assert job.stopped
    assert handlers.open_tab(session, ["ratios"], "no such tab", SOMEBODY) == {}
