"""Configuration class for vLLM's `nemotron_nas`, which reads the settings of each layer as attributes.

This file is copied into every folder that is written for vLLM, so it imports transformers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import LlamaConfig


class Settings(dict[str, Any]):
    """A JSON object whose values are also attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class NemotronNASConfig(LlamaConfig):
    """A Llama configuration, with the `attention` and `ffn` settings of every layer in `block_configs`."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: Sequence[dict[str, dict[str, Any]]] = (), **options: Any) -> None:
        self.block_configs = [
            Settings({part: Settings(settings) for part, settings in block.items()}) for block in block_configs
        ]
        super().__init__(**options)
