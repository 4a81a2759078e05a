"""What a tab needs to wire itself to the rest of the page, and the lanes that its work runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from components.page.controls import Controls
from components.session.session import Session
from components.ui.downloads import Downloads
from components.ui.handlers import Follower, in_view, skipped

# Cheap answers skip the queue; all heavy work shares one lane, one job at a time.
HEAVY = {"concurrency_id": "heavy", "concurrency_limit": 1, "show_progress": "hidden"}
CHEAP = {"queue": False, "show_progress": "hidden"}
# A step of a longer answer, which has a name of its own elsewhere.
PRIVATE = {"api_visibility": "private", "api_name": "step"}


class Context(NamedTuple):
    """The frame's parts and the moments that tabs hang on to.

    Outputs of the methods are NamedTuples of components, whose class answers too; handlers take
    `(*bound, settings, layer, request)`.
    """

    session: Session
    controls: Controls
    status: gr.HTML
    tab: gr.State  # the id of the tab in view
    prompt: gr.Textbox
    refresh: gr.Textbox  # another value here, after a handler has set controls, does what dragging them would
    downloads: Downloads
    opened: dict[str, gr.events.Dependency]  # a tab's id -> what follows when it is opened
    prepared: Sequence[gr.events.Dependency]  # ends of what loads and calibrates
    measured: Sequence[gr.events.Dependency]  # ends of what slices and measures

    @property
    def at_rest(self) -> list[Any]:
        """Events after which the settings of a slice have come to rest."""
        controls = self.controls
        released = [controls.sparsity.release, controls.cap.release, controls.bias_slider.release]
        chosen = [controls.estimator.input, controls.order.input, controls.iterative.input]
        return [*released, *chosen, controls.locked.change, self.refresh.change]

    def follow(self, follower: Follower, events: Sequence[Any]) -> None:
        """Let a tab in view follow these events, besides being up to date when it is opened."""
        call = self.call(follower.tab, follower.outputs, follower.show) | CHEAP
        gr.on(events, **call, trigger_mode="always_last")
        for end in (*self.prepared, self.opened[follower.tab]):
            end.then(**call)

    def afterwards(self, tab: str, outputs: tuple, handler: Callable[..., Any], *bound: Any) -> None:
        """Call a slow handler when a slice is there and `tab` is in view."""
        call = self.call(tab, outputs, handler, *bound) | HEAVY
        for end in (*self.measured, self.opened[tab]):
            end.then(**call)

    def catch_up(self, follower: Follower, handler: Callable[..., Any], *bound: Any) -> None:
        """When another layer comes into view call `handler`, which takes seconds, in a lane of its own; then show."""
        lane = {"concurrency_id": follower.tab, "concurrency_limit": 2, "show_progress": "hidden"}
        first = self.call(follower.tab, (), handler, *bound) | lane
        then = self.call(follower.tab, follower.outputs, follower.show) | CHEAP
        gr.on(self.controls.layer.change, **first, trigger_mode="always_last").then(**then)
        for end in (*self.prepared, self.opened[follower.tab]):
            end.then(**first).then(**then)

    def call(self, tab: str, outputs: tuple, handler: Callable[..., Any], *bound: Any) -> dict[str, Any]:
        """Keyword arguments of an event that calls `handler(*bound, settings, layer, request)` while `tab` is open."""
        return {
            "fn": in_view(tab, skipped(type(outputs)) if outputs else None, handler, *bound),
            "inputs": [*self.controls.settings, self.controls.layer, self.tab],
            "outputs": list(outputs),
            **PRIVATE,
        }

    def choosing(self, chart: gr.HTML) -> None:
        """Let a click on a layer of `chart` choose that layer everywhere."""
        chart.select(_clicked_layer, None, self.controls.layer, **PRIVATE, **CHEAP)


def _clicked_layer(event: gr.EventData) -> int:
    return int(event.layer)
