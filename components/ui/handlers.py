"""From the values that gradio passes to a handler's arguments, and back.

A handler is `handler(*bound, request, own inputs ..., client)`: `bound` is what it works with, such as the session;
`request` are the checked values of the page's controls; `client` is the id of the open page. It answers with one value,
or with a NamedTuple that has a field for each output; components are kept in the same NamedTuple class.

All values from outside are checked here, once: those of the controls by `state/request.py`, a handler's own inputs by
their names, an upload by where it lies.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

import gradio as gr

from components.gradio_compat.inputs import uploaded_path
from components.gradio_compat.signatures import (
    guard_handler,
    parameters_of,
    partial_handler,
    with_default,
    wrap_handler,
)
from components.i18n.language import LazyString, language, lazy_gettext
from components.jobs import limits
from components.state.request import parse
from components.state.settings import Settings
from components.ui.pinned import text as pinned_text

Outputs = TypeVar("Outputs", bound=tuple[Any, ...])

FIELDS = [
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=None)
    for name, annotation in get_type_hints(Settings).items()
]
MAX_LAYERS = 10_000
# Handlers' own inputs, by name.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "layer": lambda value: limits.whole("layer", value, 0, MAX_LAYERS),
    "prompt": lambda value: limits.words(lazy_gettext("the prompt"), value, limits.PROMPT.value),
    "passage": lambda value: limits.words(lazy_gettext("the passage"), value, limits.PASSAGE.value),
    "sample": lambda value: limits.words(lazy_gettext("the passage"), value, limits.PASSAGE.value),
    "tokens": lambda value: limits.whole("tokens", value, 1, limits.NEW_TOKENS.value),
    "temperature": lambda value: limits.number("temperature", value, 0, limits.TEMPERATURE.value),
    "sample_seed": lambda value: limits.whole("sample seed", value or 0, 0, limits.MAX_SEED),
    "raw": lambda value: limits.flag("raw", value),
    "ratios_file": lambda value: uploaded_path(value),
    "speed": lambda value: limits.flag("speed", value),
}


class LiveOutput(NamedTuple):
    """What a tab shows of every move: `show(request, layer, client)` answers in milliseconds.

    `show_pinned` does for the pinned setting, where that is not the same.
    """

    tab: str
    show: Callable[..., tuple[Any, ...]]
    outputs: tuple[gr.components.Component, ...]
    show_pinned: Callable[..., tuple[Any, ...]] | None = None


def unchanged(outputs: type[Outputs]) -> Outputs:
    """The answer that leaves every output as it is; `_replace` what changes."""
    return outputs(*(gr.skip() for _ in outputs._fields))  # type: ignore[attr-defined]  # of a NamedTuple


def leave_unchanged(error: ValueError) -> Any:
    """A refusal without words: every output stays as it is, and the page's first line says what is wrong."""
    return gr.skip()


def at_opening(answer: Callable[[], Outputs]) -> Outputs:
    """An answer as the components' first values, in every language: nothing where it leaves them as they are."""

    @functools.cache
    def first(_: str) -> Outputs:
        made = answer()
        return type(made)(*("" if isinstance(value, dict) else value for value in made))

    def told(index: int) -> LazyString:
        return LazyString(lambda: first(language())[index])

    now = first(language())
    return type(now)(*(told(index) if isinstance(value, str) else value for index, value in enumerate(now)))


def spread_settings(
    handler: Callable[..., Any], *bound: Any, refuse: Callable[[ValueError], Any] | None = None
) -> Callable[..., Any]:
    """`handler(*bound, request, ...)` as a function of the fields of `Settings`, a parameter each, then of the rest.

    Gradio calls it with the value of each control, and its API shows every parameter by name. An answer with one field
    becomes its value, since gradio expects no tuple for a single output. A parameter `pinned` is parsed from its text:
    a `Request`, or None where no setting is pinned. With `refuse` it answers `refuse(error)` to values that the page
    cannot be set to; else the error is raised, which gradio shows.
    """
    rest = [with_default(parameter) for parameter in parameters_of(handler)[len(bound) + 1 :]]

    def arguments(values: Sequence[Any]) -> tuple[Any, ...]:
        settings = Settings(*values[: len(FIELDS)])
        request = parse(settings._replace(upload=uploaded_path(settings.upload)))
        checks = CHECKS | {"pinned": lambda text: pinned_text.beside(text, request)}
        own = zip(rest, values[len(FIELDS) :], strict=False)
        return *bound, request, *(checks.get(parameter.name, _as_it_is)(value) for parameter, value in own)

    def unwrapped(answer: Any) -> Any:
        return answer[0] if isinstance(answer, tuple) and len(answer) == 1 else answer

    return wrap_handler(handler, arguments, [*FIELDS, *rest], unwrapped, refuse)


def only_if_active(tab: str, otherwise: Any, handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """As `spread_settings`, with the open tab as the last input: while that is not `tab` the answer is `otherwise`.

    So it is to values that the page cannot be set to: its first line says what is wrong (`frame/slider.py`).
    """
    guarded = guard_handler(partial_handler(handler, *bound), "opened", tab, otherwise)
    return spread_settings(guarded, refuse=lambda error: otherwise)


def _as_it_is(value: Any) -> Any:
    return value
