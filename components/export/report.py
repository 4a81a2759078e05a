"""The report: one HTML page with the whole current view, which opens offline. Pure; no gradio."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ..i18n.language import gettext, language, translate
from ..state.views import Perplexities, PlanView
from ..ui import formatting
from ..ui.figure import Chart
from ..ui.headline import headline
from ..ui.palette import coloured

STYLE = """
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: INK;
  max-width: 920px; margin: 40px auto; padding: 0 20px; }
h1 { font-size: 24px; } h2 { font-size: 17px; margin: 36px 0 4px; } .isx-quiet, .note { color: QUIET; font-size: 14px; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; margin: 8px 0; }
th { text-align: left; font-weight: 500; color: QUIET; } th, td { padding: 3px 18px 3px 0; }
tbody tr { border-top: 1px solid RULE; } td + td, thead th + th { text-align: right; }
pre { background: PANEL; padding: 12px 14px; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: 13px; } .isx-headline { font-size: 17px; }
details { margin: 4px 0 0; } summary { cursor: pointer; color: QUIET; font-size: 13px; } .plot { width: 100%; }
.scroll { overflow-x: auto; } @media print { details > * { display: block; } }
"""
DRAW = """
for (const plot of document.querySelectorAll(".plot")) {
  const { data, layout } = JSON.parse(plot.previousElementSibling.textContent);
  Plotly.newPlot(plot, data, layout, { displaylogo: false, responsive: true });
}
"""


@dataclass(frozen=True)
class Report:
    """The content of the report. `settings` maps names to values, `code` maps headings to code blocks."""

    title: str
    settings: Mapping[str, Any]
    plan: PlanView
    perplexities: Perplexities
    charts: Sequence[Chart]
    code: Mapping[str, str]


def html(report: Report, plotly: str) -> str:
    """The page as HTML. `plotly` is the source of plotly.js, which is included."""
    plan, perplexities = report.plan, report.perplexities
    style = STYLE
    for name in ("ink", "quiet", "rule", "panel"):
        style = style.replace(name.upper(), coloured(f"@{name}"))
    settings = "".join(_row([name, str(value)]) for name, value in report.settings.items() if value not in (None, ""))
    code = "".join(f"<h2>{escape(name)}</h2><pre>{escape(text)}</pre>" for name, text in report.code.items())
    return (
        f'<!doctype html><html lang="{language()}"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{style}</style><script>{plotly}</script>"
        f"<h1>{escape(report.title)}</h1>{headline(plan, perplexities, gettext('not measured'))}"
        f"{formatting.readout(plan, perplexities)}"
        f'<p class="note">{escape(translate(perplexities.protocol) or gettext("Perplexity was not measured."))}</p>'
        f"{''.join(_chart(chart) for chart in report.charts)}"
        f"<h2>{gettext('Settings')}</h2><table><tbody>{settings}</tbody></table>{code}"
        f"<script>{DRAW}</script></html>"
    )


def _chart(chart: Chart) -> str:
    figure = json.dumps({"data": coloured(chart.data), "layout": coloured(chart.layout)}).replace("</", "<\\/")
    head, rows = _row(chart.columns, "th"), "".join(_row(row) for row in chart.rows)
    table = f'<div class="scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    return (
        f'<h2>{escape(chart.title)}</h2><p class="note">{escape(chart.caption(clickable=False))}</p>'
        f'<script type="application/json">{figure}</script><div class="plot" style="height:420px"></div>'
        f"<details open><summary>{gettext('Data table')}</summary>{table}</details>"
    )


def _row(cells: Iterable[str], tag: str = "td") -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
