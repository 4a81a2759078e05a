"""One configuration of the page's components for all sessions.

Gradio builds a component's configuration anew for every session, on the event loop that serves everybody: 16 ms for
this page, and 600 objects for each session, which the garbage collector visits again and again. Here a session copies a
component's configuration when it writes into it.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_page_config.py`.
"""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.blocks import Block, BlocksConfig
from gradio.state_holder import SessionState, StateHolder

KEPT = "_isx_config"  # an attribute of a component; a session replaces the component where it changes one


class SharedConfig(BlocksConfig):
    """Configurations that are built once for each component."""

    def __copy__(self) -> SharedConfig:
        copied = super().__copy__()
        copied.__class__ = SharedConfig
        return copied

    @staticmethod
    def config_for_block(_id: int, rendered_ids: list[int], block: Block, renderable: Any = None) -> dict[str, Any]:
        """As in gradio; nobody may write into the result."""
        if renderable:
            return BlocksConfig.config_for_block(_id, rendered_ids, block, renderable)
        if KEPT not in vars(block):
            setattr(block, KEPT, BlocksConfig.config_for_block(_id, rendered_ids, block))
        kept: dict[str, Any] = getattr(block, KEPT)
        return kept


class SharingSession(SessionState):
    """A session that writes into configurations of its own."""

    def _update_value_in_config(self, key: int, value: Any) -> None:
        config = self.config_values.get(key) or self.blocks_config.config_for_block(
            key, [], self.blocks_config.blocks[key]
        )
        if "props" in config:
            config = {**config, "props": {**config["props"], "value": value}}
        self.config_values[key] = config


class SharingSessions(StateHolder):
    """Makes such sessions."""

    def __getitem__(self, session_id: str) -> SessionState:
        if session_id not in self.session_data:
            self.session_data[session_id] = SharingSession(self.blocks)
        return super().__getitem__(session_id)


def share_config(page: gr.Blocks) -> None:
    """Let the sessions of a page share its components' configurations."""
    page.default_config.__class__ = SharedConfig


def share_in(sessions: StateHolder) -> None:
    """Let these sessions write into configurations of their own."""
    sessions.__class__ = SharingSessions
