"""Plain values are converted where the call is, to what gradio makes of them."""

import asyncio
import threading
from typing import Any

import gradio as gr
import pytest

from components.gradio_compat.blocks import PatchedBlocks

VALUES = [3.14159, "text", "b", None, True, None]


class Page:
    """A function of several components, and where their values were converted."""

    def __init__(self, kind: type[gr.Blocks], answer: Any = None) -> None:
        self.threads: list[bool] = []  # whether each conversion was in a thread of its own
        self.got: tuple[Any, ...] = ()
        with kind() as self.blocks:
            self.components = [
                gr.Slider(0, 10, step=0.01),
                gr.Textbox(),
                gr.Dropdown(["a", "b"]),
                gr.Number(),
                gr.Checkbox(),
                gr.File(),
            ]
            self.html = gr.HTML()
            outputs = [self.html, self.components[0]]
            gr.Button().click(lambda *values: self._take(values, answer), self.components, outputs, api_name="take")
        for component in (*self.components, self.html):
            for name in ("preprocess", "postprocess"):
                setattr(component, name, self._noting(getattr(component, name)))
        (self.function,) = (fn for fn in self.blocks.fns.values() if fn.api_name == "take")

    def _take(self, values: tuple[Any, ...], answer: Any) -> Any:
        self.got = values
        return ("<b>bold</b>", 2) if answer is None else answer(self)

    def _noting(self, convert: Any) -> Any:
        def noted(value: Any) -> Any:
            self.threads.append(threading.current_thread() is not threading.main_thread())
            return convert(value)

        return noted

    def call(self, values: list[Any]) -> list[Any]:
        return asyncio.run(self.blocks.process_api(self.function, values))["data"]


def test_plain_gradio_converts_each_value_in_a_thread() -> None:
    page = Page(gr.Blocks)
    page.call(VALUES)
    assert page.threads == [True] * 8


def test_plain_values_are_converted_without_threads_and_as_gradio_does() -> None:
    page, plain = Page(PatchedBlocks), Page(gr.Blocks)
    assert page.call(VALUES) == plain.call(VALUES) == ["<b>bold</b>", 2]
    assert page.got == plain.got == tuple(VALUES)
    assert page.threads == [False] * 8


def test_gradio_converts_what_is_not_plain() -> None:
    page = Page(PatchedBlocks, lambda page: (gr.update(value="new", visible=False), 2))
    updated = page.call(VALUES)[0]
    assert (updated["value"], updated["visible"]) == ("new", False)
    assert True in page.threads


def test_a_wrong_value_is_refused_as_gradio_refuses_it() -> None:
    wrong = [*VALUES[:2], "c", *VALUES[3:]]
    with pytest.raises(gr.Error, match="c is not in the list of choices"):
        Page(PatchedBlocks).call(wrong)


@pytest.mark.parametrize("skips", [lambda _: (gr.skip(), 2), lambda _: gr.skip()])
def test_a_component_that_is_left_unchanged_is_not_made_anew(skips: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[type] = []

    def build(kind: type[gr.Blocks]) -> Any:
        page = Page(kind, skips)
        original = gr.HTML.__init__
        with monkeypatch.context() as patch:
            patch.setattr(gr.HTML, "__init__", lambda self, *a, **b: (made.append(kind), original(self, *a, **b))[1])
            return page.call(VALUES)[0]

    for kind in (gr.Blocks, PatchedBlocks):
        assert build(kind)["__type__"] == "update"
    assert made == [gr.Blocks]
