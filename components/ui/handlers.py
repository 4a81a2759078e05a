"""How a plain function becomes what gradio calls.

A handler is `handler(what it works with ..., settings, its own inputs ..., request)`. It answers with one value, or
with a NamedTuple that has a field an output; the same NamedTuple class holds the components.

Here values come in from the page and from programs: a handler's own inputs are checked by their names, and an upload by
where it lies (settings are where work begins: `session/keys.py`). And here errors go out, in words.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import gradio as gr
from gradio.context import LocalContext
from gradio.utils import get_upload_folder, is_in_or_equal
from gradio_client.utils import is_file_obj, is_file_obj_with_meta, traverse

from components.i18n.language import Words, asked_for, language, later, say, speaking, spoken
from components.jobs import limits
from components.jobs.jobs import EXPECTED
from components.state.settings import Settings
from components.ui.pinned import text as pinned_text

log = logging.getLogger(__name__)

Outputs = TypeVar("Outputs", bound=tuple)

FIELDS = [
    # gradio asks callers for whatever has neither a default nor a component with a value
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=None)
    for name, annotation in get_type_hints(Settings).items()
]
GIVEN_BY_GRADIO = {gr.Request, gr.EventData}
NOT_UPLOADED = later("the upload is no file that was uploaded here; wanted one, by `handle_file` in gradio_client")
MOST_LAYERS = 10_000
# Handlers' own inputs, by name.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "layer": lambda value: limits.whole("layer", value, 0, MOST_LAYERS),
    "prompt": lambda value: limits.words(later("the prompt"), value, limits.PROMPT.value),
    "passage": lambda value: limits.words(later("the passage"), value, limits.PASSAGE.value),
    "sample": lambda value: limits.words(later("the passage"), value, limits.PASSAGE.value),
    "tokens": lambda value: limits.whole("tokens", value, 1, limits.NEW_TOKENS.value),
    "temperature": lambda value: limits.number("temperature", value, 0, limits.TEMPERATURE.value),
    "sample_seed": lambda value: limits.whole("sample seed", value or 0, 0, limits.MOST_SEED),
    "raw": lambda value: limits.flag("raw", value),
    "ratios_file": lambda value: uploaded(value),
    "speed": lambda value: limits.flag("speed", value),
}


class Follower(NamedTuple):
    """What a tab shows of every move: `show(settings, layer, request)` answers in milliseconds.

    `show_pinned` does for the pinned setting, where that is not the same.
    """

    tab: str
    show: Callable[..., tuple]
    outputs: tuple[gr.components.Component, ...]
    show_pinned: Callable[..., tuple] | None = None


def skipped(outputs: type[Outputs]) -> Outputs:
    """The answer that leaves every output as it is; `_replace` what changes."""
    return outputs(*(gr.skip() for _ in outputs._fields))


def at_opening(answer: Callable[[], Outputs]) -> Outputs:
    """An answer as the components' first values, in every language: nothing where it leaves them as they are."""

    @functools.cache
    def first(_: str) -> Outputs:
        made = answer()
        return type(made)(*("" if isinstance(value, dict) else value for value in made))

    def told(index: int) -> Words:
        return Words(lambda: first(language())[index])

    now = first(language())
    return type(now)(*(told(index) if isinstance(value, str) else value for index, value in enumerate(now)))


def bind(handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """`handler(*bound, ...)` as a function of the rest. A `functools.partial` shows gradio no name and no types."""
    return _calling(handler, lambda values: (*bound, *values), _parameters(handler)[len(bound) :])


def flat(handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """`handler(*bound, settings, ...)` as a function of the fields of `Settings`, one parameter each, then the rest.

    Gradio can then call it with one value a control, and its API shows every parameter by name. An answer of one field
    becomes its value, since gradio wraps a single output itself. A parameter `pinned` comes as the setting of its text,
    or as None where there is none to set beside `settings`.
    """
    rest = [_optional(parameter) for parameter in _parameters(handler)[len(bound) + 1 :]]

    def arguments(values: Sequence[Any]) -> tuple:
        settings = Settings(*values[: len(FIELDS)])
        own = zip(rest, values[len(FIELDS) :], strict=False)
        settings = settings._replace(upload=uploaded(settings.upload))
        checks = CHECKS | {"pinned": lambda text: pinned_text.beside(text, settings)}
        return *bound, settings, *(checks.get(parameter.name, _as_it_is)(value) for parameter, value in own)

    def unwrapped(answer: Any) -> Any:
        return answer[0] if isinstance(answer, tuple) and len(answer) == 1 else answer

    return _calling(handler, arguments, [*FIELDS, *rest], unwrapped)


def while_open(tab: str, unchanged: Any, handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """As `flat`, with the open tab as one more input, the last: while that is not `tab` the answer is `unchanged`."""
    parameters = _parameters(handler)[len(bound) :]
    inputs = [parameter for parameter in parameters if not _is_given_by_gradio(parameter)]
    given = [parameter for parameter in parameters if _is_given_by_gradio(parameter)]

    def arguments(values: Sequence[Any]) -> tuple:
        return *bound, *values[: len(inputs)], *values[len(inputs) + 1 :]

    if inspect.isgeneratorfunction(handler):

        def guarded(*values: Any) -> Any:
            yield unchanged  # gradio empties the outputs of a generator that yields nothing
            if values[len(inputs)] == tab:
                yield from handler(*arguments(values))

    else:

        def guarded(*values: Any) -> Any:
            return handler(*arguments(values)) if values[len(inputs)] == tab else unchanged

    opened = inspect.Parameter("opened", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=str)
    return flat(_described(guarded, handler, [*inputs, opened, *given]))


def uploaded(upload: Any) -> str | None:
    """The path of an upload, as the page's component or a program gives it; on a desktop any path will do.

    Raises ValueError for a file that nobody has uploaded.
    """
    path = upload.get("path") if isinstance(upload, dict) else upload
    if path in (None, ""):
        return None
    is_own = isinstance(upload, str) and not limits.hosted()
    if not (isinstance(path, str) and (is_own or is_in_or_equal(path, get_upload_folder()))):
        raise ValueError(NOT_UPLOADED)
    return path


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


def require_readable(components: Sequence[Any], values: Sequence[Any], state: Any = None) -> None:
    """Raises ValueError where a component gets what it cannot take; that a field is left empty its handler looks at."""
    if (missing := len(components) - len(values)) > 0:
        all_of_them = len(components)
        raise ValueError(
            later("{missing} of {all} values are missing; the page's API names them", missing=missing, all=all_of_them)
        )
    traverse(values, uploaded, is_file_obj)
    for component, value in zip(components, values, strict=False):
        own = state[component._id] if state and component._id in state else component  # as this page has it now
        if isinstance(own, gr.Slider) or (isinstance(own, gr.Number) and value is not None):
            low = -math.inf if own.minimum is None else own.minimum
            limits.number(own.label, value, low, math.inf if own.maximum is None else own.maximum)
        if isinstance(own, gr.File) and not (value is None or is_file_obj_with_meta(value)):
            raise ValueError(NOT_UPLOADED)


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


def visitor_of(request: gr.Request | None) -> str:
    """What tells one open page from another."""
    return getattr(request, "session_hash", None) or "somebody"


def hearing() -> Callable[[], bool]:
    """Called in a handler: what tells from then on whether its caller still hears of it.

    Gradio marks an event when its stream is closed, and then no longer asks a generator for more; nothing else would
    tell a job that nobody listens.
    """
    blocks, event_id = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    event = blocks._queue.event_ids_to_events.get(event_id) if blocks is not None else None
    return (lambda: event.alive) if event is not None else (lambda: True)


def _calling(
    handler: Callable[..., Any],
    arguments: Callable[[Sequence[Any]], tuple],
    parameters: Sequence[inspect.Parameter],
    answered: Callable[[Any], Any] = lambda answer: answer,
) -> Callable[..., Any]:
    """A function of `parameters`, or a generator where the handler is one, that calls it with `arguments(values)`."""
    if inspect.isgeneratorfunction(handler):

        def called(*values: Any) -> Any:
            yield from map(answered, handler(*arguments(values)))

    else:

        def called(*values: Any) -> Any:
            return answered(handler(*arguments(values)))

    return _described(called, handler, parameters)


def _as_it_is(value: Any) -> Any:
    return value


def _parameters(handler: Callable[..., Any]) -> list[inspect.Parameter]:
    # Types, not their names: gradio would look names up in this file, and quietly give nothing where one is unknown.
    return list(inspect.signature(handler, eval_str=True).parameters.values())


def _is_given_by_gradio(parameter: inspect.Parameter) -> bool:
    return bool(GIVEN_BY_GRADIO & {parameter.annotation, *get_args(parameter.annotation)})


def _optional(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(default=None) if parameter.default is parameter.empty else parameter


def _described(
    function: Callable[..., Any], handler: Callable[..., Any], parameters: Sequence[inspect.Parameter]
) -> Callable[..., Any]:
    """The function under the handler's name and words, with these parameters for all who look."""
    functools.update_wrapper(function, handler)
    del function.__wrapped__
    parameters = [parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters]
    if any(parameter.default is not parameter.empty for parameter in parameters):
        parameters = [_optional(parameter) for parameter in parameters]
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {
        parameter.name: parameter.annotation for parameter in parameters if parameter.annotation is not parameter.empty
    }
    return function
