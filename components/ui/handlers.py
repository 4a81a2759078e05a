"""How a plain function becomes what gradio calls.

A handler is `handler(what it works with ..., settings, its own inputs ..., request)`. It answers with one value, or
with a NamedTuple that has a field an output; the same NamedTuple class holds the components.

Here values come in from the page and from programs: a handler's own inputs are checked by their names, and an upload by
where it lies (settings are where work begins: `session/keys.py`). And here errors go out, in words.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

import gradio as gr

from components.gradio_compat.inputs import uploaded_path
from components.gradio_compat.signatures import (
    handler_with,
    is_given_by_gradio,
    parameters_of,
    with_default,
    with_signature,
)
from components.i18n.language import Words, language, later
from components.jobs import limits
from components.state.settings import Settings
from components.ui.pinned import text as pinned_text

Outputs = TypeVar("Outputs", bound=tuple)

FIELDS = [
    # gradio asks callers for whatever has neither a default nor a component with a value
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=None)
    for name, annotation in get_type_hints(Settings).items()
]
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
    "ratios_file": lambda value: uploaded_path(value),
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


def unchanged(outputs: type[Outputs]) -> Outputs:
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


def spread_settings(handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """`handler(*bound, settings, ...)` as a function of the fields of `Settings`, one parameter each, then the rest.

    Gradio can then call it with one value a control, and its API shows every parameter by name. An answer of one field
    becomes its value, since gradio wraps a single output itself. A parameter `pinned` comes as the setting of its text,
    or as None where there is none to set beside `settings`.
    """
    rest = [with_default(parameter) for parameter in parameters_of(handler)[len(bound) + 1 :]]

    def arguments(values: Sequence[Any]) -> tuple:
        settings = Settings(*values[: len(FIELDS)])
        own = zip(rest, values[len(FIELDS) :], strict=False)
        settings = settings._replace(upload=uploaded_path(settings.upload))
        checks = CHECKS | {"pinned": lambda text: pinned_text.beside(text, settings)}
        return *bound, settings, *(checks.get(parameter.name, _as_it_is)(value) for parameter, value in own)

    def unwrapped(answer: Any) -> Any:
        return answer[0] if isinstance(answer, tuple) and len(answer) == 1 else answer

    return handler_with(handler, arguments, [*FIELDS, *rest], unwrapped)


def only_if_active(tab: str, unchanged: Any, handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """As `flat`, with the open tab as one more input, the last: while that is not `tab` the answer is `unchanged`."""
    parameters = parameters_of(handler)[len(bound) :]
    inputs = [parameter for parameter in parameters if not is_given_by_gradio(parameter)]
    given = [parameter for parameter in parameters if is_given_by_gradio(parameter)]

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
    return spread_settings(with_signature(guarded, handler, [*inputs, opened, *given]))


def visitor_of(request: gr.Request | None) -> str:
    """What tells one open page from another."""
    return getattr(request, "session_hash", None) or "somebody"


def _as_it_is(value: Any) -> Any:
    return value
