"""Links: the settings in the address bar, from which the page is restored."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from intraslice.core import checks

from .. import limits
from ..i18n.language import lazy_gettext
from ..lesson.steps import state_of
from ..state.choices import PRECISIONS
from ..state.request import default_precision, parse
from ..state.session import Session
from ..state.settings import PROMPT, Settings
from ..ui import formatting
from ..ui.handlers import CHECKS
from ..ui.pinned import text as pinned_text
from ..ui.pinned.text import typed
from .controls import LAST_LAYER, SLIDERS


def _record(name: str, fields: Sequence[str]) -> Any:
    """A class of named tuples; typed as Any, since a type checker cannot derive its fields from those of Settings."""
    return namedtuple(name, fields)


# The query parameters of a link except the tab. `assets/page.js` takes their names and order from `default_link`.
Linked = _record("Linked", [*Settings._fields, "layer", "prompt", "pinned"])
Restored = _record("Restored", [*Linked._fields, "tabs", "notice"])
FIRST_TAB = "ratios"


def default_link() -> Any:
    """A `Linked` of the default values, which a link leaves out."""
    return Linked(**Settings()._asdict(), layer=0, prompt=PROMPT, pinned="")


def restore(caller: gr.Request) -> Any:
    """Read the address bar into a `Restored`: settings, pinned setting, layer, prompt and tab of a link.

    Invalid values are replaced by the defaults, a model with a notice (HTML); a link that is too long is ignored.
    A link always names the precision, so that other machines show the same numbers; without a link it is this
    machine's default. A step of the lesson (`?lesson=3`) stands for its initial state.
    """
    query: Mapping[str, str] = dict(caller.query_params) if caller else {}
    if sum(len(name) + len(value) for name, value in query.items()) > limits.LINK.value:
        query = {}
    query = {**state_of(query.get("lesson")), **query}
    linked, model = read(query), query.get("model", "")
    notice = _not_loaded(model) if model not in ("", linked.model) else ""
    return Restored(**linked._asdict(), tabs=gr.Tabs(selected=query.get("tab", FIRST_TAB)), notice=notice)


def restore_existing(session: Session, caller: gr.Request) -> Any:
    """`restore`, without a layer that the model lacks.

    Before a model is calibrated its number of layers is unknown: the layer slider then reaches as far as the link.
    """
    restored = restore(caller)
    try:
        source = session.source(parse(Settings(**{name: getattr(restored, name) for name in Settings._fields})))
    except ValueError:  # settings that are only invalid together
        source = None
    last = len(source.profile.layers) - 1 if source else max(restored.layer, LAST_LAYER)
    layer = restored.layer if restored.layer <= last else default_link().layer
    return restored._replace(layer=layer if last == LAST_LAYER else gr.update(value=layer, maximum=last))


def read(query: Mapping[str, str]) -> Any:
    """A `Linked` of a link's query, without the tab; invalid values are replaced by the defaults."""
    defaults = default_link()._asdict()
    linked = {name: _checked(name, typed(query.get(name), default), default) for name, default in defaults.items()}
    linked["upload"] = None  # a link never names a file
    linked["dtype"] = linked["dtype"] if linked["dtype"] in PRECISIONS else default_precision()
    linked["prompt"] = linked["prompt"] or PROMPT
    return Linked(**linked)


def _checked(name: str, value: Any, default: Any) -> Any:
    """The value if it is valid, or else the default."""
    try:
        if name in CHECKS:
            return CHECKS[name](value)
        if name == "pinned":
            return _pinned(value)
        if name in SLIDERS:
            checks.number(name, value, *SLIDERS[name])
        parse(Settings()._replace(**{name: value}))
    except ValueError:
        return default
    return value


def _not_loaded(model: str) -> str:
    text = lazy_gettext(
        "This page does not load the link's model, {model}, and shows the default model instead. To use that model, "
        "start the page on your own computer (`pip install -r requirements.txt && python app.py` in a clone of its "
        "repository) and choose it there.",
        model=checks.quoted(model),
    )
    return formatting.problem(ValueError(text))


def _pinned(text: str) -> str:
    """The normalised text of a pinned setting; empty if it has an upload. Raises UserError for an invalid setting."""
    settings = pinned_text.read(text)
    if settings is None or settings.upload:
        return ""
    for name, bounds in SLIDERS.items():
        checks.number(name, getattr(settings, name), *bounds)
    request = parse(settings)
    return pinned_text.write(request.with_settings(dtype=request.calibration.dtype))
