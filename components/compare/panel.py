"""The Compare tab: several models answer one prompt side by side, with the costs of each."""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import gradio as gr

from intraslice.core import checks

from .. import limits
from ..device import wllama
from ..frame.context import HEAVY, Context
from ..frame.handlers import stop
from ..gradio_compat.browser.on_latest import on_latest
from ..i18n.language import LazyString, gettext, lazy_gettext
from ..jobs.job import Urgency
from ..jobs.status import Status
from ..jobs.waiting import Waiting
from ..state.request import Request, SliceKey
from ..state.session import Session
from ..state.settings import PROMPT
from ..ui import formatting, screen
from ..ui.explainers import heading, note
from ..ui.handlers import Updates, status_line
from . import device_panel, facts_panel, html, passage_panel
from .answers import Answers, write_answers
from .models import Columns, columns_of
from .views import COLUMNS, OTHER, PINNED, TOKENS, Costs, Question

EXAMPLES = [
    PROMPT,
    "Write two sentences about the moon.",
    "What is the capital of France, and what is it known for?",
    "Explain to a child what a magnet does.",
]
UNFINISHED = ("waiting", "pending", "growing")
# Screen readers announce an answer once it is complete, not at every token.
ARIA_LIVE_JS = """element.setAttribute("aria-live", "polite");
const settle = () => element.setAttribute("aria-busy", String(Boolean(element.querySelector("[aria-busy]"))));
watch("value", settle);"""


class ComparePanel:
    """The tab's components, created inside a `gr.Tab`, and the models that it compares."""

    def __init__(self, session: Session, first: Request) -> None:
        self.columns = Columns(session)
        self.answers: dict[str, gr.HTML] = {}  # by column
        costs: dict[str, gr.HTML] = {}
        text = partial(gr.HTML, apply_default_css=False)
        with gr.Column(elem_classes="isx-stop"):
            self._build_question()
            with gr.Row(elem_id="answers"):
                for name in (*COLUMNS, PINNED, OTHER):
                    empty = "" if name == OTHER else LazyString(partial(html.answer, name))
                    self.answers[name] = text(empty, js_on_load=ARIA_LIVE_JS, elem_id=f"{name}-answer")
                    costs[name] = text(elem_id=f"{name}-cost")
            self.perplexity = screen.newest("", "perplexity")
            costs["protocol"] = text(elem_id="cost-protocol")
            self.costs = {name: costs[name] for name in (*COLUMNS, "protocol", PINNED, OTHER)}  # as the endpoint has it
            heading(lazy_gettext("Options"))
            self._build_options()
            self.device = device_panel.DevicePanel()
        self.passage = passage_panel.PassagePanel()
        self.facts = facts_panel.FactsPanel(self.columns)

    def _build_question(self) -> None:
        with gr.Row(equal_height=True, elem_id="asking"):
            label, max_length = lazy_gettext("Prompt"), limits.PROMPT.value
            self.prompt = gr.Textbox(
                PROMPT, label=label, lines=2, max_lines=6, max_length=max_length, scale=6, elem_id="prompt"
            )
            with gr.Column(scale=1, min_width=120):
                self.generate = gr.Button(lazy_gettext("Generate"), variant="primary", elem_id="generate")
                self.stop = gr.Button(lazy_gettext("Stop"), elem_id="stop")
        gr.Examples(EXAMPLES, self.prompt, label=lazy_gettext("Examples"), elem_id="examples")
        note(html.SMALL)

    def _build_options(self) -> None:
        slider = partial(gr.Slider, min_width=160, buttons=[])
        seed = partial(gr.Number, precision=0, minimum=0, maximum=checks.MAX_INTEGER, min_width=90, scale=0)
        greedy, raw = lazy_gettext("Temperature (0: greedy)"), lazy_gettext("Raw completion, no chat template")
        with gr.Row(elem_id="sampling"):
            self.sampling: dict[str, Any] = {
                "tokens": slider(
                    8, 256, TOKENS, step=8, label=lazy_gettext("Maximum new tokens"), elem_id="new-tokens"
                ),
                "temperature": slider(0, 1.5, 0, step=0.1, label=greedy, elem_id="temperature"),
                "sample_seed": seed(0, label=lazy_gettext("Seed"), elem_id="sample-seed"),
                "raw": gr.Checkbox(False, label=raw, elem_id="raw", container=False, min_width=200),
            }
        self.other = gr.Textbox(
            "",
            label=lazy_gettext("Another model in a column of its own"),
            placeholder=lazy_gettext("A model with the same tokenizer, such as HuggingFaceTB/SmolLM2-360M-Instruct"),
            info=lazy_gettext("It reads the prompt as the dense model does, with the same chat template."),
            max_length=limits.NAME.value,
            elem_id="other-model",
        )


def connect(panel: ComparePanel, context: Context) -> None:
    """Attach the tab's handlers."""
    call, columns, pinned, other = context.call, panel.columns, context.controls.pinned, panel.other
    status = {"status": context.status}
    options: dict[str, Any] = {"queue": HEAVY, "other": other}
    asks = call(answer, columns, outputs=status | panel.answers, api_name="answer", **options, **panel.sampling)
    # A prompt that is sent during an answer is answered after it.
    answered = on_latest([panel.generate.click, panel.prompt.submit], **asks)
    answered.then(**call(costs, columns, outputs=status | panel.costs, api_name="costs", **options))
    stopped = ["answer", "next tokens", "costs"]  # an answer, and what follows it
    panel.stop.click(**call(stop, columns.session, stopped))
    shown = call(cached_costs, columns, outputs=panel.costs, tab="compare", other=other)
    signals = (pinned, context.prepared, context.measured, context.released, context.opened["compare"])
    on_latest([*context.on_commit, *(signal.change for signal in signals)], **shown)
    on_latest([pinned.change], **call(lambda: html.answer(PINNED), outputs={PINNED: panel.answers[PINNED]}))
    column = {"answer": panel.answers[OTHER], "cost": panel.costs[OTHER]}
    named: dict[str, Any] = {"outputs": column, "other": other, "shown": column["answer"]}
    named["refuse"] = lambda problem: {"answer": formatting.problem(problem), "cost": ""}
    on_latest([other.submit, other.blur], **call(name_other, columns, **named))
    device_panel.connect(panel.device, context)
    passage_panel.connect(panel.passage, columns, panel.sampling["raw"], answered, context)
    facts_panel.connect(panel.facts, context)


def answer(
    columns: Columns, request: Request, question: Question, pinned: Request | None, other: str, client: str
) -> Updates:
    """Answer one prompt with the dense, the IntraSlice and the cross-module model, and with the pinned setting's model.

    `other` is one more model with the same tokenizer, or empty. Yields the status and the answers (HTML). Temperature 0
    is greedy; raw omits the chat template.
    """
    session = columns.session
    work = partial(write_answers, columns=columns, request=request, question=question, pinned=pinned, other=other)
    shown: Answers = {}
    latest: Answers = {}
    shown_at = 0.0

    def changes() -> dict[str, str]:
        view_of = partial(session.jobs.view_of, client)  # the user may name or pin another model meanwhile
        replaced = {OTHER: view_of("other", other) != other, PINNED: view_of("pinned", pinned) != pinned}
        percents = dict.fromkeys(latest, request.settings.sparsity)
        percents |= {PINNED: pinned.settings.sparsity} if pinned else {}
        return {
            name: html.answer(name, column, percents[name], other)
            for name, column in latest.items()
            if shown.get(name) != column and not replaced.get(name)
        }

    yield {}
    columns.has_stopped.put(client, False)
    session.jobs.set_view(client, other=other, pinned=pinned)
    keys = {name: column.key() for name, column in columns_of(request, pinned, other).items()}
    for event in session.jobs.run(client, "answer", work, ready=partial(session.ready, request)):
        status = {"status": status_line(_with_offer(columns, request, event))} if isinstance(event, Status) else {}
        latest = with_slicing_progress(latest, event, keys) if status else event
        if status or _states(latest) != _states(shown) or time.monotonic() > shown_at + limits.ANSWER_UPDATE_SECONDS:
            yield status | changes()
            shown, shown_at = latest, time.monotonic()
    if not latest or any(state in UNFINISHED for state in _states(latest)):
        columns.has_stopped.put(client, True)
        stopped = {
            name: replace(column, state="stopped") for name, column in latest.items() if column.state in UNFINISHED
        }
        latest = {**latest, **stopped}
        yield changes()


def name_other(columns: Columns, request: Request, other: str, shown: str, client: str) -> dict[str, Any]:
    """The column of another model and its costs so far (HTML); an answer of the same model that is `shown` stays."""
    columns.session.jobs.set_view(client, other=other)
    if not other:
        return {"answer": "", "cost": ""}
    cost = {"cost": html.cost(OTHER, _costs(columns, request, other), other)}
    return cost if html.is_of(other, shown) else cost | {"answer": html.answer(OTHER, other=other)}


def cached_costs(columns: Columns, request: Request, pinned: Request | None, other: str, client: str) -> dict[str, Any]:
    """Parameters, cache, perplexity and speed of each column so far, and how they were measured (HTML)."""
    # Not while `costs` measures them: this answer may reach the browser after the last one of that.
    is_measuring = columns.session.jobs.is_running(client, "costs", request=request, pinned=pinned, other=other)
    return {} if is_measuring else _cost_texts(columns, request, pinned, other)


def costs(columns: Columns, request: Request, pinned: Request | None, other: str, client: str) -> Updates:
    """Measure the missing perplexities and speeds; yields the status and what `cached_costs` returns."""
    yield {}
    if columns.has_stopped.get(client):  # its last answer
        return
    jobs, ready = columns.session.jobs, partial(columns.session.ready, request)
    compared: dict[str, Any] = {"request": request, "pinned": pinned, "other": other}
    work = partial(columns.measure_costs, **compared)
    for event in jobs.run(client, "costs", work, Urgency.BACKGROUND, ready, **compared):
        texts = {} if event.stopped else _cost_texts(columns, request, pinned, other)
        yield {"status": status_line(event)} | texts


def _cost_texts(columns: Columns, request: Request, pinned: Request | None, other: str) -> dict[str, Any]:
    costs = _costs(columns, request, other)
    texts = {name: html.cost(name, costs) for name in COLUMNS}
    texts[PINNED] = html.cost("intraslice", _costs(columns, pinned), html.label(PINNED)) if pinned else ""
    return texts | {OTHER: html.cost(OTHER, costs, other), "protocol": html.protocol(costs)}


def _costs(columns: Columns, request: Request, other: str = "") -> Costs:
    try:
        return columns.cached_costs(request, other)
    except ValueError:  # the headline shows what is wrong with the setting
        return Costs({}, {})


def _with_offer(columns: Columns, request: Request, event: Status) -> Status:
    """The status; one of a long wait offers the user's own device, where that can run the models."""
    is_long = isinstance(event, Waiting) and (event.seconds_left or 0) >= limits.LONG_WAIT_SECONDS
    if not is_long or not wllama.is_fetched() or columns.session.source(request) is None:
        return event
    waiting = formatting.status_text(event)
    return Status(gettext("{waiting}. Choose “Run on: This device” to have the models answer there.", waiting=waiting))


def with_slicing_progress(answers: Answers, event: Status, keys: Mapping[str, SliceKey]) -> Answers:
    """The columns; one whose model must be sliced shows the progress of that, by the columns' `keys`.

    A slice of another column, which another client may wait for, says nothing of it; a calibration concerns all.
    """
    progress = lazy_gettext(
        "This model must be sliced before it can answer. {what} {done} of {total}.",
        what=event.text,
        done=event.done,
        total=event.total,
    )
    waiting = {name: column for name, column in answers.items() if column.state == "pending" and name != OTHER}
    concerned = [name for name in waiting if event.total and event.about in (None, keys[name])]
    return {**answers, **{name: replace(waiting[name], problem=progress) for name in concerned}}


def _states(answers: Answers) -> list[str]:
    return [column.state for column in answers.values()]
