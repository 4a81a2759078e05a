"""Endpoints of the API whose parameters share components.

`gr.api` creates a component for every parameter of every endpoint, and every browser gets all of them.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_signatures.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr


def share_parameters(page: gr.Blocks, endpoints: Sequence[gr.events.Dependency]) -> None:
    """Let parameters of the same place, type and default share the component of the first of them."""
    shared: dict[str, Any] = {}
    for endpoint in endpoints:
        components: Any = page.fns[endpoint["id"]].inputs
        for index, component in enumerate(components):
            components[index] = shared.setdefault(f"{index} {component.value!r} {component.api_info()}", component)
            if components[index] is not component:
                component.unrender()
