"""`gr.Blocks` with the workarounds that concern a page as a whole.

- Gradio converts each input and output of a call in a worker thread of its own, which takes a millisecond beside a job;
  the page's sliders have twenty. And for an output that is left unchanged (`gr.skip()`) it constructs the component
  anew. So numbers, texts and unchanged outputs are converted here.
- Gradio answers an exception that is no `gr.Error` without a message, or with its full text
  (`launch(show_error=True)`), and prints a traceback, also for mistakes of its callers. What is no `Exception`, such as
  a panic of a tokenizer, it does not answer, and a `SystemExit` ends its event loop. So all become messages.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_values.py`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self

import gradio as gr

from .. import limits
from ..i18n.language import ENGLISH, gettext, language, requested_language, term, translate, use_language
from ..jobs.jobs import failure
from .callers import prepare_mcp
from .inputs import require_readable
from .page_config import PageConfig, translated
from .queue import SteadyQueue

PLAIN = (str, int, float, bool, type(None))


class PatchedBlocks(gr.Blocks):
    """`gr.Blocks` for untrusted clients, in their languages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.default_config.__class__ = PageConfig

    @property  # type: ignore[override]  # in gradio an attribute
    def config(self) -> dict[str, Any]:
        """As in gradio, in the current language. Gradio copies what it changes of it."""
        if language() not in self._configs:
            self._configs[language()] = translated(self._configs[ENGLISH])
        return self._configs[language()]

    @config.setter
    def config(self, config: dict[str, Any]) -> None:
        self._configs = {ENGLISH: config}

    def queue(self, *args: Any, **options: Any) -> Self:
        """As in gradio, where the constructor calls it."""
        super().queue(*args, **options)
        self._queue = self.calls = SteadyQueue(self._queue)
        return self

    def run_startup_events(self) -> None:
        """As in gradio, where `launch` calls it once the server runs."""
        super().run_startup_events()
        if self.mcp_server_obj is not None:
            prepare_mcp(self.mcp_server_obj)

    async def process_api(  # type: ignore[override]  # the other arguments by name, as gradio passes them
        self, block_fn: Any, inputs: list[Any], state: Any = None, **options: Any
    ) -> dict[str, Any]:
        """As in gradio, for each step of a generator too: with checked inputs, and errors as messages."""
        with use_language(language_of(options.get("request"))), translate_errors():
            if options.get("iterator") is None:
                require_readable(block_fn.inputs, inputs, state)
            return await super().process_api(block_fn, inputs, state, **options)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """As in gradio."""
        if len(inputs) >= len(block_fn.inputs) and all(map(_is_plain, block_fn.inputs, inputs)):
            with suppress(Exception):  # gradio says in which component
                pairs = zip(block_fn.inputs, inputs, strict=False)
                return [_current(component, state).preprocess(value) for component, value in pairs]
        return await super().preprocess_data(block_fn, inputs, state, explicit_call)

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """As in gradio."""
        values = [predictions] if len(block_fn.outputs) == 1 else predictions
        if isinstance(values, list | tuple) and len(values) == len(block_fn.outputs):
            pairs = list(zip(block_fn.outputs, values, strict=True))
            if all(value == gr.skip() or _is_plain(component, value) for component, value in pairs):
                return [
                    value if value == gr.skip() else _current(component, state).postprocess(value)
                    for component, value in pairs
                ]
        return await super().postprocess_data(block_fn, predictions, state)


def _is_plain(component: Any, value: Any) -> bool:
    """Whether a value is no file, and its component keeps none of it."""
    is_component = isinstance(component, gr.components.Component) and not component.stateful
    return is_component and type(value) in PLAIN and (value is None or component.data_model is None)


def _current(component: Any, state: Any) -> Any:
    return component if state is None else state[component._id]


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
