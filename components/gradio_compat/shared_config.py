"""One configuration of the page's components for all sessions.

Gradio builds a component's configuration anew for every session, on the event loop that serves everybody: 16 ms for
this page, 0.2 ms where a session copies what was built for the first.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_shared_config.py`.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.blocks import Block, BlocksConfig

KEPT = "_isx_config"  # an attribute of a component; a session replaces the component where it changes one


class SharedConfig(BlocksConfig):
    """Configurations that are built once for each component, and copied as deep as gradio writes into them."""

    def __copy__(self) -> SharedConfig:
        copied = super().__copy__()
        copied.__class__ = SharedConfig
        return copied

    @staticmethod
    def config_for_block(_id: int, rendered_ids: list[int], block: Block, renderable: Any = None) -> dict[str, Any]:
        """As in gradio."""
        if renderable:
            return BlocksConfig.config_for_block(_id, rendered_ids, block, renderable)
        if KEPT not in vars(block):
            setattr(block, KEPT, BlocksConfig.config_for_block(_id, rendered_ids, block))
        kept = getattr(block, KEPT)
        return {**kept, "props": {**kept.get("props", {})}}


def share_config(page: gr.Blocks) -> None:
    """Let the sessions of a page share its components' configurations."""
    page.default_config.__class__ = SharedConfig
