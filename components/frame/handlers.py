"""Handlers of the frame's events other than the slider's: choose and prepare a model, open a tab, close the page."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from html import escape
from typing import Any

import gradio as gr

from ..i18n.language import gettext, translate
from ..state import leaderboard
from ..state.request import Request
from ..state.session import Session
from ..state.settings import Settings
from ..ui import formatting
from ..ui.handlers import status_line
from . import moves
from .controls import BUDGET_INFO


def memory(session: Session, model: str) -> str:
    """What slicing the model gives and takes, before it is loaded, and its perplexities on the leaderboard (HTML).

    The default model's are in the headline, measured on other windows.
    """
    measured = None if model == Settings().model else leaderboard.measured(model)
    stored = "" if measured is None else f'<p class="isx-quiet">{escape(translate(measured))}</p>'
    try:
        found = session.check(model)
    except (ValueError, OSError) as problem:
        return formatting.problem(problem) + stored
    dense, *_ = found.sizes
    size = next(size for size in found.sizes if size.sparsity == Settings().sparsity / 100)
    least, most = (count / dense.kv_bytes_per_token[0] for count in size.kv_bytes_per_token)
    sentences = {
        gettext("To download: {size}.", size=formatting.size(found.download_bytes)): found.download_bytes,
        gettext(
            "{family}, {layers} layers; {millions:,.0f} M parameters, {parameters} and {size} if {sparsity:.0%} is "
            "removed, with a KV cache of {least:.0%} to {most:.0%}. Slicing takes {needed:.1f} GiB, {available:.1f} "
            "GiB is free; calibrating takes about {time} here.",
            family=found.family,
            layers=found.layers,
            millions=dense.parameters / 1e6,
            parameters=formatting.millions(size.parameters),
            size=formatting.size(size.bytes),
            sparsity=size.sparsity,
            least=least,
            most=most,
            needed=found.memory_bytes / 2**30,
            available=found.available_bytes / 2**30,
            time=formatting.seconds(found.calibration_seconds),
        ): True,
        gettext("Queries and keys keep their width."): found.layer.whole_queries,
        gettext("No files for llama.cpp or the browser."): found.no_gguf,
    }
    text = " ".join(sentence for sentence, applies in sentences.items() if applies)
    return f'<p class="isx-quiet">{escape(text)}</p>{stored}'


def minutes(session: Session, model: str) -> dict[str, Any]:
    """What a calibration of the model takes here by each budget, in the info of their control."""
    try:
        quick, thorough = map(formatting.seconds, session.check(model).budget_seconds.values())
    except (ValueError, OSError):  # `memory` says why
        return {"budget": gr.update(info=translate(BUDGET_INFO))}
    values = {"about": BUDGET_INFO, "quick": quick, "thorough": thorough}
    text = gettext("{about} Here they take about {quick} and {thorough}.", **values)
    return {"budget": gr.update(info=text)}


def prepare(session: Session, request: Request, client: str) -> Iterator[dict[str, str]]:
    """Load the model and calibrate it, unless both are cached.

    Yields the status line (HTML), and a new value of `Context.refresh` whenever the calibration has more sequences.
    """
    answers = ({"status": status_line(event)} for event in session.prepare(request, client))
    # A following event handles the end.
    yield from moves.followed(answers, session, request, lambda: session.is_calibrated(request))


def fit_layers(session: Session, request: Request, layer: int) -> dict[str, Any]:
    """Set the layer slider's maximum to the model's last layer, and move the slider there if it is beyond."""
    source = session.source(request)
    if source is None:
        return {}
    last = len(source.profile.layers) - 1
    return {"layer": gr.update(maximum=last, value=min(layer, last))}


def open_tab(session: Session, tabs: Collection[str], active_tab: str, client: str) -> dict[str, str]:
    """Stop the jobs that only other tabs need. Returns a new value for the active tab's signal."""
    session.jobs.set_view(client, tab=active_tab)
    return {active_tab: str(time.time())} if active_tab in tabs else {}


def stop(session: Session, client: str) -> None:
    """Stop a page's jobs at their next step. Their last statuses say so."""
    session.jobs.halt(client)
