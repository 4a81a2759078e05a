"""The page's configuration, made once: gradio makes it anew for every session, on the loop that serves everybody."""

from __future__ import annotations

from typing import Any

from gradio.blocks import Block, BlocksConfig

KEPT = "_isx_config"  # on a component, which a session exchanges for another where it changes


class SharedConfig(BlocksConfig):
    """Sessions have copies of what was made for the first, as deep as gradio writes into them: 0.2 ms instead of 16."""

    def __copy__(self) -> SharedConfig:
        copied = super().__copy__()
        copied.__class__ = SharedConfig
        return copied

    @staticmethod
    def config_for_block(_id: int, rendered_ids: list[int], block: Block, renderable: Any = None) -> dict:
        """As gradio's."""
        if renderable:
            return BlocksConfig.config_for_block(_id, rendered_ids, block, renderable)
        if KEPT not in vars(block):
            setattr(block, KEPT, BlocksConfig.config_for_block(_id, rendered_ids, block))
        kept = getattr(block, KEPT)
        return {**kept, "props": {**kept.get("props", {})}}
