"""Errors go out in words."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from components.gradio_compat.inputs import require_readable
from components.i18n.language import asked_for, say, speaking, spoken
from components.jobs import limits
from components.jobs.jobs import EXPECTED

log = logging.getLogger(__name__)


def speak_in_words(page: gr.Blocks) -> None:
    """Let a page say in its visitor's words whatever it cannot read or do, and read no file that was not uploaded.

    Gradio itself would fetch any address that stands for a file, whole and into memory.
    """
    process = page.process_api

    async def process_api(block_fn: Any, inputs: list[Any], state: Any = None, **options: Any) -> dict[str, Any]:
        with speaking(language_of(options.get("request"))), errors_in_words():
            if options.get("iterator") is None:
                require_readable(block_fn.inputs, inputs, state)
            return await process(block_fn, inputs, state, **options)

    page.process_api = process_api


@contextmanager
def errors_in_words() -> Iterator[None]:
    """What goes wrong becomes gradio's message, in words that a visitor may read; only what is our fault is traced."""
    try:
        yield
    except gr.Error as problem:
        problem.message, problem.print_exception = spoken(limits.told(problem.message)), False
        raise
    except (ValueError, *EXPECTED) as problem:
        raise gr.Error(spoken(limits.told(problem)), print_exception=False) from problem
    except Exception as problem:
        log.exception("a handler failed")
        words = say(
            "the page failed at this ({kind}), which is no fault of yours; its log says more",
            kind=type(problem).__name__,
        )
        raise gr.Error(words, print_exception=False) from problem


def language_of(request: Any) -> str:
    """That of a call's visitor, step by step: of a generator each comes here. English for a program that names none."""
    request = request[0] if isinstance(request, list) else request
    query, headers = getattr(request, "query_params", None), getattr(request, "headers", None)
    return asked_for(dict(query or {}), (headers or {}).get("accept-language"))
