"""Errors of handlers as messages, in the language of the caller.

Gradio answers an exception that is no `gr.Error` without a message, or with the full text of the exception
(`launch(show_error=True)`), and prints a traceback for each, also for mistakes of its callers. What is no `Exception`,
such as a panic of a tokenizer, it does not answer, and a `SystemExit` ends its event loop.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_values.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from .. import limits
from ..i18n.language import gettext, requested_language, term, translate
from ..jobs.jobs import failure


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise `gr.Error` in the current language for whatever is raised inside; log only errors of the page itself."""
    try:
        yield
    except gr.Error as problem:
        problem.message, problem.print_exception = translate(limits.error_text(problem.message)), False
        problem.title = term(problem.title)
        raise
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as problem:  # also a panic of a tokenizer, for which gradio gives no answer
        raise gr.Error(translate(failure(problem).text), title=gettext("Error"), print_exception=False) from problem


def language_of(request: Any) -> str:
    """The language of a call's `gr.Request`, or of the first of several; English for a program that names none."""
    request = request[0] if isinstance(request, list) else request
    query, headers = getattr(request, "query_params", None), getattr(request, "headers", None)
    return requested_language(dict(query or {}), (headers or {}).get("accept-language"))
