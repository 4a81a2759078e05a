"""The leaderboard below the sweep: a model and a text, and the charts of their cells."""

from functools import partial
from typing import Any

import gradio as gr

from ...frame.context import Context
from ...gradio_compat.browser.on_latest import on_latest
from ...i18n.language import LazyString, gettext, lazy_gettext
from ...state import leaderboard, task_scores
from ...ui.chart_bridge import chart
from ...ui.explainers import fold, lazy_html
from . import charts


def build() -> dict[str, Any]:
    """The section's components by name, without charts until the tab is opened; none if no cell is measured."""
    cells = leaderboard.cells()
    if not cells:
        return {}
    models = list(dict.fromkeys((cell.model_name, cell.model) for cell in cells))
    texts = list(dict.fromkeys(cell.text for cell in cells))
    lazy_html(_heading)
    with gr.Row(elem_id="leaderboard-choice"):
        model = gr.Dropdown(models, value=models[0][1], label=lazy_gettext("Model"), elem_id="leaderboard-model")
        labelled = [(LazyString(partial(charts.TEXTS.__getitem__, text)), text) for text in texts]
        text = gr.Dropdown(
            labelled, value=leaderboard.WIKIPEDIA, label=lazy_gettext("Text"), elem_id="leaderboard-text"
        )
    by_sparsity = chart(height=440, elem_id="leaderboard-chart", table=True)
    by_accuracy = chart(height=440, elem_id="leaderboard-accuracy-chart", table=True)
    by_speed = chart(height=400, elem_id="leaderboard-speed-chart", table=True)
    by_size = chart(height=400, elem_id="leaderboard-size-chart")
    fold("leaderboard")
    drawn = {"by_sparsity": by_sparsity, "by_accuracy": by_accuracy, "by_speed": by_speed, "by_size": by_size}
    return {"model": model, "text": text, **drawn}


def show(model: str, text: str) -> dict[str, str]:
    """The charts of a model and a text (JSON); empty where nothing is measured."""
    on_text = [cell for cell in leaderboard.cells() if cell.text == text]
    of_model = [cell for cell in on_text if cell.model == model]
    scores = task_scores.comparable(task_scores.scores(), model)
    drawn = {
        "by_sparsity": charts.sparsity_chart(of_model) if of_model else None,
        "by_accuracy": charts.accuracy_chart(of_model, scores),
        "by_speed": charts.speed_chart(leaderboard.timings(model), scores),
        "by_size": charts.size_chart(on_text),
    }
    return {name: chart.to_json() if chart else "" for name, chart in drawn.items()}


def connect(context: Context, model: gr.Dropdown, text: gr.Dropdown, **charts: gr.HTML) -> None:
    """Attach the section's handlers. Called inside the `gr.Blocks()` that holds the components."""
    events = [model.change, text.change, context.opened["sweep"].change]
    on_latest(events, **context.call(show, outputs=charts, model=model, text=text))


def _heading() -> str:
    lead = gettext(
        "Up to seven methods at about equal parameters, on several models and texts: measured in advance, and stored "
        "with the page."
    )
    return f'<h2>{gettext("Leaderboard")}</h2><p class="isx-lead">{lead}</p>'
