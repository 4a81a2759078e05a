"""What a program asks of the page: the command line's own JSON, as endpoints whose every parameter has a default.

`gradio_client` and MCP clients call these by name. They share the page's caches, and its one lane for heavy work.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast, get_type_hints

import gradio as gr

from components.export import files
from components.frame.context import HEAVY
from components.gradio_compat.signatures import is_given_by_gradio, with_signature
from components.i18n.language import translate
from components.jobs.job import Job
from components.jobs.status import Status
from components.ratios import measure as ratios
from components.state.request import Request
from components.state.session import Session
from components.state.settings import PROMPT, Settings
from components.sweep import measure
from components.sweep.views import SweepChoice
from components.ui.handlers import spread_settings
from components.ui.labels import METHODS

USUAL: dict[str, Any] = SweepChoice()._asdict()
CALLS = itertools.count(1)
Upload = gr.FileData | None
LANE = {name: HEAVY[name] for name in ("concurrency_id", "concurrency_limit")}


def evaluate(session: Session, request: Request, client: str) -> dict[str, Any]:
    """Slice a model and measure it: plan, parameters, ratios, perplexity dense and sliced, and the protocol.

    Percentages (sparsity, cap) are out of 100. `locked` gives ratios by hand, such as "7 mlp 25, 3 attention 0".
    `shapes` are "free", or "runtime": those that llama.cpp takes with nothing filled up. `recovery` is "none", or
    "distill": the sliced model is then trained towards the dense one, which takes minutes.
    `upload` is a text of yours, by `handle_file` in gradio_client; on a desktop its path will do.
    The first call for a model and text loads and calibrates them, which takes minutes; later ones find both.
    """
    return _result(session, "evaluate", partial(files.evaluation, session=session, request=request), client)


def generate(
    session: Session,
    request: Request,
    prompt: str = PROMPT,
    tokens: int = 64,
    temperature: float = 0.0,
    sample_seed: int = 0,
    client: str = "",
) -> dict[str, Any]:
    """The dense and the sliced model's answers to a prompt, as {"dense": ..., "sliced": ...}; greedy at 0."""
    options: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "seed": sample_seed}
    work = partial(files.answers, session=session, request=request, prompt=prompt, **options)
    return _result(session, "generate", work, client)


def sweep_table(
    session: Session,
    request: Request,
    methods: list[str] = USUAL["methods"],
    estimators: list[str] = USUAL["estimators"],
    sparsities: list[float] = USUAL["sparsities"],
    speed: bool = False,
    client: str = "",
) -> list[dict[str, Any]]:
    """Perplexity, and speed if asked, of every method x estimator x sparsity (per cent): one object a model.

    Methods: {methods}. Points that are measured already come from the disk.
    """
    choice = SweepChoice(methods, estimators, sparsities, speed)
    work = partial(measure.table, session=session, request=request, choice=choice)
    return _result(session, "sweep table", work, client)


def locked_ratios(session: Session, request: Request, ratios_file: Upload = None) -> str:
    """A file of ratios as the `locked` of all other calls, checked row by row, and against the model where it is known.

    A .csv or .json with layer, attention_ratio and mlp_ratio, shares of a module, as `save_ratios` writes it; what it
    leaves empty shares what is left. A ratio that `locked` gives already counts more than the file's.
    """
    request = ratios.with_ratios(request, cast(str | None, ratios_file))  # its path, as `CHECKS` returns it
    session.plan(request)
    return request.settings.locked


def command_lines(session: Session, request: Request, prompt: str = PROMPT) -> str:
    """The shell lines that evaluate, save and ask the same model without the page."""
    return files.command_lines(session, request, prompt)


def build(session: Session) -> None:
    """Add the endpoints. Called inside the `gr.Blocks()` of the page."""
    queued: tuple[Callable[..., Any], ...] = (evaluate, generate, sweep_table)
    at_once: tuple[Callable[..., Any], ...] = (command_lines, locked_ratios)
    for endpoint in queued:
        gr.events.api(typed(endpoint, session), api_name=endpoint.__name__, **LANE)
    for endpoint in at_once:
        gr.events.api(typed(endpoint, session), api_name=endpoint.__name__, queue=False)


def typed(endpoint: Callable[..., Any], session: Session) -> Callable[..., Any]:
    """`spread_settings(endpoint, session)` with the type and the default of every parameter, for gradio's API page."""
    called, hints = spread_settings(endpoint, session), get_type_hints(Settings) | get_type_hints(endpoint)
    hints["upload"] = Upload
    defaults = Settings()._asdict()
    defaults |= {
        name: parameter.default
        for name, parameter in inspect.signature(endpoint).parameters.items()
        if parameter.default is not parameter.empty
    }
    parameters = [
        parameter
        if is_given_by_gradio(parameter)
        else parameter.replace(annotation=hints[name], default=defaults.get(name))
        for name, parameter in inspect.signature(called).parameters.items()
    ]
    called = with_signature(called, endpoint, parameters, hints["return"])
    called.__doc__ = (endpoint.__doc__ or "").replace("{methods}", ", ".join(METHODS))
    return called


def _result(session: Session, kind: str, work: Callable[[Job], Any], client: str) -> Any:
    """What `work` returns, as the client's job of a kind. Raises gr.Error for what goes wrong, in the page's words."""
    results: list[Any] = []
    call = f"{kind} {next(CALLS)}"  # MCP clients share a session, and must not end each other's

    def keep_result(job: Job) -> None:
        results.append(work(job))

    *_, last = [Status("Stopped"), *session.jobs.run(client, call, keep_result)]
    if not results:
        raise gr.Error(translate(last.text))
    return results[0]
