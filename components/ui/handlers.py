"""How a plain function over settings becomes what gradio calls."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from components.session.settings import Settings


def flat(handler: Callable[..., Any]) -> Callable[..., Any]:
    """`handler(settings, ...)` as a function of the fields of `Settings`, one parameter each, then the rest."""
    rest = list(inspect.signature(handler).parameters.values())[1:]
    fields = [
        # gradio asks callers for whatever has neither a default nor a component with a value
        inspect.Parameter(
            name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Settings.__annotations__[name], default=None
        )
        for name in Settings._fields
    ]
    rest = [one.replace(default=None) if one.default is one.empty else one for one in rest]
    count = len(fields)

    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def spread(*values: Any) -> Any:
            yield from handler(Settings(*values[:count]), *values[count:])

    else:

        @functools.wraps(handler)
        def spread(*values: Any) -> Any:
            return handler(Settings(*values[:count]), *values[count:])

    del spread.__wrapped__
    spread.__signature__ = inspect.Signature(fields + rest)
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in fields + rest}
    return spread


def unchanged(outputs: int) -> Any:
    """The answer that leaves every output as it is."""
    return gr.skip() if outputs == 1 else tuple(gr.skip() for _ in range(outputs))


def in_view(tab: str, handler: Callable[..., Any], outputs: int) -> Callable[..., Any]:
    """`handler(settings, layer, request)`, flat and with the open tab as one more parameter: it only works in `tab`."""
    if inspect.isgeneratorfunction(handler):

        def seen(settings: Settings, layer: int, opened: str, request: gr.Request) -> Any:
            yield unchanged(outputs)  # gradio empties the outputs of a generator that yields nothing
            if opened == tab:
                yield from handler(settings, layer, request)

    else:

        def seen(settings: Settings, layer: int, opened: str, request: gr.Request) -> Any:
            return handler(settings, layer, request) if opened == tab else unchanged(outputs)

    return flat(seen)


class Follower(NamedTuple):
    """What a tab shows of every move while it is in view: `show(settings, layer, request)` answers in milliseconds."""

    tab: str
    show: Callable[..., tuple]
    outputs: Sequence[gr.components.Component]


def visitor_of(request: gr.Request | None) -> str:
    """What tells one open page from another."""
    return getattr(request, "session_hash", None) or "somebody"
