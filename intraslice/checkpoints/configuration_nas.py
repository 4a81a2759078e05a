"""Copied into every folder that is written for vLLM, whose `nemotron_nas` wants every layer's settings as attributes.

It needs transformers alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import LlamaConfig


class Settings(dict[str, Any]):
    """A JSON object whose values are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class NemotronNASConfig(LlamaConfig):
    """A Llama's, and `attention` and `ffn` of every layer in `block_configs`."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Sequence[dict[str, dict[str, Any]]] = (), **rest: Any) -> None:
        self.block_configs = [
            Settings({part: Settings(settings) for part, settings in block.items()}) for block in block_configs
        ]
        super().__init__(**rest)
