"""How a plain function becomes what gradio calls: gradio reads parameters and types off a function's signature."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args

import gradio as gr

GIVEN_BY_GRADIO = {gr.Request, gr.EventData}


def partial_handler(handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """`handler(*bound, ...)` as a function of the rest. A `functools.partial` shows gradio no name and no types."""
    return handler_with(handler, lambda values: (*bound, *values), parameters_of(handler)[len(bound) :])


def handler_with(
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

    return with_signature(called, handler, parameters)


def parameters_of(handler: Callable[..., Any]) -> list[inspect.Parameter]:
    # Types, not their names: gradio would look names up in this file, and quietly give nothing where one is unknown.
    return list(inspect.signature(handler, eval_str=True).parameters.values())


def is_given_by_gradio(parameter: inspect.Parameter) -> bool:
    return bool(GIVEN_BY_GRADIO & {parameter.annotation, *get_args(parameter.annotation)})


def with_default(parameter: inspect.Parameter) -> inspect.Parameter:
    return parameter.replace(default=None) if parameter.default is parameter.empty else parameter


def with_signature(
    function: Callable[..., Any], handler: Callable[..., Any], parameters: Sequence[inspect.Parameter]
) -> Callable[..., Any]:
    """The function under the handler's name and words, with these parameters for all who look."""
    functools.update_wrapper(function, handler)
    del function.__wrapped__
    parameters = [parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters]
    if any(parameter.default is not parameter.empty for parameter in parameters):
        parameters = [with_default(parameter) for parameter in parameters]
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {
        parameter.name: parameter.annotation for parameter in parameters if parameter.annotation is not parameter.empty
    }
    return function
