"""The facts section of the Compare tab: the grid of the questions, and the buttons that ask the models."""

import gradio as gr

from ..frame.context import HEAVY, Context, tell
from ..frame.handlers import stop
from ..gradio_compat.signatures import partial_handler
from ..i18n.language import lazy_gettext
from ..jobs.status import Status
from ..state.choices import FACT_LANGUAGES
from ..state.request import Request
from ..ui.chart_bridge import chart
from ..ui.explainers import fold
from ..ui.handlers import LiveOutput, Updates, leave_unchanged, status_line
from .charts import facts_chart
from .measure import JOB, FactsCache
from .models import Columns

NAMES = {"en": lazy_gettext("English (96)"), "de": lazy_gettext("German (32)")}


class FactsPanel:
    """The section's components, created inside a `gr.Tab`, and the answers that it shows."""

    def __init__(self, columns: Columns) -> None:
        self.cache = FactsCache(columns)
        self.chart = chart(height=200, elem_id="facts-chart")
        with gr.Row(elem_classes="isx-job"):
            options = [(NAMES[language], language) for language in FACT_LANGUAGES]
            self.language = gr.Radio(
                options, value=FACT_LANGUAGES[0], label=lazy_gettext("Questions"), elem_id="facts-language"
            )
            self.measure = gr.Button(lazy_gettext("Ask the models"), size="md", elem_id="facts-measure", min_width=160)
            self.cancel = gr.Button(lazy_gettext("Cancel"), size="md", elem_id="facts-cancel", min_width=70)
        fold("facts")
        self.live_output = LiveOutput("compare", partial_handler(show, self.cache), {"facts": self.chart})


def connect(panel: FactsPanel, context: Context) -> None:
    """Attach the section's handlers; moves of the slider update the grid from what is known."""
    cache, language, shown = panel.cache, panel.language, {"facts": panel.chart}
    outputs = {"status": context.status} | shown
    measured = context.call(measure, cache, outputs=outputs, queue=HEAVY, language=language)
    panel.measure.click(**measured).then(**tell(context.pinned_measured))
    panel.cancel.click(**context.call(stop, context.session, [JOB]))
    language.change(**context.call(choose, cache, outputs=shown, refuse=leave_unchanged, language=language))


def show(cache: FactsCache, request: Request, layer: int, client: str) -> dict[str, str]:
    """The answers that are known at a setting, in the language that the client has chosen: chart (JSON)."""
    language = cache.columns.session.jobs.view_of(client, "language", FACT_LANGUAGES[0])
    return {"facts": facts_chart(cache.view(request, language)).to_json()}


def choose(cache: FactsCache, request: Request, language: str, client: str) -> dict[str, str]:
    """Show the questions in another language: chart (JSON)."""
    cache.columns.session.jobs.set_view(client, language=language)
    return show(cache, request, 0, client)


def measure(cache: FactsCache, request: Request, pinned: Request | None, language: str, client: str) -> Updates:
    """Ask all models of the setting, and the pinned one's; yields status (HTML) and chart (JSON)."""
    for event in cache.measure(request, pinned, language, client):
        yield {"status": status_line(event)} if isinstance(event, Status) else {"facts": facts_chart(event).to_json()}
