"""What a tab needs to wire itself to the rest of the page, and the lanes that its work runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gradio as gr

from components.page.controls import Controls
from components.ui.downloads import Outbox
from components.ui.handlers import Follower, in_view

HEAVY = {"concurrency_id": "heavy", "concurrency_limit": 1, "show_progress": "hidden"}
CHEAP = {"queue": False, "show_progress": "hidden"}


# A step of a longer answer, which has a name of its own elsewhere.
PRIVATE = {"api_visibility": "private", "api_name": "step"}


class Page(NamedTuple):
    """What a tab needs to wire itself to the rest of the page."""

    session: Any
    controls: Controls
    status: gr.HTML
    tab: gr.State  # the id of the tab in view
    opened: dict[str, gr.events.Dependency]  # a tab's id -> what follows when it is opened
    let_go: Sequence[Any]  # events after which settings rest
    prepared: Sequence[gr.events.Dependency]  # ends of what loads and calibrates
    measured: Sequence[gr.events.Dependency]  # ends of what slices and measures
    anew: gr.Textbox  # another value here, after a handler has set controls, does what dragging them would
    prompt: gr.Textbox
    outbox: Outbox

    def follow(self, follower: Follower, events: Sequence[Any]) -> None:
        """Let a tab in view follow these events, besides being up to date when it is opened."""
        self._attach(*follower, CHEAP, events, self.prepared)

    def afterwards(self, tab: str, handler: Callable[..., Any], outputs: Sequence[gr.components.Component]) -> None:
        """Call the slow `handler(settings, layer, request)` when a slice is there and `tab` is in view."""
        self._attach(tab, handler, outputs, HEAVY, [], self.measured)

    def catch_up(self, tab: str, handler: Callable, show: Callable, outputs: Sequence[gr.components.Component]) -> None:
        """When another layer comes into view call `handler`, which takes seconds, in a lane of its own; then `show`."""
        lane = {"concurrency_id": tab, "concurrency_limit": 2, "show_progress": "hidden"}
        first, then = self._call(tab, handler, [], lane), self._call(tab, show, outputs, CHEAP)
        gr.on(self.controls.layer.change, **first, trigger_mode="always_last").then(**then)
        for end in (*self.prepared, self.opened[tab]):
            end.then(**first).then(**then)

    def choosing(self, chart: gr.HTML) -> None:
        """Let a click on a layer of `chart` choose that layer everywhere."""
        chart.select(_clicked_layer, None, self.controls.layer, **PRIVATE, **CHEAP)

    def _attach(self, tab: str, handler: Callable, outputs: Sequence, how: dict, events: Sequence, ends: Sequence):
        call = self._call(tab, handler, outputs, how)
        if events:
            gr.on(events, **call, trigger_mode="always_last")
        for end in (*ends, self.opened[tab]):
            end.then(**call)

    def _call(self, tab: str, handler: Callable, outputs: Sequence, how: dict) -> dict[str, Any]:
        return {
            "fn": in_view(tab, handler, len(outputs)),
            "inputs": [*self.controls.settings, self.controls.layer, self.tab],
            "outputs": list(outputs),
            **PRIVATE,
            **how,
        }


def _clicked_layer(event: gr.EventData) -> int:
    return int(event.layer)
