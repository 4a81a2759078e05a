"""The context in which a tab connects its events to the rest of the page, and the options of those events."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gradio as gr

from .. import limits
from ..gradio_compat.browser.on_latest import SILENT, on_latest
from ..gradio_compat.signatures import Handler, is_given_by_gradio
from ..state.session import Session
from ..ui.downloads import Downloads
from ..ui.handlers import ACTIVE_TAB, LiveOutput, spread_settings
from .controls import Controls

# Events that wait for a job. They share one gradio queue, in which each call holds a thread (`max_threads` in
# theme.py); the session's scheduler decides the order of the jobs.
HEAVY: dict[str, Any] = {"concurrency_id": "jobs", "concurrency_limit": limits.MAX_WAITING_CALLS, **SILENT}
# Events that answer in milliseconds, outside of the queue.
CHEAP: dict[str, Any] = {"queue": False, **SILENT}
# Events that are no API endpoint.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "api_name": "step"}
NOW = "() => String(Date.now())"
once = partial(gr.on, trigger_mode="once")  # without what comes while a call runs, such as the second click of two
every = partial(gr.on, trigger_mode="multiple")  # for every event, even while an earlier call runs


def in_browser(js: str, inputs: Any = None, outputs: Any = None) -> dict[str, Any]:
    """Keyword arguments of a listener that runs in the browser alone."""
    return {"fn": None, "inputs": inputs, "outputs": outputs, "js": js, **PRIVATE, **CHEAP}


def tell(signal: gr.Textbox) -> dict[str, Any]:
    """Keyword arguments of a listener that changes a signal."""
    return in_browser(NOW, None, signal)


def signal() -> gr.Textbox:
    """A hidden component that gets a new value, whose event `change` many listeners may share."""
    return gr.Textbox(visible=False)  # not gr.State, which has no change event outside of the queue


@dataclass(frozen=True)
class Context:
    """The components that several tabs share, and the signals to which they listen."""

    session: Session
    controls: Controls
    tabs: gr.Tabs
    tab: gr.Textbox  # the id of the active tab; hidden
    panels: Mapping[str, Any]  # by tab id, for tabs that show another tab's settings
    opened: Mapping[str, gr.Textbox]  # by tab id: signals that the tab is active now, which the server knows
    always: Sequence[LiveOutput]  # updated while the slider is dragged, whichever tab is active
    when_open: Sequence[LiveOutput]  # updated while the slider is dragged, if their tab is active
    status: gr.HTML
    notice: gr.HTML  # of a link that names a model which the page does not load
    texts: Mapping[str, gr.HTML]  # outside of the tabs, that depend on the settings: as `ui/screen.py` draws them
    measure_here: gr.Button  # hidden: a button in the headline clicks it
    prompt: gr.Textbox
    subscribed: list[LiveOutput] = field(default_factory=list)  # updated after some events while their tab is active
    downloads: Downloads = field(default_factory=Downloads)
    refresh: gr.Textbox = field(default_factory=signal)  # has the effect of dragging; for handlers that set controls
    again: gr.Textbox = field(default_factory=signal)  # draw again, and measure unless that runs: no new setting
    prepared: gr.Textbox = field(default_factory=signal)  # loading and calibrating has ended
    measured: gr.Textbox = field(default_factory=signal)  # so has measuring after `prepared` or by a button
    released: gr.Textbox = field(default_factory=signal)  # so has measuring after `on_commit`
    pinned_measured: gr.Textbox = field(default_factory=signal)  # something of the pinned setting is measured

    @property
    def on_commit(self) -> list[Any]:
        """Events that commit a new setting of the slice, such as the release of the slider."""
        return [*self.controls.commits(), self.refresh.change]

    def call(
        self,
        handler: Handler,
        *bound: Any,
        outputs: Mapping[str, Any] | None = None,
        tab: str = "",
        refuse: Callable[[ValueError], Any] | None = None,
        queue: Mapping[str, Any] = CHEAP,
        api_name: str = "",
        **inputs: gr.components.Component,
    ) -> dict[str, Any]:
        """Keyword arguments of a listener that calls `handler(*bound, request, ..., client)`.

        The names of the handler's parameters tell its inputs: `request` stands for all controls, `layer`, `pinned`,
        `prompt` and `active_tab` are the frame's, all others are given as `inputs`. So do the names in its answer and
        `outputs`. With `tab` it is called while that is active. Without `api_name` it is no endpoint.
        """
        names = [*(outputs or ())]
        function = spread_settings(handler, *bound, outputs=names, refuse=refuse, tab=tab)
        controls = self.controls
        components = controls.settings | {"layer": controls.layer, "pinned": controls.pinned, "prompt": self.prompt}
        components |= {ACTIVE_TAB: self.tab, **inputs}
        parameters = inspect.signature(function).parameters.values()
        return {
            "fn": function,
            "inputs": [components[parameter.name] for parameter in parameters if not is_given_by_gradio(parameter)],
            "outputs": [*(outputs or {}).values()],
            **({"api_name": api_name} if api_name else PRIVATE),
            **queue,
        }

    def show(self, live_output: LiveOutput) -> dict[str, Any]:
        """Keyword arguments of a listener that updates a live output while its tab is active."""
        return self.call(live_output.handler, outputs=live_output.outputs, tab=live_output.tab)

    def subscribe(self, live_output: LiveOutput, events: Sequence[Any]) -> None:
        """Update the live output after these events while its tab is active, and when the tab is opened."""
        self.subscribed.append(live_output)
        on_latest([*events, self.prepared.change, self.opened[live_output.tab].change], **self.show(live_output))

    def choose_layer_by(self, *charts: gr.HTML) -> None:
        """Let a click on a layer of the charts set the layer slider."""
        outputs = {"layer": self.controls.layer}
        every([chart.select for chart in charts], **self.call(_clicked_layer, outputs=outputs))


def _clicked_layer(event: gr.EventData) -> int:
    return int(event.layer)
