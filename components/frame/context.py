"""What a tab needs to wire itself to the rest of the page, and the lanes that its work runs in."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gradio as gr

from components.frame.controls import Controls
from components.gradio_compat.browser.on_latest import on_latest
from components.gradio_compat.browser.silent import SILENT
from components.state.session import Session
from components.ui.downloads import Downloads
from components.ui.handlers import LiveOutput, only_if_active, unchanged

# Cheap answers skip the queue. In its one lane people only wait for their jobs, which the session puts in order; each
# holds a thread meanwhile (`max_threads` in theme.py).
HEAVY: dict[str, Any] = {"concurrency_id": "jobs", "concurrency_limit": 100, **SILENT}
CHEAP: dict[str, Any] = {"queue": False, **SILENT}
# A step of a longer answer, which has a name of its own elsewhere.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "api_name": "step"}


class Context(NamedTuple):
    """The frame's parts and the moments that tabs hang on to.

    Outputs of the methods are NamedTuples of components, whose class answers too; handlers take
    `(*bound, request, layer, client)`, and before the client `pinned` where they want it.
    """

    session: Session
    controls: Controls
    status: gr.HTML
    tab: gr.Textbox  # the id of the tab in view
    prompt: gr.Textbox
    refresh: gr.Textbox  # another value here, after a handler has set controls, does what dragging them would
    downloads: Downloads
    opened: dict[str, gr.events.Dependency]  # a tab's id -> what follows when it is opened
    prepared: list[gr.events.Dependency]  # ends of what loads and calibrates; filled by `events.connect`
    measured: list[gr.events.Dependency]  # ends of what slices and measures without the settings having moved
    released: list[gr.events.Dependency]  # the same, after they have come to rest
    live_outputs: list[LiveOutput]  # whose charts have the pinned setting as a ghost
    pinned_known: list[gr.events.Dependency]  # ends of what measures that; filled by the tabs
    panels: Mapping[str, Any]  # every tab's by its id, for a tab that shows what another is set to

    @property
    def on_commit(self) -> list[Any]:
        """Events after which the settings of a slice have come to rest.

        Whether MLPs are refined is none: nothing is sliced anew for that until a button asks for it.
        """
        controls = self.controls
        slice_alone = [controls.sparsity.release, controls.estimator.input, controls.locked.change]
        return [*slice_alone, *self.on_options_commit]

    @property
    def on_options_commit(self) -> list[Any]:
        """Those of the settings that all slices of a sweep have in common: bias, cap, shapes, order and recovery."""
        controls = self.controls
        return [
            controls.bias_slider.release,
            controls.cap.release,
            controls.shapes.input,
            controls.order.input,
            controls.recovery.input,
            self.refresh.change,
        ]

    def subscribe(self, live_output: LiveOutput, events: Sequence[Any]) -> None:
        """Let a tab in view follow these events, besides being up to date when it is opened."""
        self.live_outputs.append(live_output)
        call = self._call(live_output.tab, live_output.outputs, live_output.show) | CHEAP
        on_latest(events, **call)
        for end in (*self.prepared, self.opened[live_output.tab]):
            end.then(**call)

    def beside(
        self, tab: str, outputs: tuple[Any, ...], handlers: Sequence[Callable[..., Any]], *bound: Any
    ) -> list[gr.events.Dependency]:
        """Call slow handlers, one after the other, while `tab` is in view; returns their ends.

        As soon as the settings have come to rest, or a slice is there.
        """
        first, *others = (self._call(tab, outputs, handler, *bound) | HEAVY for handler in handlers)
        ends = [end.then(**first) for end in (*self.measured, self.opened[tab])]
        ends.append(on_latest(self.on_commit, **first))
        for other in others:
            ends = [end.then(**other) for end in ends]
        return ends

    def on_layer_change(self, live_output: LiveOutput, handler: Callable[..., Any], *bound: Any) -> None:
        """When another layer comes into view call `handler`, which takes seconds, in a lane of its own; then show."""
        lane = {"concurrency_id": live_output.tab, "concurrency_limit": 2, **SILENT}
        first = self._call(live_output.tab, None, handler, *bound) | lane
        then = self._call(live_output.tab, live_output.outputs, live_output.show) | CHEAP
        on_latest([self.controls.layer.change], **first).then(**then)
        for end in (*self.prepared, self.opened[live_output.tab]):
            end.then(**first).then(**then)

    def _call(
        self, tab: str, outputs: tuple[Any, ...] | None, handler: Callable[..., Any], *bound: Any
    ) -> dict[str, Any]:
        """Keyword arguments of an event that calls `handler(*bound, request, layer, client)` while `tab` is open."""
        pinned = [self.controls.pinned] if "pinned" in inspect.signature(handler).parameters else []
        return {
            "fn": only_if_active(tab, outputs and unchanged(type(outputs)), handler, *bound),
            "inputs": [*self.controls.settings, self.controls.layer, *pinned, self.tab],
            "outputs": outputs and [*outputs],
            **PRIVATE,
        }

    def choose_layer_by(self, chart: gr.HTML) -> None:
        """Let a click on a layer of `chart` choose that layer everywhere."""
        chart.select(_clicked_layer, None, self.controls.layer, **PRIVATE, **CHEAP)


def _clicked_layer(event: gr.EventData) -> int:
    return int(event.layer)
