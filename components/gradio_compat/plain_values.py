"""Values that are converted without threads: numbers, texts and unchanged outputs.

Gradio converts the value of each input and output of a call in a worker thread of its own, and the page's sliders have
twenty of them. Each thread has to get the interpreter lock twice, which takes a millisecond beside a job, and looks
through all tasks of the event loop. And for an output that is left unchanged (`gr.skip()`) gradio constructs its
component anew.

Tried with gradio 6.30 and 6.31. Test: `tests/page/gradio_compat/test_values.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

PLAIN = (str, int, float, bool, type(None))


def preprocessed(function: Any, values: Sequence[Any], state: Any) -> list[Any] | None:
    """A call's inputs as its handler gets them, or None where gradio has to convert them or to refuse one.

    Args:
        function: the call's `BlockFunction`.
        values: one for each input, at least.
        state: the session, which has components of its own where they were updated; None for a program's call.
    """
    inputs = function.inputs
    if not function.preprocess or function.component_prop_inputs or len(values) < len(inputs):
        return None
    if not all(map(_is_plain, inputs, values)):
        return None
    try:
        return [_current(component, state).preprocess(value) for component, value in zip(inputs, values, strict=False)]
    except Exception:  # gradio says in which component
        return None


def postprocessed(function: Any, answer: Any, state: Any) -> list[Any] | None:
    """A handler's answer as the browser gets it, or None where gradio has to convert it. Arguments as above."""
    outputs = function.outputs
    if not function.postprocess or function.batch or function.is_validator_function:
        return None
    if len(outputs) == 1:
        answer = [answer]
    elif _is_unchanged(answer):
        answer = [answer] * len(outputs)
    if not isinstance(answer, list | tuple) or len(answer) != len(outputs):
        return None
    if not all(
        _is_unchanged(value) or _is_plain(component, value) for component, value in zip(outputs, answer, strict=True)
    ):
        return None
    return [
        value if _is_unchanged(value) else _current(component, state).postprocess(value)
        for component, value in zip(outputs, answer, strict=True)
    ]


def _is_plain(component: Any, value: Any) -> bool:
    """Whether a value is no file, and its component keeps none of it."""
    is_component = isinstance(component, gr.components.Component) and not component.stateful
    return is_component and type(value) in PLAIN and (value is None or component.data_model is None)


def _is_unchanged(value: Any) -> bool:
    return isinstance(value, dict) and value == gr.skip()


def _current(component: Any, state: Any) -> Any:
    return component if state is None else state[component._id]
