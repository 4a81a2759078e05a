"""HTML documents that need no server: the one-file page, the articles of a site, and the report of a view. Pure.

All have the same frame (`assets/published/frame.html`) and script (`page.js`), which shows the step that the slider
chooses. A report is a document with a single step, and no slider.
"""

import base64
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from string import Template
from typing import Any

from intraslice.core.errors import UserError

from ..activations.charts import MEASURES, TITLES, shift_chart
from ..activations.charts import protocol as shift_protocol
from ..compare.charts import facts_chart
from ..compare.html import answer, passage
from ..compare.views import COLUMNS
from ..i18n.language import ENGLISH, gettext, language, lazy_gettext, long_text, number, percentage, translate
from ..ratios.anatomy_charts import map_chart
from ..ratios.charts import ratio_chart
from ..spectra.charts import variance_chart
from ..state.views import Perplexities, PlanView
from ..sweep.charts import removed_chart
from ..ui import figure, formatting
from ..ui.chart_bridge import PLOTLY, template
from ..ui.figure import Chart, Json
from ..ui.labels import ESTIMATORS, METHODS
from ..ui.palette import css_variables
from ..ui.screen import headline
from ..ui.scripts import asset, scoped, shared
from .views import Published, Step

MAX_BYTES = 8_000_000  # a larger file does not suit a blog
HEIGHTS = {"anatomy": 480, "ratios": 400, "spectra": 400, "shift": 540, "facts": 200, "sweep": 440}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src 'unsafe-inline'"
# A site loads plotly.js, WebAssembly and models from its own folder.
SITE_POLICY = f"{POLICY} 'self' 'wasm-unsafe-eval' blob:; worker-src blob:; connect-src 'self' blob: data:"
MIN_CHARACTERS = 24  # shorter parts of the content are not worth a reference
REFERENCE = "$"  # {"$": 7} refers to the eighth part; no key of a chart has this name
NOTHING_REMOVED = lazy_gettext("Nothing is removed, so nothing shifts.")


def embed(name: str) -> str:
    """The line of HTML that embeds the one-file page in another page."""
    name = escape(name)
    title = gettext("The cost of slicing {name}", name=name)
    return f'<iframe src="{name}.html" title="{title}" width="100%" height="900"></iframe>'


def page(published: Published) -> str:
    """The one-file page. Raises UserError if it exceeds `MAX_BYTES`."""
    command = published.command if language() == ENGLISH else f"{published.command} --language {language()}"
    text = document(article("published.html", published, command=escape(command)), content(published), "page")
    if (size := len(text.encode())) > MAX_BYTES:
        raise UserError(
            "The page is {size:.1f} MB; expected at most {limit:.0f} MB. Run `python -m intraslice publish` with fewer "
            "values of --sparsities.",
            size=size / 1e6,
            limit=MAX_BYTES / 1e6,
        )
    return text


def report(
    title: str,
    settings: Mapping[str, Any],
    plan: PlanView,
    perplexities: Perplexities,
    charts: Sequence[Chart],
    code: Mapping[str, str],
) -> str:
    """A view as a document that opens offline. `settings` maps names to values, `code` maps headings to code blocks."""
    rows = [(escape(name), escape(str(value))) for name, value in settings.items() if value not in (None, "")]
    blocks = "".join(f"<h2>{escape(name)}</h2><pre>{escape(text)}</pre>" for name, text in code.items())
    protocol = escape(translate(perplexities.protocol) or gettext("Perplexity was not measured."))
    before = (
        f"<h1>{escape(title)}</h1>{headline(plan, perplexities, gettext('not measured'))}"
        f'{formatting.readout(plan, perplexities)}<p class="isx-quiet">{protocol}</p>'
    )
    after = f"<h2>{gettext('Settings')}</h2>{formatting.table((), rows)}{blocks}"
    return chart_page(charts, before, after)


def chart_page(charts: Sequence[Chart], before: str, after: str = "", table: bool = True) -> str:
    """A document of charts that opens offline, between two pieces of HTML; `table` opens the data tables."""
    shown = {f"chart-{index}": replace(chart, hint="", layers=0, picks=()) for index, chart in enumerate(charts)}
    cards = "".join(
        f'<section id="{place}" class="isx-card">{_filled(chart, table)}</section>' for place, chart in shown.items()
    )
    drawn = {place: [chart.plain()] for place, chart in shown.items()}
    content: Json = {"first": 0, "layer": charts[0].selected, "steps": [{"parts": {}}], "charts": drawn}
    return document(f"<main>{before}{cards}{after}</main>", content, "report")


def _filled(chart: Chart, table: bool) -> str:
    """A chart's HTML with its texts and its table, which can be read without a script, too."""

    def row(cells: Sequence[str], tag: str) -> str:
        return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"

    parts = {
        "title": escape(chart.title),
        "note": escape(chart.caption()),
        "head": row(chart.columns, "th"),
        "rows": "".join(row(cells, "td") for cells in chart.rows),
    }
    html = template(420, table)
    for name, text in parts.items():
        html = html.replace(f'class="isx-{name}">', f'class="isx-{name}">{text}')
    return html


def document(article: str, content: Json, kind: str, style: str = "", scripts: str = "") -> str:
    """A whole file: an article in the frame, with the content that its charts and numbers come from.

    The `kind` is "page", "report" or "site", which has plotly.js and models in files of their own. `style` comes after
    the CSS of all documents, `scripts` before their JavaScript.
    """
    is_site = kind == "site"
    return Template(asset("published/frame.html")).substitute(
        kind=kind,
        language=language(),
        policy=SITE_POLICY if is_site else POLICY,
        title=article.partition("<h1>")[2].partition("</h1>")[0],
        style=css_variables() + asset("page.css") + asset("published/page.css") + style,
        article=article,
        shared=shared() + scoped("anatomy.js", "facts.js"),
        plotly=f'<script src="{PLOTLY.name}"></script>'
        if is_site
        else f"<script>{PLOTLY.read_text(encoding='utf-8')}</script>",
        chart=asset("chart.js"),
        content=pack(content),
        script=scripts + asset("published/page.js"),
    )


def pack(content: Json) -> str:
    """JSON as base64 of a gzip; `unpacked` of `page.js` reverses it. Raises ValueError for numbers that JSON lacks.

    It has a line for each part that is long enough, with references to earlier ones, and a last one for the whole.
    Equal parts are stored once: neighbouring steps have most curves and rows in common.
    """
    lines: dict[str, int] = {}

    def with_references(node: Any) -> Any:
        if isinstance(node, dict):
            node = {key: with_references(value) for key, value in node.items()}
        elif isinstance(node, (list, tuple)):
            node = [with_references(value) for value in node]
        elif not isinstance(node, str):
            return node
        text = json.dumps(node, separators=(",", ":"), allow_nan=False)
        return node if len(text) < MIN_CHARACTERS else {REFERENCE: lines.setdefault(text, len(lines))}

    whole = json.dumps(with_references(content), allow_nan=False)
    return base64.b64encode(gzip.compress("\n".join([*lines, whole]).encode(), 9, mtime=0)).decode()


def article(file: str, published: Published, **texts: str) -> str:
    """A long text with the numbers of the step that it opens with; `texts` are for the places that it alone has."""
    first, dense = published.steps[published.first], published.steps[0].perplexities.values[0]
    percents = published.choice.percents
    return Template(long_text(file)).substitute(
        texts,
        name=escape(published.name),
        last=len(published.steps) - 1,
        first=published.first,
        headline=headline(first.plan, first.perplexities),
        parameters=formatting.millions(first.plan.parameters_dense),
        dense=gettext("unknown") if dense is None else number(dense, ".1f"),
        ends=gettext("{first:g} to {last:g}%", first=percents[0], last=percents[-1]),
        layers=_options(gettext("Layer {layer}", layer=layer) for layer in range(len(first.plan.layers))),
        prompts=_options(published.choice.prompts),
        protocol=_protocol(published),
        **{f"{place}_chart": template(height) for place, height in HEIGHTS.items()},
    )


def content(published: Published) -> Json:
    """What the script shows: the steps' texts, and the charts by place and step, the spectra also by layer."""
    limits = shift_axis_limits(published.steps)
    hint = gettext("Click a layer.")
    charts = {
        "anatomy": [replace(map_chart(step.anatomy), hint=hint).plain() for step in published.steps],
        "ratios": [ratio_chart(step.plan).plain() for step in published.steps],
        "spectra": [[variance_chart(view).plain() for view in step.spectra] for step in published.steps],
        "shift": [_shift(step, limits).plain() for step in published.steps],
        "facts": [replace(facts_chart(step.facts), protocol="").plain() for step in published.steps],
        "sweep": [_sweep(published, step).plain() for step in published.steps],
    }
    layer = len(published.steps[0].spectra) // 2
    return {"first": published.first, "layer": layer, "steps": list(map(_texts, published.steps)), "charts": charts}


def _shift(step: Step, axis_limits: Sequence[float]) -> Chart:
    """The shift with fixed axes, so that the steps of the slider can be compared."""
    if step.shift is None:
        return figure.waiting(TITLES["shift"](0), translate(NOTHING_REMOVED))
    chart = shift_chart(step.shift)
    error, cosine, distance = axis_limits
    for axis, limits in {"yaxis": [0, error], "yaxis2": [cosine, 1], "yaxis3": [0, distance]}.items():
        chart.layout[axis]["range"] = limits
    return chart


def shift_axis_limits(steps: Sequence[Step]) -> list[float]:
    """Axis limits of the shift chart that fit all steps: largest error, lowest cosine, largest distance."""
    methods = [method for step in steps if step.shift for method in step.shift.methods.values()]
    limits = []
    for measure in MEASURES:
        values = [getattr(shift, measure) for method in methods for shift in method.places["residual"]]
        values = [value for value in values if math.isfinite(value)]
        limit = 1 - 1.05 * (1 - min(values, default=0.0)) if measure == "cosine" else 1.05 * max(values, default=1.0)
        limits.append(figure.rounded(limit))
    return limits


def _sweep(published: Published, step: Step) -> Chart:
    """The perplexities of all steps, with a vertical line at the slider's position."""
    chart = removed_chart(published.sweep)
    removed, place = figure.rounded(step.plan.removed), ("y domain", 1)
    chart.layout["shapes"].append(figure.upright(1, removed, {"color": "@ink", "width": 1.4, "dash": "5px,3px"}))
    label = figure.annotation(percentage(step.percent), ("x", removed), place, ("left", "top"), "@quiet", 12)
    chart.layout["annotations"].append(label)
    points = len(published.sweep.points)
    return replace(
        chart,
        note=gettext("{points} sliced models; the vertical line marks the slider's setting.", points=points),
        hint=gettext("Click a point to move the slider there."),
        protocol="",
    )


def _texts(step: Step) -> Json:
    """A step's parts (HTML, by the element's id), its answers by prompt (HTML), and how the slider is read out."""
    parts = {
        "headline": headline(step.plan, step.perplexities),
        "removed": formatting.removed(step.plan),
        "numbers": _table(step),
    }
    perplexity = formatting.with_error(step.perplexities.sliced)
    return {
        "percent": step.percent,
        "parts": parts | ({"tokens": passage(step.passage, step.percent)} if step.passage else {}),
        "answers": ["".join(answer(name, texts[name], step.percent) for name in COLUMNS) for texts in step.answers],
        "said": gettext("{percent:g}%, perplexity {perplexity}", percent=step.percent, perplexity=perplexity),
    }


def _table(step: Step) -> str:
    """The sizes and perplexities of each model."""
    measured = step.perplexities
    readings = measured.dense, measured.sliced, step.cross
    costs = [step.costs.columns.get(name) for name in COLUMNS]
    rows = [
        (gettext("Parameters"), *(formatting.millions(cost.parameters) if cost else "–" for cost in costs)),
        (gettext("Layer parameters removed"), *(number(cost.removed, ".1%") if cost else "–" for cost in costs)),
        (gettext("KV cache per token"), *(formatting.size(cost.kv) if cost else "–" for cost in costs)),
        (gettext("Perplexity"), *map(formatting.with_error, readings)),
        (gettext("Perplexity relative to dense"), "", *map(formatting.with_error, (measured.ratio, step.cross_ratio))),
    ]
    problems = (f'<p class="isx-quiet">{escape(translate(text))}</p>' for text in step.costs.problems.values())
    return formatting.table([METHODS[name] for name in COLUMNS], rows) + "".join(problems)


def _protocol(published: Published) -> str:
    """How everything was measured, one line per topic (HTML)."""
    shift = next((step.shift for step in published.steps if step.shift), None)
    plan, protocol = published.steps[0].plan, published.steps[0].perplexities.protocol
    lines = {
        gettext("Model"): f"{published.source}.",
        gettext("Perplexity"): gettext("{protocol} ± denotes one standard error.", protocol=protocol),
        gettext("Ratios"): gettext(
            "Estimator: {estimator}; no module loses more than {cap:.0%}. Ratios and spectra come from the "
            "same calibration.",
            estimator=ESTIMATORS[plan.estimator],
            cap=plan.cap,
        ),
        gettext("Activations"): shift_protocol(shift) if shift else gettext("Not measured."),
        gettext("Answers"): gettext(
            "Greedy decoding (always the most likely token), at most {tokens} tokens; a single prompt is not a "
            "measurement.",
            tokens=published.choice.tokens,
        ),
    }
    return "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in lines.items())


def _options(names: Iterable[str]) -> str:
    return "".join(f'<option value="{index}">{escape(name)}</option>' for index, name in enumerate(names))
