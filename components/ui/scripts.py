"""The page's scripts: one file for each language, which defines `window.isx`, and which browsers keep.

A file of `assets/` is the body of a function. The scripts of components (`COMPONENTS`) run once for each, with
gradio's `element`, `props`, `watch` and `trigger` in scope.
"""

import json
from collections.abc import Mapping
from typing import Any

from ..assets import ASSETS
from ..i18n.language import for_scripts

DEVICE = ("device/files.js", "device/engine.js", "device/answers.js", "device/panel.js")
LESSON = ("lesson/controls.js", "lesson/answers.js", "lesson/lesson.js")
ROOMS = ("rooms/chart.js", "rooms/room.js", "rooms/record.js", "rooms/panel.js")
FRAME = (
    *("in_order.js", "anatomy.js", "facts.js", "page.js", "history.js", "tried/store.js"),
    *("tour.js", "awake.js", "presenter.js", "keys.js"),
)
COMPONENTS = ("chart", "copy", "overrides", "passage", "tried/panel", "device/compare")


def asset(name: str) -> str:
    """The text of a file of `assets/`."""
    return (ASSETS / name).read_text(encoding="utf-8")


def scoped(*names: str) -> str:
    """Scripts, each in a scope of its own."""
    return "".join(f"(() => {{\n{asset(name)}}})();\n" for name in names)


def shared(data: Mapping[str, Any] | None = None) -> str:
    """What all scripts need: `window.isx` with these data and the language's, and the functions of `isx.js`."""
    data = {"language": for_scripts(), "components": {}, **(data or {})}
    isx = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"window.isx = {isx};\n{scoped('isx.js')}"


def page_script(data: Mapping[str, Any]) -> str:
    """The page's script in the current language."""
    components = (
        f'isx.components["{name}"] = (element, props, watch, trigger) => {{\n{asset(f"{name}.js")}}};\n'
        for name in COMPONENTS
    )
    return "".join((shared(data), scoped(*FRAME, *DEVICE, *LESSON, *ROOMS), *components))


def on_load(name: str) -> str:
    """The script of a component, for `gr.HTML(js_on_load=...)`."""
    return f'isx.components["{name}"](element, props, watch, trigger)'
