"""Converts the values that gradio passes into a handler's arguments, and a handler's answers into outputs.

A handler is `handler(*bound, request, other inputs ..., client)`: `bound` are objects such as the session, `request`
the validated values of the page's controls, `client` the id of the open page. It returns one value, or a NamedTuple
with a field for each output; components are held in the same NamedTuple class.

All values from outside are validated here, once: those of the controls by `state/request.py`, other inputs by their
names, an upload by its folder.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

import gradio as gr

from intraslice.core import checks

from .. import limits
from ..gradio_compat.inputs import uploaded_path
from ..gradio_compat.signatures import (
    guard_handler,
    parameters_of,
    partial_handler,
    with_default,
    wrap_handler,
)
from ..i18n.language import LazyString, language
from ..jobs.status import Status
from ..state.request import model_name, parse
from ..state.settings import Settings
from . import formatting
from .pinned import text as pinned_text

Outputs = TypeVar("Outputs", bound=tuple[Any, ...])

FIELDS = [
    inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=None)
    for name, annotation in get_type_hints(Settings).items()
]
# Validation of handlers' other inputs, by name.
CHECKS: dict[str, Callable[[Any], Any]] = {
    "layer": lambda value: checks.integer("Layer", value, 0, limits.MAX_LAYER),
    "prompt": lambda value: checks.text("Prompt", value, limits.PROMPT.value),
    "passage": lambda value: checks.text("Passage", value, limits.PASSAGE.value),
    "sample": lambda value: checks.text("Passage", value, limits.PASSAGE.value),
    "tokens": lambda value: checks.integer("Maximum new tokens", value, 1, limits.NEW_TOKENS.value),
    "temperature": lambda value: checks.number("Temperature", value, 0, limits.TEMPERATURE.value),
    "sample_seed": lambda value: checks.integer("Seed", value or 0, 0, checks.MAX_INTEGER),
    "raw": lambda value: checks.flag("raw", value),
    "other": lambda value: model_name(value.strip() if isinstance(value, str) else value) if value else "",
    "ratios_file": lambda value: uploaded_path(value),
    "speed": lambda value: checks.flag("speed", value),
}


class LiveOutput(NamedTuple):
    """Outputs of a tab that are updated after every move: `show(request, layer, client)` answers in milliseconds.

    `show_pinned` does the same for the pinned setting, if another function is needed. `show` takes the values of
    `inputs` before `client`.
    """

    tab: str
    show: Callable[..., tuple[Any, ...]]
    outputs: tuple[gr.components.Component, ...]
    show_pinned: Callable[..., tuple[Any, ...]] | None = None
    inputs: tuple[gr.components.Component, ...] = ()


def status_line(event: Status) -> str:
    """What the page's status line shows once a job has emitted a status (HTML)."""
    return formatting.status_line(event.line() if event.line else event)


def unchanged(outputs: type[Outputs]) -> Outputs:
    """An answer that leaves every output unchanged; `_replace` the fields that change."""
    return outputs(*(gr.skip() for _ in outputs._fields))  # type: ignore[attr-defined]  # of a NamedTuple


def leave_unchanged(error: ValueError) -> Any:
    """An answer to invalid values that leaves every output unchanged; the headline already shows the error."""
    return gr.skip()


def initial_values(answer: Callable[[], Outputs]) -> Outputs:
    """The components' initial values from an answer, as lazy strings; empty where it leaves outputs unchanged."""

    @functools.cache
    def values(_: str) -> Outputs:
        outputs = answer()
        return type(outputs)(*("" if isinstance(value, dict) else value for value in outputs))

    def lazy_value(index: int) -> LazyString:
        return LazyString(lambda: values(language())[index])

    current = values(language())
    return type(current)(*(lazy_value(i) if isinstance(value, str) else value for i, value in enumerate(current)))


def values_of(answer: Mapping[str, Any], outputs: Sequence[str]) -> tuple[Any, ...]:
    """The values of all outputs in their order, from an answer that has those that change.

    Raises ValueError for a name that is no output's.
    """
    if unknown := answer.keys() - set(outputs):
        raise ValueError(f"{', '.join(sorted(unknown))} must be among the outputs {', '.join(outputs)}")
    return tuple(answer.get(name, gr.skip()) for name in outputs)


def spread_settings(
    handler: Callable[..., Any],
    *bound: Any,
    outputs: Sequence[str] | None = None,
    refuse: Callable[[ValueError], Any] | None = None,
) -> Callable[..., Any]:
    """`handler(*bound, request, ...)` as a function with a parameter for each field of `Settings`, then the others.

    Gradio calls it with the value of each control, and its API shows every parameter by name. With `outputs` an answer
    by name becomes a value for each of them; a tuple of one output becomes its value, as gradio expects. The parameter
    `pinned` is parsed into a `Request`, or None if no setting is pinned. For invalid values it returns `refuse(error)`;
    without `refuse` it raises the error, which gradio shows.
    """
    rest = [with_default(parameter) for parameter in parameters_of(handler)[len(bound) + 1 :]]

    def arguments(values: Sequence[Any]) -> tuple[Any, ...]:
        settings = Settings(*values[: len(FIELDS)])
        request = parse(settings._replace(upload=uploaded_path(settings.upload)))
        checks = CHECKS | {"pinned": lambda text: pinned_text.comparable_request(text, request)}
        others = zip(rest, values[len(FIELDS) :], strict=False)
        return *bound, request, *(checks.get(parameter.name, _unchecked)(value) for parameter, value in others)

    def convert(answer: Any) -> Any:
        if outputs is not None and isinstance(answer, Mapping) and "__type__" not in answer:  # which `gr.update` has
            answer = values_of(answer, outputs)
        return answer[0] if isinstance(answer, tuple) and len(answer) == 1 else answer

    return wrap_handler(handler, arguments, [*FIELDS, *rest], convert, refuse)


def only_if_active(tab: str, otherwise: Any, handler: Callable[..., Any], *bound: Any) -> Callable[..., Any]:
    """As `spread_settings`, with the active tab as the last input: the answer is `otherwise` if that is not `tab`.

    So is the answer to invalid values, whose error is the headline (`frame/slider.py`).
    """
    guarded = guard_handler(partial_handler(handler, *bound), "active_tab", tab, otherwise)
    return spread_settings(guarded, refuse=lambda error: otherwise)


def _unchecked(value: Any) -> Any:
    return value
