"""What happens when someone does something: plain functions from control values to component values.

Each is a generator or function over a `Settings`; `flat` spreads that into named parameters, so that gradio can call it
with one value a control and its API shows every parameter by name. Knows no layout; `session` does the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from components.ratios.charts import importance_chart, ratio_chart
from components.session.settings import PROMPT, Settings, Status
from components.session.views import Perplexities, PlanView
from components.ui import formatting
from components.ui.handlers import Follower, flat, unchanged, visitor_of


class Handlers:
    """The page's actions over one session object. `visitor` is gradio's session hash: one open page."""

    def __init__(self, session) -> None:
        self.session = session

    def restore(self, request: gr.Request) -> list[Any]:
        """Read the address bar: the settings, the layer, the prompt and the tab that a link carries."""
        query: Mapping[str, str] = dict(request.query_params) if request else {}
        wanted = []
        for name, default in Settings()._asdict().items():
            wanted.append(_typed(query.get(name), default) if name != "upload" else None)
        prompt, tab = query.get("prompt") or PROMPT, query.get("tab", "ratios")
        return [*wanted, _typed(query.get("layer"), 0), prompt, gr.Tabs(selected=tab), tab]

    def opening(self, settings: Settings) -> tuple:
        """What `preview` returns for a page that has no visitor yet; empty charts where nothing is known."""
        return tuple("" if isinstance(value, dict) else value for value in self.preview(settings, 0, None))

    def preview(self, settings: Settings, layer: int, request: gr.Request) -> tuple:
        """Ratios, importances and sizes for a setting, from the calibration that is at hand; answers in milliseconds.

        Returns the two charts (JSON), the readout, the first line, asked/removed and the perplexity block (HTML), and
        the bias that the importances found.
        """
        self.session.give_way(visitor_of(request), settings)
        try:
            plan = self.session.plan(settings)
        except ValueError as problem:
            return (gr.skip(), gr.skip(), gr.skip(), formatting.problem(problem), gr.skip(), gr.skip(), gr.skip())
        measured = self.session.perplexities(settings)
        if plan is None:
            return (gr.skip(), gr.skip(), *self._texts(settings, None, measured), gr.skip())
        layer = min(int(layer), len(plan.layers) - 1)
        return (
            ratio_chart(plan, layer).to_json(),
            importance_chart(self.session.importances(settings, layer), layer).to_json(),
            *self._texts(settings, plan, measured),
            round(plan.bias, 2) if settings.bias is None else gr.skip(),
        )

    def moving(self, followers: Sequence[Follower]) -> Callable[..., tuple]:
        """`preview` and what the open tab shows in one answer: a request for each would be slower than a drag."""

        def moved(settings: Settings, layer: int, opened: str, request: gr.Request) -> tuple:
            shown = self.preview(settings, layer, request)
            for tab, show, outputs in followers:
                shown += show(settings, layer, request) if tab == opened else (gr.skip(),) * len(outputs)
            return shown

        return flat(moved)

    def _texts(
        self, settings: Settings, plan: PlanView | None, measured: Perplexities, hint: str = ""
    ) -> tuple[str, str, str, str]:
        if not hint and plan is not None and plan.snapshot:
            hint = "follows when the model is loaded"
        elif not hint:
            hint = "… when you let go" if settings.order == "one-shot" else '… press "Slice as in the paper"'
        return (
            formatting.readout(plan, measured),
            formatting.headline(plan, measured, hint),
            formatting.removed(plan),
            formatting.protocol(settings, measured),
        )

    def look_at(self, tab: str) -> Callable[[gr.Request], str]:
        """What notes that `tab` comes into view; what only another one shows stops."""

        def seen(request: gr.Request) -> str:
            self.session.jobs.look_at(visitor_of(request), tab)
            return tab

        return seen

    def leave(self, request: gr.Request) -> None:
        """Stop all work for a page that was closed."""
        self.session.leave(visitor_of(request))

    def prepare(self, settings: Settings, request: gr.Request) -> Iterator[str]:
        """Load the model and calibrate it (or find both in the cache); yields the status line (HTML)."""
        for event in self.session.prepare(settings, visitor_of(request)):
            yield formatting.status(event)

    def fit_layers(self, settings: Settings) -> dict:
        """Let the layer slider end at the model's last layer."""
        plan = self.session.plan(settings)
        return gr.update(maximum=len(plan.layers) - 1) if plan else gr.skip()

    def measure(self, settings: Settings, layer: int, request: gr.Request) -> Iterator[tuple]:
        """Slice and take the perplexity; yields status, readout, first line, asked/removed, perplexity (HTML).

        With order "one-shot" this follows every release of the slider; with "sequential" only the button starts it.
        """
        told = None
        for event in self.session.measure(settings, visitor_of(request)):
            measured = self.session.perplexities(settings)
            if measured == told and event.kind != "ready":
                yield formatting.status(event), gr.skip(), gr.skip(), gr.skip(), gr.skip()
            else:
                texts = self._texts(settings, self.session.plan(settings), measured, "… (being measured)")
                yield formatting.status(event), *texts
            told = measured

    def measure_live(self, settings: Settings, layer: int, request: gr.Request) -> Iterator[tuple]:
        """`measure`, unless the order is sequential, which only its button may start."""
        yield unchanged(5)  # gradio empties the outputs of a generator that yields nothing
        if settings.order == "one-shot":
            yield from self.measure(settings, layer, request)

    def halt(self, request: gr.Request) -> str:
        """Stop this page's running job: a slice, a measurement or an answer. Returns the status line (HTML)."""
        self.session.halt(visitor_of(request))
        return formatting.status(Status("Stopped.", "ready"))

    def memory(self, model: str) -> str:
        """What the model will need, before it is loaded (HTML)."""
        try:
            return f'<p class="isx-quiet">{formatting.escape(self.session.memory(model))}</p>'
        except ValueError as problem:
            return formatting.problem(problem)


def _typed(text: str | None, default: Any) -> Any:
    if text is None or isinstance(default, str):
        return default if text is None else text
    if isinstance(default, bool):
        return text.lower() == "true"
    try:
        return float(text) if default is None else type(default)(float(text))
    except (ValueError, OverflowError):  # a mistyped link opens the page all the same
        return default
