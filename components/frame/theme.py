"""The theme, the page's script and styles, and gradio's launch options."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import gradio as gr
from starlette.responses import Response
from starlette.routing import Route

from .. import limits
from ..i18n.language import LazyString, language, long_text, translate
from ..ui.chart_bridge import plotly_head
from ..ui.palette import COLOURS, FAINT, css_variables
from ..ui.scripts import asset, page_script
from .link import default_link, more_settings
from .pinning import HISTORY_FIELDS

BLUE = gr.themes.Color(
    *["#f0f7fc", "#dcedf8", "#b8daf0", "#8cc3e5", "#4d9fd0"],
    *["#0072b2", "#00639b", "#005482", "#00436b", "#003352", "#00243b"],
)
SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
STYLES = ("outside.css", "awake.css", "presenter.css", "lesson/lesson.css", "rooms/rooms.css", "device/device.css")
MONO = ["ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace"]
# A version of a file never changes.
KEPT = {"cache-control": "public, max-age=31536000, immutable"}


def theme() -> gr.themes.Base:
    """The theme: one accent colour, thin rules, no shadows, no downloaded fonts."""
    page, rule, ink, quiet = FAINT["page"], FAINT["rule"], COLOURS["ink"], COLOURS["quiet"]
    accent, clear = (BLUE.c500, BLUE.c500), ("transparent", "transparent")
    pairs: dict[str, tuple[str, str]] = {
        **dict.fromkeys(("body_background_fill", "background_fill_primary", "input_background_fill"), page),
        "background_fill_secondary": FAINT["panel"],
        **dict.fromkeys(("block_border_color", "border_color_primary", "input_border_color"), rule),
        "body_text_color": ink,
        **{f"{name}_color": quiet for name in ("block_label_text", "block_title_text", "block_info_text")},
        "body_text_color_subdued": quiet,
        "button_secondary_background_fill": page,
        "button_secondary_border_color": rule,
        "button_secondary_text_color": ink,
        "button_primary_background_fill": accent,
        "button_primary_background_fill_hover": (BLUE.c600, BLUE.c600),
        "button_primary_text_color": ("#ffffff", "#ffffff"),
        "slider_color": COLOURS["intraslice"],
        "color_accent_soft": (BLUE.c50, "#12283a"),
        **dict.fromkeys(("block_background_fill", "block_label_background_fill"), clear),
        **dict.fromkeys(("checkbox_label_background_fill", "checkbox_label_background_fill_selected"), clear),
        **dict.fromkeys(("checkbox_background_color_selected", "checkbox_border_color_selected"), accent),
    }
    values = {name: light for name, (light, _) in pairs.items()}
    values |= {f"{name}_dark": dark for name, (_, dark) in pairs.items()}
    return gr.themes.Base(primary_hue=BLUE, neutral_hue="gray", font=SANS, font_mono=MONO, radius_size="sm").set(
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        button_border_width="1px",
        checkbox_label_border_width="0px",
        checkbox_label_padding="2px 0",
        checkbox_label_shadow="none",
        block_title_text_size="13px",
        block_title_text_weight="400",
        block_info_text_size="12px",
        block_label_text_size="13px",
        **values,
    )


def launch_options(tabs: Mapping[str, str]) -> dict[str, Any]:
    """Keyword arguments for `launch()`, by the tabs' labels. Raises UserError for an invalid limit."""
    limits.require()
    return {
        "theme": theme(),
        "css": css_variables() + asset("page.css"),
        "head": LazyString(lambda: _head(tabs)),
        "footer_links": ["api", "settings"],
        "ssr_mode": False,
        "max_file_size": limits.UPLOAD.value,
        "enable_monitoring": False,  # `/monitoring/summary` shows every client which functions are called how often
        "max_threads": limits.MAX_THREADS,
        "run_history": False,  # writes every move of the slider to the browser's storage
    }


def routes(tabs: Mapping[str, str]) -> list[Route]:
    """The page's script and its styles, of which `launch_options` names this version."""
    return [
        Route("/isx.js", lambda _: Response(script(tabs), headers=KEPT, media_type="text/javascript")),
        Route("/isx.css", lambda _: Response(styles(), headers=KEPT, media_type="text/css")),
    ]


def script(tabs: Mapping[str, str]) -> str:
    """The page's script in the current language, with what it knows of the page."""
    data = {
        "usual": default_link(),
        "more": more_settings(),
        "tabs": {tab: translate(label) for tab, label in tabs.items()},
        "undone": HISTORY_FIELDS,
        "tour": json.loads(long_text("tour.json")),
        "lesson": json.loads(long_text("lesson.json")),
    }
    return page_script(data)


def styles() -> str:
    """Styles that gradio must not confine to its own column."""
    return "".join(map(asset, STYLES))


def _head(tabs: Mapping[str, str]) -> str:
    """The tags that fetch styles, scripts and plotly.js."""
    css, js = (hashlib.sha256(text.encode()).hexdigest()[:12] for text in (styles(), script(tabs)))
    style = f'<link rel="stylesheet" href="isx.css?v={css}">'
    return f'{style}<script src="isx.js?lang={language()}&amp;v={js}"></script>{plotly_head()}'
