"""API endpoints for programs, beside those of the tabs (`api_name` in their `connect`). Every parameter has a default.

Some return the command line's values as JSON. `gradio_client` and MCP clients call them by name. They share the page's
caches and its queue for jobs.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import gradio as gr

from intraslice.core.checks import require_current

from .compare.measure import FactsCache
from .compare.models import Columns
from .compare.views import TOKENS
from .export import files
from .frame.context import HEAVY
from .gradio_compat.signatures import Handler, share_parameters
from .i18n.language import lazy_gettext, translate
from .jobs.job import Job
from .jobs.status import Status
from .ratios import ratio_files
from .state.request import Request
from .state.session import Session
from .state.settings import PROMPT
from .sweep import measure
from .sweep.views import SweepChoice
from .ui.handlers import Upload, spread_settings
from .ui.labels import METHODS

DEFAULT_SWEEP = SweepChoice()
CALLS = itertools.count(1)
NO_RESULT = lazy_gettext("The job was stopped before it had a result. Try again.")
QUEUE = {name: HEAVY[name] for name in ("concurrency_id", "concurrency_limit")}


def evaluate(session: Session, request: Request, client: str) -> dict[str, Any]:
    """Slice a model and measure it: plan, parameters, ratios, perplexity dense and sliced, and the protocol.

    Percentages (sparsity, cap) are out of 100. `locked` sets ratios manually, such as "7 mlp 25, 3 attention 0",
    and units: "3 attention head 5 keep" (or "remove") a query head, "7 mlp neurons 400" how many neurons are kept.
    `shapes` is "free", or "runtime": shapes that llama.cpp runs without padding. `recovery` is "none", "distill":
    training the sliced model to match the dense one, which takes minutes, or "distill-own": on its own
    texts as well, against loops. `iterative` was removed, and can only be false.
    `samples` is the number of sequences that the dense model samples for the calibration, beside `sequences` of the
    text; the thorough budget has 16 and 128: better slices, in five times the time.
    `upload` is your own text, passed with `handle_file` of gradio_client; on a desktop its path is enough.
    The first call for a model and text loads and calibrates, which takes minutes; later calls use the caches.
    """
    return _result(session, "evaluate", partial(files.evaluation, session=session, request=request), client)


def generate(
    session: Session,
    request: Request,
    prompt: str = PROMPT,
    tokens: int = TOKENS,
    temperature: float = 0.0,
    sample_seed: int = 0,
    client: str = "",
) -> dict[str, Any]:
    """The answers of the dense and the sliced model, as {"dense": ..., "sliced": ...}; greedy at temperature 0."""
    options: dict[str, Any] = {"tokens": tokens, "temperature": temperature, "seed": sample_seed}
    work = partial(files.answers, session=session, request=request, prompt=prompt, **options)
    return _result(session, "generate", work, client)


def sweep_table(
    session: Session, request: Request, choice: SweepChoice = DEFAULT_SWEEP, client: str = ""
) -> list[dict[str, Any]]:
    """Perplexity of every method x estimator x sparsity (per cent), and its speed with `speed`: one object per model.

    Methods: {methods}. `quantise` has the types of GGUF files whose weights are evaluated (f16, q8_0, q5_0, q4_0), or
    "none" for weights that are not quantised; with another type than "none" the dense model is included. Points that
    have been measured before come from the cache.
    """
    work = partial(measure.table, session=session, request=request, choice=choice)
    return _result(session, "sweep table", work, client)


def facts(session: Session, request: Request, language: str = "en", client: str = "") -> dict[str, Any]:
    """Ask the dense and the sliced model short questions: how many right answers each says, and selects, by group.

    Of the sliced model also what it has `lost` and `gained`, first what the dense model was most sure of. `language` is
    "en" or "de", which has fewer questions.
    """
    record = FactsCache(Columns(session)).record
    return _result(session, "facts", partial(record, request=request, language=language), client)


def locked_ratios(session: Session, request: Request, ratios_file: Upload = None) -> str:
    """Convert a ratios file to a value for the `locked` parameter of the other endpoints.

    The file is a .csv or .json with layer, attention_ratio and mlp_ratio (fractions of a module), as `save_ratios`
    writes it, and is checked row by row and against the model; modules with empty ratios share the rest of the target.
    Ratios in `locked` override those of the file.
    """
    # `CHECKS` has converted the file to its path.
    request = ratio_files.with_ratios(request, cast(str | None, ratios_file))
    session.plan(request)
    return request.settings.locked


def command_lines(session: Session, request: Request, prompt: str = PROMPT) -> str:
    """The shell commands that evaluate, save and prompt the same model without the page."""
    return files.command_lines(session, request, prompt)


def prices(session: Session, request: Request, layer: int = 0, client: str = "") -> None:
    """Raise an error that says what replaces this removed endpoint, whose parameters it takes."""
    require_current("prices")


def build(session: Session, page: gr.Blocks) -> None:
    """Add the endpoints. Called inside `page`."""
    at_once: dict[str, Any] = {"queue": False}
    endpoints: list[tuple[Handler, dict[str, Any]]] = [
        *((endpoint, QUEUE) for endpoint in (evaluate, facts, generate, sweep_table)),
        *((endpoint, at_once) for endpoint in (command_lines, locked_ratios)),
        (prices, at_once | {"api_visibility": "undocumented"}),
    ]
    added = []
    for endpoint, options in endpoints:
        function = spread_settings(endpoint, session)
        function.__doc__ = (endpoint.__doc__ or "").replace("{methods}", ", ".join(METHODS))
        added.append(gr.events.api(function, api_name=endpoint.__name__, **options))
    share_parameters(page, added)


def _result(session: Session, kind: str, work: Callable[[Job], Any], client: str) -> Any:
    """Run `work` as a job of the client and return its result. Raises gr.Error with the last status if it fails."""
    results: list[Any] = []
    call = f"{kind} {next(CALLS)}"  # unique, since a new job stops the client's job of the same kind
    events = session.jobs.run(client, call, lambda job: results.append(work(job)))
    *_, last = [Status(NO_RESULT, "error"), *events]
    if not results:
        raise gr.Error(translate(last.text if last.kind == "error" else NO_RESULT))
    return results[0]
