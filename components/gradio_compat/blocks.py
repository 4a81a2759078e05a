"""`gr.Blocks` with the workarounds that concern a page as a whole."""

from __future__ import annotations

from typing import Any, Self

import gradio as gr
from gradio.state_holder import StateHolder

from ..i18n.language import use_language
from .errors import language_of, translate_errors
from .inputs import require_readable
from .plain_values import postprocessed, preprocessed
from .queue import SteadyQueue, steady_queue
from .shared_config import share_config, share_in
from .translated_config import TranslatedConfig


class PatchedBlocks(gr.Blocks):
    """`gr.Blocks` for untrusted clients, in their languages."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        share_config(self)

    @property  # type: ignore[override]  # in gradio an attribute
    def config(self) -> dict[str, Any]:
        """As in gradio, in the current language."""
        return self._translated_config.current()

    @config.setter
    def config(self, config: dict[str, Any]) -> None:
        self._translated_config = TranslatedConfig(config)

    @property
    def state_holder(self) -> StateHolder:
        """The sessions, as in gradio, where it is an attribute that the server sets."""
        return self._sessions

    @state_holder.setter
    def state_holder(self, sessions: StateHolder) -> None:
        share_in(sessions)
        self._sessions = sessions

    @property
    def calls(self) -> SteadyQueue:
        """The queue of calls. Raises TypeError before `queue()` was called."""
        if not isinstance(self._queue, SteadyQueue):
            raise TypeError("the page still has gradio's default queue; call `queue()` on it before `launch()`")
        return self._queue

    def queue(self, *args: Any, **options: Any) -> Self:
        """As in gradio."""
        super().queue(*args, **options)
        self._queue = steady_queue(self._queue, self)
        return self

    async def process_api(  # type: ignore[override]  # the other arguments by name, as gradio passes them
        self, block_fn: Any, inputs: list[Any], state: Any = None, **options: Any
    ) -> dict[str, Any]:
        """As in gradio, for each step of a generator too: with checked inputs, and errors as messages."""
        with use_language(language_of(options.get("request"))), translate_errors():
            if options.get("iterator") is None:
                require_readable(block_fn.inputs, inputs, state)
            return await super().process_api(block_fn, inputs, state, **options)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """As in gradio."""
        values = preprocessed(block_fn, inputs, state)
        return await super().preprocess_data(block_fn, inputs, state, explicit_call) if values is None else values

    async def postprocess_data(self, block_fn: Any, predictions: Any, state: Any) -> list[Any]:
        """As in gradio."""
        values = postprocessed(block_fn, predictions, state)
        return await super().postprocess_data(block_fn, predictions, state) if values is None else values
