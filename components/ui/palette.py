"""The colours and dashes of the page. A method has the same colour and dash on every chart.

Charts refer to a colour as `"@name"`. The browser looks the name up in the CSS variables defined here, so that the
server need not redraw figures when the user switches between the light and the dark page.
"""

import json
import re
from typing import Any, NamedTuple


class Colour(NamedTuple):
    """A colour's shades on the light and on the dark page, each with a contrast of at least 4.5:1."""

    light: str
    dark: str


PAGE = Colour("#ffffff", "#101317")

COLOURS: dict[str, Colour] = {
    "dense": Colour("#6b7280", "#9ca3af"),
    "intraslice": Colour("#0072b2", "#56b4e9"),
    "attention": Colour("#1a7ab8", "#9bd0f2"),
    "mlp": Colour("#00436b", "#3f9ddb"),
    "cross": Colour("#b94f00", "#f08a4b"),
    "baseline": Colour("#007a59", "#3fc79a"),
    "other": Colour("#8a4b78", "#d79bc4"),
    "crimson": Colour("#a6173d", "#ff8fa3"),
    "olive": Colour("#6b6200", "#cfc14a"),
    "teal": Colour("#006a75", "#4fc7d6"),
    "indigo": Colour("#4b4fa3", "#a9adf0"),
    "ink": Colour("#1b1f24", "#e6e8eb"),
    "quiet": Colour("#5b6470", "#a2abb6"),
}

# Lines and fills without text or data, which need no minimum contrast.
FAINT: dict[str, Colour] = {
    "page": PAGE,
    "panel": Colour("#f7f8f9", "#171b20"),
    "rule": Colour("#e3e6e9", "#2b3138"),
    "grid": Colour("#eceef0", "#232930"),
    "removed": Colour("#eceef0", "#232930"),  # units on the map, columns of the matrices
    "band": Colour("rgba(0,114,178,0.10)", "rgba(86,180,233,0.16)"),
}

DASHES: dict[str, str] = {  # the others are solid
    "cross": "dash",
    "baseline": "dot",
    "other": "dashdot",
    "crimson": "dash",
    "olive": "dot",
    "teal": "dashdot",
    "indigo": "dash",
}


def css_variables() -> str:
    """The CSS that defines `--isx-NAME` for the light page, and again under `.dark`."""
    everything = {**COLOURS, **FAINT}
    light = "".join(f"--isx-{name}:{colour.light};" for name, colour in everything.items())
    dark = "".join(f"--isx-{name}:{colour.dark};" for name, colour in everything.items())
    return f":root{{{light}}}\n.dark{{{dark}}}\n"


def coloured(node: Any, dark: bool = False) -> Any:
    """A figure with the colours of the light or the dark page instead of their names, as in `assets/chart.js`."""
    shades = {f'"@{name}"': f'"{colour.dark if dark else colour.light}"' for name, colour in (COLOURS | FAINT).items()}
    return json.loads(re.sub(r'"@\w+"', lambda name: shades[name[0]], json.dumps(node)))
