"""Wrappers with the signatures that gradio inspects.

Gradio reads off a function's signature how many values it takes, their types, and whether it wants the request. It sees
no types through `functools.partial`, nor through `*values`. So a wrapper states the signature that gradio should see.
A handler's parameter `client` gets gradio's request, which the wrapper replaces by the client's id.

`gr.api` creates a component for every parameter of every endpoint: hence `share_parameters`.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_signatures.py`.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args

import gradio as gr

from .callers import client_of

GIVEN_BY_GRADIO = {gr.Request, gr.EventData}
CLIENT = "client"  # the parameter that gradio's request is converted for
Handler = Callable[..., Any]


def partial_handler(handler: Handler, *bound: Any) -> Handler:
    """`functools.partial(handler, *bound)` with a name, a docstring and types."""
    return wrap_handler(handler, lambda values: (*bound, *values), parameters_of(handler)[len(bound) :])


def wrap_handler(
    handler: Handler,
    arguments: Callable[[Sequence[Any]], tuple[Any, ...]],
    parameters: Sequence[inspect.Parameter],
    convert: Callable[[Any], Any] = lambda answer: answer,
    refuse: Callable[[ValueError], Any] | None = None,
) -> Handler:
    """A function of `parameters` that calls `handler(*arguments(values))` and converts each of its answers.

    A generator answers at least with `convert({})`, since gradio clears the outputs of one that yields nothing. With
    `refuse` it answers `refuse(error)` to values of which `arguments` raises ValueError; else that is raised.
    """
    client = next((index for index, parameter in enumerate(parameters) if parameter.name == CLIENT), None)
    is_generator = inspect.isgeneratorfunction(handler)

    def call(values: Sequence[Any]) -> Any:
        try:
            if client is not None and client < len(values):
                values = *values[:client], client_of(values[client]), *values[client + 1 :]
            converted = arguments(values)
        except ValueError as error:
            if refuse is None:
                raise
            return [refuse(error)] if is_generator else refuse(error)
        return handler(*converted)

    if is_generator:

        def wrapper(*values: Any) -> Any:
            answers = map(convert, call(values))
            yield next(answers, convert({}))
            yield from answers

    else:

        def wrapper(*values: Any) -> Any:
            return convert(call(values))

    functools.update_wrapper(wrapper, handler)
    del vars(wrapper)["__wrapped__"]
    parameters = [parameter.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters]
    if any(parameter.default is not parameter.empty for parameter in parameters):
        parameters = [with_default(parameter) for parameter in parameters]
    returns = inspect.signature(handler, eval_str=True).return_annotation
    vars(wrapper)["__signature__"] = inspect.Signature(parameters, return_annotation=returns)
    hints = {parameter.name: parameter.annotation for parameter in parameters} | {"return": returns}
    wrapper.__annotations__ = {name: hint for name, hint in hints.items() if hint is not inspect.Parameter.empty}
    return wrapper


def parameters_of(handler: Handler) -> list[inspect.Parameter]:
    """A handler's parameters as gradio shall see them, with evaluated annotations: `client` is its request."""
    parameters = inspect.signature(handler, eval_str=True).parameters.values()
    return [p.replace(annotation=gr.Request) if p.name == CLIENT else p for p in parameters]


def is_given_by_gradio(parameter: inspect.Parameter) -> bool:
    """Whether gradio itself passes a value for it, such as the request."""
    return bool(GIVEN_BY_GRADIO & {parameter.annotation, *get_args(parameter.annotation)})


def with_default(parameter: inspect.Parameter) -> inspect.Parameter:
    """The parameter, optional: gradio demands of callers what has neither a default nor a component with a value."""
    return parameter.replace(default=None) if parameter.default is parameter.empty else parameter


def share_parameters(page: gr.Blocks, endpoints: Sequence[gr.events.Dependency]) -> None:
    """Let parameters of endpoints that have the same place, type and default share the component of the first."""
    shared: dict[str, Any] = {}
    for endpoint in endpoints:
        components: Any = page.fns[endpoint["id"]].inputs
        for index, component in enumerate(components):
            components[index] = shared.setdefault(f"{index} {component.value!r} {component.api_info()}", component)
            if components[index] is not component:
                component.unrender()
