"""Links: the settings in the address bar, from which the page is restored; the steps of the lesson are links, too."""

import json
import time
from collections.abc import Mapping
from typing import Any

import gradio as gr

from intraslice.core import checks

from .. import limits
from ..i18n.language import ENGLISH, lazy_gettext, long_text
from ..state.choices import PRECISIONS
from ..state.request import default_precision, parse
from ..state.session import Session
from ..state.settings import CONTROLS, PROMPT, Settings
from ..ui import formatting, pinned_text
from ..ui.handlers import CHECKS
from .controls import AT_FIRST, LAST_LAYER

FIRST_TAB = "ratios"
# Controls that keep their values unless a step of the lesson sets them.
KEPT = (*(name for name, control in CONTROLS.items() if control.calibrates), "layer")


def default_link() -> dict[str, Any]:
    """A link's parameters but the tab, in their order, with their default values, which a link leaves out."""
    return {**Settings()._asdict(), "layer": 0, "prompt": PROMPT, "pinned": ""}


def more_settings() -> dict[str, Any]:
    """Of *More settings*, the values with which the page opens: another one in a link opens them."""
    return {name: value for name, value in read({}).items() if name in Settings._fields and name not in AT_FIRST}


def state_of(step: Any, phase: Any = 0) -> dict[str, str]:
    """The query parameters of a link to the initial state of a lesson's step; empty for an unknown step or phase.

    Steps count from 1, phases from 0: a step that compares several settings has a phase for each.
    """
    for number, content in enumerate(json.loads(long_text("lesson.json", ENGLISH))["steps"], start=1):
        for index, state in enumerate(content["states"]):
            if (str(number), str(index)) == (str(step), str(phase)):
                return {**state, "tab": content["tab"]}
    return {}


def restore(session: Session, caller: gr.Request) -> dict[str, Any]:
    """Read the address bar: settings, pinned setting, layer, prompt and tab of a link.

    Invalid values are replaced by the defaults, with a notice (HTML) of a model or of what was removed; a link that is
    too long is ignored. Every link of the page names the precision, so that other machines show the same numbers. One
    without an estimator means the default of `Settings`; without any setting, the page opens with the chosen one. A
    step of the lesson (`?lesson=3`) stands for its initial state. While a model is unknown, the layer is the link's.
    """
    query: Mapping[str, str] = dict(caller.query_params) if caller else {}
    if sum(len(name) + len(value) for name, value in query.items()) > limits.LINK.value:
        query = {}
    query = {**state_of(query.get("lesson")), **query}
    refused: list[ValueError] = []
    linked, model = read(query, refused), query.get("model", "")
    if not query.keys() & {*Settings._fields}:
        linked["estimator"] = session.opening.settings.estimator
    problems = [error for error in refused if str(error) in checks.RETIRED.values()]
    if model not in ("", linked["model"]):
        text = lazy_gettext(
            "This page does not load the link's model, {model}, and shows the default model instead. To use that "
            "model, start the page on your own computer (`pip install -r requirements.txt && python app.py` in a clone "
            "of its repository) and choose it there.",
            model=checks.quoted(model),
        )
        problems.append(ValueError(text))
    try:
        source = session.source(parse(Settings(**{name: linked[name] for name in Settings._fields})))
    except ValueError:  # settings that are only invalid together
        source = None
    last = len(source.profile.layers) - 1 if source else max(linked["layer"], LAST_LAYER)
    layer = linked["layer"] if linked["layer"] <= last else default_link()["layer"]
    linked["layer"] = layer if last == LAST_LAYER else gr.update(value=layer, maximum=last)
    notice = "".join(map(formatting.problem, problems))
    return linked | {"tabs": gr.Tabs(selected=query.get("tab", FIRST_TAB)), "notice": notice}


def read(query: Mapping[str, str], refused: list[ValueError] | None = None) -> dict[str, Any]:
    """The values of a link's query, without the tab; invalid ones are replaced by the defaults, errors in `refused`."""
    linked = default_link()
    for name, default in linked.items():
        try:
            linked[name] = _checked(name, pinned_text.typed(query.get(name), default), default)
        except ValueError as error:
            if refused is not None:
                refused.append(error)
    linked["dtype"] = linked["dtype"] if linked["dtype"] in PRECISIONS else default_precision()
    linked["prompt"] = linked["prompt"] or PROMPT
    return linked


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value if a link may set it, or else the default. Raises ValueError for an invalid one."""
    control = CONTROLS.get(name)
    if name in CHECKS:
        return CHECKS[name](value)
    if control is None:
        return _pinned(value)
    if control.slider:
        checks.number(name, value, *control.slider)
    parse(Settings()._replace(**{name: value}))
    return value if control.in_link else default


def setting_of(text: Any) -> Settings | None:
    """The setting of a text, as `pinned_text.read` does. Raises UserError also for what no slider can show."""
    settings = pinned_text.read(text)
    for name, control in CONTROLS.items():
        if settings is not None and control.slider:
            checks.number(name, getattr(settings, name), *control.slider)
    return settings


def _pinned(text: str) -> str:
    """The normalised text of a pinned setting; empty if it has an upload. Raises UserError for an invalid setting."""
    settings = setting_of(text)
    if settings is None or settings.upload:
        return ""
    request = parse(settings)
    return pinned_text.write(request.with_settings(dtype=request.calibration.dtype))


def begin_step(event: gr.EventData) -> dict[str, Any]:
    """Values of the settings and the layer for a lesson's step, and a new value of `Context.refresh`."""
    state = state_of(event.step, event.phase)
    if not state:
        return {}
    values = read(state)
    names = [name for name in (*Settings._fields, "layer") if name in state or name not in KEPT]
    return {name: values[name] for name in names} | {"refresh": str(time.time())}
