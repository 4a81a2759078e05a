"""The published file: one HTML page that includes its data, its script and plotly.js. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from string import Template
from typing import Any

from ...activations.charts import protocol as shift_protocol
from ...assets import ASSETS
from ...compare.html import answer, passage
from ...compare.views import COLUMNS
from ...i18n.language import ENGLISH, for_scripts, gettext, language, lazy_gettext, long_text, number, translate
from ...ui import formatting
from ...ui.chart_bridge import PLOTLY, template
from ...ui.headline import headline
from ...ui.labels import ESTIMATORS
from ...ui.palette import css_variables
from . import charts
from .pack import pack
from .views import Published, Step

MAX_BYTES = 8_000_000  # a larger file does not suit a blog
HEIGHTS = {"ratios": 400, "spectra": 400, "shift": 540, "sweep": 440}


def embed(name: str) -> str:
    """The line of HTML that embeds the file in another page."""
    name = escape(name)
    title = gettext("The cost of slicing {name}", name=name)
    return f'<iframe src="{name}.html" title="{title}" width="100%" height="900"></iframe>'


def page(published: Published) -> str:
    """The whole file. Raises ValueError if it exceeds `MAX_BYTES`."""
    command = published.command if language() == ENGLISH else f"{published.command} --language {language()}"
    text = fill("published.html", published, plotly=PLOTLY.read_text(encoding="utf-8"), command=escape(command))
    if (size := len(text.encode())) > MAX_BYTES:
        raise ValueError(
            lazy_gettext(
                "The page is {size:.1f} MB; expected at most {limit:.0f} MB. Run `python -m intraslice publish` with "
                "fewer values of --sparsities.",
                size=size / 1e6,
                limit=MAX_BYTES / 1e6,
            )
        )
    return text


def fill(
    template_name: str, published: Published, scripts: str = "", content: Mapping[str, Any] | None = None, **texts: str
) -> str:
    """A long text with everything that was measured in its places.

    Args:
        scripts: what stands before the page's own script.
        content: what the scripts read beside the steps and their charts.
        texts: for the places that only this text has.
    """
    first, dense = published.steps[published.first], published.steps[0].perplexities
    content = {
        **(content or {}),
        "first": published.first,
        "steps": [_numbers(step) for step in published.steps],
        "charts": _charts(published),
    }
    return Template(long_text(template_name)).substitute(
        texts,
        name=escape(published.name),
        style=css_variables() + (ASSETS / "page.css").read_text(encoding="utf-8") + _asset("page.css"),
        words=f"window.isxLanguage = {json.dumps(for_scripts())};{(ASSETS / 'words.js').read_text(encoding='utf-8')}",
        chart=(ASSETS / "chart.js").read_text(encoding="utf-8"),
        script=scripts + _asset("page.js"),
        content=pack(content),
        last=len(published.steps) - 1,
        first=published.first,
        headline=headline(first.plan, first.perplexities),
        parameters=formatting.millions(first.plan.parameters_dense),
        dense=gettext("unknown") if dense.dense is None else number(dense.dense.value, ".1f"),
        ends=gettext("{first:g} to {last:g}%", first=published.choice.percents[0], last=published.choice.percents[-1]),
        layers=_options(gettext("Layer {layer}", layer=layer) for layer in range(len(first.plan.layers))),
        prompts=_options(published.choice.prompts),
        protocol=_protocol(published),
        **{f"{place}_chart": template(height) for place, height in HEIGHTS.items()},
    )


def _asset(name: str) -> str:
    return (ASSETS / "published" / name).read_text(encoding="utf-8")


def _charts(published: Published) -> dict[str, list[Any]]:
    """Charts by place and step; the spectra by step and layer."""
    axis_limits = charts.shift_axis_limits(published.steps)
    by_step = [charts.charts(published, step, axis_limits) for step in published.steps]
    by_place: dict[str, list[Any]] = {place: [step[place].plain() for step in by_step] for place in by_step[0]}
    by_place["spectra"] = [[chart.plain() for chart in charts.spectra(step)] for step in published.steps]
    return by_place


def _numbers(step: Step) -> dict[str, Any]:
    """A step's content except its charts (HTML); the answers by prompt."""
    return {
        "percent": step.percent,
        "headline": headline(step.plan, step.perplexities),
        "removed": formatting.removed(step.plan),
        "said": gettext(
            "{percent:g}%, perplexity {perplexity}",
            percent=step.percent,
            perplexity=formatting.with_error(step.perplexities.sliced),
        ),
        "table": _table(step),
        "tokens": passage(step.passage) if step.passage else "",
        "answers": [
            "".join(answer(name, by_column[name], step.percent) for name in COLUMNS) for by_column in step.answers
        ],
    }


def _table(step: Step) -> str:
    """The sizes and perplexities of each model."""
    perplexities = step.perplexities
    readings = {
        "dense": (perplexities.dense, None),
        "intraslice": (perplexities.sliced, perplexities.ratio),
        "crossmodule": (step.cross, step.cross_ratio),
    }
    costs = [step.costs.columns.get(name) for name in COLUMNS]
    rows = [
        (gettext("Parameters"), *(formatting.millions(cost.parameters) if cost else "–" for cost in costs)),
        (gettext("Layer parameters removed"), *(number(cost.removed, ".1%") if cost else "–" for cost in costs)),
        (gettext("KV cache per token"), *(formatting.size(cost.kv) if cost else "–" for cost in costs)),
        (gettext("Perplexity"), *(formatting.with_error(readings[name][0]) for name in COLUMNS)),
        (
            gettext("Perplexity relative to dense"),
            "",
            *(formatting.with_error(readings[name][1]) for name in list(COLUMNS)[1:]),
        ),
    ]
    problems = "".join(
        f'<p class="isx-quiet">{escape(translate(problem))}</p>' for problem in step.costs.problems.values()
    )
    return formatting.table(list(COLUMNS.values()), rows) + problems


def _protocol(published: Published) -> str:
    """How everything was measured, one line per topic."""
    shift = next((step.shift for step in published.steps if step.shift), None)
    first = published.steps[0]
    lines = {
        gettext("Model"): f"{published.source}.",
        gettext("Perplexity"): gettext("{protocol} ± denotes one standard error.", protocol=published.protocol),
        gettext("Ratios"): gettext(
            "Estimator: {estimator}; no module loses more than {cap:.0%}. Ratios and spectra come from the "
            "same calibration.",
            estimator=ESTIMATORS[first.plan.estimator],
            cap=first.plan.cap,
        ),
        gettext("Activations"): shift_protocol(shift) if shift else gettext("Not measured."),
        gettext("Answers"): gettext(
            "Greedy decoding (always the most likely token), at most {tokens} tokens; a single prompt is not a "
            "measurement.",
            tokens=published.choice.tokens,
        ),
    }
    return "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in lines.items())


def _options(names: Any) -> str:
    return "".join(f'<option value="{index}">{escape(name)}</option>' for index, name in enumerate(names))
