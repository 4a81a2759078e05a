"""The context in which a tab connects its events to the rest of the page, and the options of those events."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gradio as gr

from .. import limits
from ..gradio_compat.browser.on_latest import SILENT, on_latest
from ..gradio_compat.signatures import guard_handler, is_given_by_gradio, partial_handler
from ..state.session import Session
from ..state.settings import Settings
from ..ui.downloads import Downloads
from ..ui.handlers import LiveOutput, leave_unchanged, only_if_active, spread_settings, unchanged
from .controls import Controls

# Events that wait for a job. They share one gradio queue, in which each call holds a thread (`max_threads` in
# theme.py); the session's scheduler decides the order of the jobs.
HEAVY: dict[str, Any] = {"concurrency_id": "jobs", "concurrency_limit": limits.MAX_WAITING_CALLS, **SILENT}
# Events that answer in milliseconds, outside of the queue.
CHEAP: dict[str, Any] = {"queue": False, **SILENT}
# Events that are no API endpoint.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "api_name": "step"}


class Context(NamedTuple):
    """The frame's components, and the events to which tabs attach handlers.

    The methods' outputs are NamedTuples of components; handlers return the same NamedTuple class. Handlers take
    `(*bound, request, layer, client)`, or `(*bound, request, layer, pinned, client)`.
    """

    session: Session
    controls: Controls
    status: gr.HTML
    tab: gr.Textbox  # the id of the active tab
    prompt: gr.Textbox
    refresh: gr.Textbox  # a new value has the effect of dragging; for handlers that set controls
    downloads: Downloads
    opened: dict[str, gr.events.Dependency]  # by tab id: the end of the event that opens it
    prepared: list[gr.events.Dependency]  # ends of loading and calibrating; filled by `events.connect`
    measured: list[gr.events.Dependency]  # ends of slicing and measuring after `prepared` or by a button
    released: list[gr.events.Dependency]  # ends of slicing and measuring after `on_commit`
    live_outputs: list[LiveOutput]  # with charts that show the pinned setting as an overlay
    pinned_measured: list[gr.events.Dependency]  # ends of measuring the pinned setting; filled by the tabs
    panels: Mapping[str, Any]  # by tab id, for tabs that show another tab's settings

    @property
    def on_commit(self) -> list[Any]:
        """Events that commit a new setting of the slice, such as the release of the slider.

        Without the checkbox that refines MLPs: that only takes effect when a button slices.
        """
        controls = self.controls
        outside_sweeps = [controls.sparsity.release, controls.estimator.input, controls.locked.change]
        return [*outside_sweeps, *self.on_options_commit]

    @property
    def on_options_commit(self) -> list[Any]:
        """Events that commit options shared by all slices of a sweep: bias, cap, shapes, order and recovery."""
        controls = self.controls
        return [
            controls.bias_slider.release,
            controls.cap.release,
            controls.shapes.input,
            controls.order.input,
            controls.recovery.input,
            self.refresh.change,
        ]

    def call(
        self,
        handler: Callable[..., Any],
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
        if tab:
            handler, bound = guard_handler(partial_handler(handler, *bound), "active_tab", tab, {}), ()
            refuse = leave_unchanged
        function, controls = spread_settings(handler, *bound, outputs=[*(outputs or ())], refuse=refuse), self.controls
        components = dict(zip(Settings._fields, controls.settings, strict=True)) | {"layer": controls.layer, **inputs}
        components |= {"pinned": controls.pinned, "prompt": self.prompt, "active_tab": self.tab}
        parameters = inspect.signature(function).parameters.values()
        return {
            "fn": function,
            "inputs": [components[parameter.name] for parameter in parameters if not is_given_by_gradio(parameter)],
            "outputs": [*(outputs or {}).values()],
            **({"api_name": api_name} if api_name else PRIVATE),
            **queue,
        }

    def subscribe(self, live_output: LiveOutput, events: Sequence[Any]) -> None:
        """Update the live output after these events while its tab is active, and when the tab is opened."""
        self.live_outputs.append(live_output)
        call = self._call(live_output.tab, live_output.outputs, live_output.show, inputs=live_output.inputs) | CHEAP
        on_latest(events, **call)
        for end in (*self.prepared, self.opened[live_output.tab]):
            end.then(**call)

    def measure_on_commit(
        self, tab: str, outputs: tuple[Any, ...], handlers: Sequence[Callable[..., Any]], *bound: Any
    ) -> list[gr.events.Dependency]:
        """Call slow handlers in sequence while `tab` is active; returns the ends of the last handler.

        They are called after `on_commit`, after `measured`, and when the tab is opened.
        """
        first, *others = (self._call(tab, outputs, handler, *bound) | HEAVY for handler in handlers)
        ends = [end.then(**first) for end in (*self.measured, self.opened[tab])]
        ends.append(on_latest(self.on_commit, **first))
        for other in others:
            ends = [end.then(**other) for end in ends]
        return ends

    def on_layer_change(self, live_output: LiveOutput, handler: Callable[..., Any], *bound: Any) -> None:
        """Call `handler`, which takes seconds, when another layer is chosen, then update the live output.

        The calls have a gradio queue of their own.
        """
        queue = {"concurrency_id": live_output.tab, "concurrency_limit": 2, **SILENT}
        compute = self._call(live_output.tab, None, handler, *bound) | queue
        show = self._call(live_output.tab, live_output.outputs, live_output.show) | CHEAP
        on_latest([self.controls.layer.change], **compute).then(**show)
        for end in (*self.prepared, self.opened[live_output.tab]):
            end.then(**compute).then(**show)

    def _call(
        self,
        tab: str,
        outputs: tuple[Any, ...] | None,
        handler: Callable[..., Any],
        *bound: Any,
        inputs: tuple[gr.components.Component, ...] = (),
    ) -> dict[str, Any]:
        """Keyword arguments of an event that calls `handler(*bound, request, layer, client)` if `tab` is active."""
        pinned = [self.controls.pinned] if "pinned" in inspect.signature(handler).parameters else []
        return {
            "fn": only_if_active(tab, outputs and unchanged(type(outputs)), handler, *bound),
            "inputs": [*self.controls.settings, self.controls.layer, *pinned, *inputs, self.tab],
            "outputs": outputs and [*outputs],
            **PRIVATE,
        }

    def choose_layer_by(self, chart: gr.HTML) -> None:
        """Let a click on a layer of `chart` set the layer slider."""
        # By default gradio drops an event that comes while an earlier one is answered.
        chart.select(_clicked_layer, None, self.controls.layer, trigger_mode="multiple", **PRIVATE, **CHEAP)


def _clicked_layer(event: gr.EventData) -> int:
    return int(event.layer)
