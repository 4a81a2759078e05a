"""How a plain function becomes what gradio calls.

A handler is `handler(what it works with ..., settings, its own inputs ..., request)`. It answers with one value, or
with a NamedTuple that has a field an output; the same NamedTuple class holds the components.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import gradio as gr
from gradio.context import LocalContext

from components.session.settings import Settings

Outputs = TypeVar("Outputs", bound=tuple)

FIELDS = [
    # gradio asks callers for whatever has neither a default nor a component with a value
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=None)
    for name, annotation in get_type_hints(Settings).items()
]
GIVEN_BY_GRADIO = {gr.Request, gr.EventData}


class Follower(NamedTuple):
    """What a tab shows of every move: `show(settings, layer, request)` answers in milliseconds."""

    tab: str
    show: Callable[..., tuple]
    outputs: tuple[gr.components.Component, ...]


def skipped(outputs: type[Outputs]) -> Outputs:
    """The answer that leaves every output as it is; `_replace` what changes."""
    return outputs(*(gr.skip() for _ in outputs._fields))


def at_opening(answer: Outputs) -> Outputs:
    """An answer as the components' first values: nothing where it leaves them as they are."""
    return type(answer)(*("" if isinstance(value, dict) else value for value in answer))


def bind(handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """`handler(*bound, ...)` as a function of the rest. A `functools.partial` shows gradio no name and no types."""
    return _calling(handler, lambda values: (*bound, *values), _parameters(handler)[len(bound) :])


def flat(handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """`handler(*bound, settings, ...)` as a function of the fields of `Settings`, one parameter each, then the rest.

    Gradio can then call it with one value a control, and its API shows every parameter by name. An answer of one field
    becomes its value, since gradio wraps a single output itself.
    """
    rest = [_optional(parameter) for parameter in _parameters(handler)[len(bound) + 1 :]]

    def arguments(values: Sequence[Any]) -> tuple:
        return *bound, Settings(*values[: len(FIELDS)]), *values[len(FIELDS) :]

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
