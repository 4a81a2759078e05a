"""Converts the values that gradio passes into a handler's arguments, and a handler's answers into outputs.

A handler is `handler(*bound, request, other inputs ..., client)`: `bound` are objects such as the session, `request`
the validated values of the page's controls, `client` the id of the open page. It returns one value, or a dictionary
with the outputs that change, by name.

All values from outside are validated here, once: those of the controls by `state/request.py`, other inputs by their
names, an upload by its folder.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import gradio as gr

from intraslice.core import checks

from .. import limits
from ..gradio_compat.inputs import uploaded_path
from ..gradio_compat.signatures import Handler, is_given_by_gradio, parameters_of, with_default, wrap_handler
from ..i18n.language import LazyString, language
from ..state.choices import FACT_LANGUAGES
from ..state.request import Request, parse
from ..state.settings import Settings, model_name
from . import pinned_text
from .formatting import status_line as status_line

Upload = gr.FileData | None  # as programs pass it
Updates = Iterator[dict[str, Any]]  # a handler's answers while its job runs, each with the outputs that change
REQUEST = "request"  # the parameter that the values of the controls are converted for
ACTIVE_TAB = "active_tab"
YOUNGER = Settings._fields[-1:]  # settings that endpoints did not always have
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
    "language": lambda value: checks.one_of("Language", value, FACT_LANGUAGES),
    "speed": lambda value: checks.flag("speed", value),
}


@dataclass(frozen=True)
class LiveOutput:
    """Outputs of a tab that are updated after every move: `handler(request, layer, client)` answers in milliseconds.

    `for_pinned` does the same for the pinned setting, if another function is needed. A handler may have further
    parameters before `client`: those of `Context.call`.
    """

    tab: str
    handler: Handler
    outputs: Mapping[str, Any]
    for_pinned: Handler | None = None

    @property
    def named(self) -> dict[str, Any]:
        """The outputs by names that are unique on the page."""
        return {f"{self.tab} {name}": output for name, output in self.outputs.items()}

    def show(self, *arguments: Any) -> dict[str, Any]:
        """The handler's answer, by these names."""
        return {f"{self.tab} {name}": value for name, value in self.handler(*arguments).items()}


def leave_unchanged(error: ValueError) -> dict[str, Any]:
    """An answer to invalid values that leaves every output unchanged; the headline already shows the error."""
    return {}


def initial_values(answer: Callable[[], Mapping[str, Any]]) -> Callable[[str], Any]:
    """The components' initial values from an answer, by name: lazy strings; empty where it has none."""

    @functools.cache
    def values(_: str) -> Mapping[str, Any]:
        return answer()

    def value(name: str) -> Any:
        current = values(language()).get(name, "")
        return LazyString(lambda: values(language()).get(name, "")) if isinstance(current, str) else current

    return value


def spread_settings(
    handler: Handler,
    *bound: Any,
    outputs: Sequence[str] | None = None,
    refuse: Callable[[ValueError], Any] | None = None,
    tab: str = "",
) -> Handler:
    """`handler(*bound, request, ...)` as a function with a parameter for each field of `Settings`, then the others.

    Those of `YOUNGER` come last, so that positional calls stay valid. Gradio calls it with the value of each control,
    and its API shows every parameter by name. With `outputs` an answer becomes a value for each of them, or that of a
    single one. The parameter `pinned` is parsed into a `Request`, or None if no setting is pinned. One whose type is a
    `NamedTuple` becomes a parameter for each of its fields. For invalid values it returns `refuse(error)`; without
    `refuse` it raises the error, which gradio shows. A handler without a parameter `request` takes no settings.

    With `tab` it has one more input, the active tab: another one leaves the outputs unchanged. So do invalid values,
    whose error is the headline (`frame/handlers.py`).
    """
    parameters = parameters_of(handler)[len(bound) :]
    fields, last = [], []
    if parameters and parameters[0].name == REQUEST:
        fields, parameters = _spread(_parameter(REQUEST, Settings, Settings()), upload=Upload), parameters[1:]
        fields, last = fields[: -len(YOUNGER)], fields[-len(YOUNGER) :]
    rest = [with_default(parameter) for before in parameters for parameter in _spread(before)]
    if tab:
        last.append(_parameter(ACTIVE_TAB, str, ""))
        refuse = leave_unchanged
    inputs = sum(not is_given_by_gradio(parameter) for parameter in rest)
    rest[inputs:inputs] = last
    names = [parameter.name for parameter in rest]

    def arguments(values: Sequence[Any]) -> tuple[Any, ...]:
        others = dict(zip(names, values[len(fields) :], strict=False))
        if tab and others.pop(ACTIVE_TAB) != tab:
            raise ValueError("not the active tab")
        checks, requests = dict(CHECKS), list[Request]()
        if fields:
            settings = Settings(*values[: len(fields)], *(others.pop(name) for name in YOUNGER))
            request = parse(settings._replace(upload=uploaded_path(settings.upload)))
            checks["pinned"] = lambda text: pinned_text.comparable_request(text, request)
            requests.append(request)
        checked = {name: checks[name](value) if name in checks else value for name, value in others.items()}
        return *bound, *requests, *(_gathered(parameter, checked) for parameter in parameters)

    def convert(answer: Any) -> Any:
        if outputs is not None and isinstance(answer, Mapping) and "__type__" not in answer:  # which `gr.update` has
            if unknown := answer.keys() - set(outputs):
                raise ValueError(f"{', '.join(sorted(unknown))} must be among the outputs {', '.join(outputs)}")
            answer = tuple(answer.get(name, gr.skip()) for name in outputs)
        return answer[0] if isinstance(answer, tuple) and len(answer) == 1 else answer

    return wrap_handler(handler, arguments, [*fields, *rest], convert, refuse)


def _spread(parameter: inspect.Parameter, **types: Any) -> list[inspect.Parameter]:
    """A parameter for each field of a `NamedTuple`, some with other `types`, or else the parameter; with defaults."""
    kind, default = parameter.annotation, parameter.default
    if not hasattr(kind, "_fields"):
        return [parameter]
    defaults = {} if default is parameter.empty else default._asdict()
    return [_parameter(name, hint, defaults.get(name)) for name, hint in (get_type_hints(kind) | types).items()]


def _gathered(parameter: inspect.Parameter, values: Mapping[str, Any]) -> Any:
    """A parameter's value from those of the parameters that it became."""
    kind, fields = parameter.annotation, getattr(parameter.annotation, "_fields", None)
    return kind(*(values[name] for name in fields)) if fields else values[parameter.name]


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=default)
