"""Which event calls which handler: what the page's wiring as a whole must keep to."""

from collections import Counter

import gradio as gr

from components.activations import panel as activations
from components.activations.measure import ShiftViews
from components.compare import handlers as compare
from components.compare.models import Columns
from components.frame import handlers, slider
from components.jobs.job import Job
from components.jobs.status import Status
from components.page import build_app
from components.ui.handlers import unchanged


def test_no_call_shows_gradios_progress_for_which_the_browser_copies_all_outputs(session) -> None:
    calls = [call for call in build_app(session).fns.values() if call.targets and call.outputs]
    assert len(calls) > 100
    assert {call.name for call in calls if call.show_progress_on != []} == {"load_example"}  # gradio's own


def test_no_two_listeners_keep_each_other_going(session) -> None:
    # An event that came while a listener in this mode ran is sent to all its listeners again (gradio 6.31).
    keeping = [function for function in build_app(session).fns.values() if function.trigger_mode == "always_last"]
    events = Counter(target for function in keeping if function.fn is not None for target in function.targets)
    assert len(keeping) > 20
    assert [event for event, listeners in events.items() if event[0] is not None and listeners > 1] == []


def test_one_listener_draws_what_follows_the_slider(session) -> None:
    # Of two calls on their way at once the older setting's answer may come last, and stay.
    page = build_app(session)
    shown = {one for one in page.blocks.values() if one.elem_id in ("ratio-chart", "removed")}
    drawing = [function for function in page.fns.values() if shown <= set(function.outputs)]
    assert len(shown) == 2
    # What the link is set to is drawn before there is a slider to move.
    assert [one.trigger_mode for one in drawing if one.api_name != "ratios"] == ["always_last"]


def test_which_tab_is_in_view_is_the_browsers_to_say_and_is_told_in_order(session) -> None:
    # Of two tabs opened in a row the first one's late answer would leave the second without its content.
    page = build_app(session)
    [row] = [one for one in page.blocks.values() if one.elem_id == "tabs"]
    tabs = {one._id: one.id for one in row.children}
    noted = {target[0]: function for function in page.fns.values() for target in function.targets if target[0] in tabs}
    assert noted.keys() == tabs.keys()
    [tab] = {output for function in noted.values() for output in function.outputs}
    assert all(function.fn is None and f'"{tabs[one]}"' in function.js for one, function in noted.items())
    assert [one.fn for one in page.fns.values() if tab in one.outputs and one.fn is not None] == []
    assert [one.trigger_mode for one in page.fns.values() if one.inputs == [tab]] == ["always_last"]


def test_what_a_button_measures_says_nothing_of_its_setting_once_the_slider_has_moved(session, tiny) -> None:
    began, moved = tiny.with_settings(order="sequential", sparsity=33), tiny.with_settings(sparsity=20)
    answers = slider.measure(session, began, 0, None, "ada")
    assert next(answer for answer in answers if answer.headline != gr.skip())
    slider.preview(session, [], moved, 0, None, "ada")
    lazy_gettext = list(answers)
    assert "Calibrated" in lazy_gettext[-1].status
    assert {str(answer.headline) for answer in lazy_gettext} == {str(gr.skip())}
    assert {str(answer.perplexity) for answer in lazy_gettext} == {str(gr.skip())}
    back = slider.measure(session, began, 0, None, "ada")
    assert list(back)[-1].headline != gr.skip()


def test_what_ends_with_its_setting_shows_nothing_of_it_afterwards(session, tiny) -> None:
    began, moved = tiny.with_settings(sparsity=17), tiny.with_settings(sparsity=18)
    costs = compare.costs(Columns(session), began, None, "", "ada")
    shifts = activations.measure(ShiftViews(session), began, 0, "ada")
    for answers in (slider.measure(session, began, 0, None, "ada"), costs, shifts):
        assert next(answer for answer in answers if "isx-busy" in str(answer.status))
        job = session.jobs._running[-1].job
        session.jobs.look("ada", request=moved)
        with job._changed:
            assert job._changed.wait_for(lambda job=job: job.ended, 30)
        session.jobs.prefetch("ada", lambda job: None, request=moved)  # as a move does
        *_, last = answers
        assert "Calibrated" in last.status
        assert last == unchanged(type(last))._replace(status=last.status)


def test_nothing_is_being_measured_once_that_is_cancelled(session, tiny, monkeypatch) -> None:
    def work(job, request, whole):  # as long as it takes to read its status
        job.emit(Status("Slicing", "busy"))
        job.sleep(60)

    monkeypatch.setattr(session, "measure_perplexities", work)
    answers = slider.measure(session, tiny.with_settings(sparsity=19), 0, None, "ada")
    assert "being measured" in next(answers).headline
    session.jobs.halt("ada")
    *_, last = answers
    assert "Cancelled." in last.status
    assert "release the slider" in last.headline


def test_opening_a_tab_signals_that_tab_alone_and_ends_what_another_shows(session) -> None:
    job = next(iter(session.jobs.run("ada", "shifts", lambda job: job.emit(job) or job.sleep(60), tab="activations")))
    assert isinstance(job, Job)
    ratios, sweep = handlers.open_tab(session, ["ratios", "sweep"], "sweep", "ada")
    assert (ratios, float(sweep) > 0) == (gr.skip(), True)
    assert job.stopped
    assert handlers.open_tab(session, ["ratios"], "no such tab", "ada") == (gr.skip(),)
