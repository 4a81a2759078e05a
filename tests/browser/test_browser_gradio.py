"""What plain gradio does in the browser, beside what our workarounds make of it."""

import threading
import time
from collections.abc import Callable

import gradio as gr
import pytest
from starlette.middleware import Middleware

from components.gradio_compat.browser.on_latest import SILENT, on_latest
from components.gradio_compat.page_config import CachedPage
from components.server.middleware import LanguageMiddleware

LARGE = "x" * 1000
COUNT_COPIES = """() => {
    const copy = structuredClone;
    window.copies = 0;
    window.structuredClone = (value, options) => {
        if (typeof value === "string" && value.length >= 1000) window.copies += 1;
        return copy(value, options);
    };
}"""


class Alternating:
    """Calls of two listeners that end in turns, each while one of the other runs, once both have been called again."""

    def __init__(self) -> None:
        self.begun, self.called_again, self._changed = [0, 0], False, threading.Condition()

    def wait(self, listener: int) -> None:
        """Begin a call of listener 0 or 1; it ends when it may, or after ten seconds."""
        with self._changed:
            self.begun[listener] += 1
            other, needed = 1 - listener, self.begun[listener] + listener
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.called_again and self.begun[other] >= needed, timeout=10)

    def go_on(self) -> None:
        with self._changed:
            self.called_again = True
            self._changed.notify_all()


class Page:
    """A page that shows what is worked around: each twice, as plain gradio has it and as we do."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {"plain": [], "ours": []}  # that were answered
        self.turns = Alternating()
        with gr.Blocks() as self.blocks, gr.Sidebar(elem_id="sidebar"):
            gr.File(elem_id="upload")
        with self.blocks:
            for kind in self.texts:
                self._two_listeners(kind)
            large, done = gr.HTML(LARGE), gr.Textbox(elem_id="done")
            for kind, progress in (("plain", {"show_progress": "hidden"}), ("ours", SILENT)):
                button = gr.Button(kind, elem_id=f"call-{kind}")
                button.click(lambda kind=kind: (f"{LARGE}{kind}", kind), None, [large, done], **progress)

    def _two_listeners(self, kind: str) -> None:
        text, *answers = (gr.Textbox(elem_id=f"{name}-{kind}") for name in ("text", "first", "second"))
        for listener, answer in enumerate(answers):
            call = {"fn": self._noted(kind, listener), "inputs": text, "outputs": answer, "queue": False}
            if kind == "plain":
                text.input(**call, trigger_mode="always_last")
            else:
                on_latest([text.input], **call)

    def _noted(self, kind: str, listener: int) -> Callable[[str], str]:
        def answer(text: str) -> str:
            self.texts[kind].append(text)
            if kind == "plain":
                self.turns.wait(listener)
            else:
                time.sleep(0.03)
            return text

        return answer


@pytest.fixture(scope="module")
def page(launch_once) -> Page:
    page = Page()
    client = launch_once(
        page.blocks, app_kwargs={"middleware": [Middleware(LanguageMiddleware), Middleware(CachedPage)]}
    )
    page.address = client.address
    return page


@pytest.fixture
def visit_gradio(browser_context, page):
    tabs = []

    def open_page(query: str = "", width: int = 1280):
        tabs.append(tab := browser_context.new_page())
        tab.set_viewport_size({"width": width, "height": 800})
        tab.goto(page.address + query)
        tab.wait_for_selector("#done textarea", state="attached")
        return tab

    yield open_page
    for tab in tabs:
        tab.close()


@pytest.mark.parametrize("kind", ["plain", "ours"])
def test_plain_gradio_keeps_two_listeners_of_the_mode_always_last_going_and_ours_end(kind, visit_gradio, page) -> None:
    tab, calls = visit_gradio(), page.texts[kind]
    tab.locator(f"#text-{kind} textarea").press_sequentially("abcdef")
    if kind == "plain":
        page.turns.go_on()
        deadline = time.monotonic() + 60
        while calls.count("abcdef") < 8 and time.monotonic() < deadline:
            tab.wait_for_timeout(20)
        assert calls.count("abcdef") >= 8
        return
    for name in ("first", "second"):
        tab.wait_for_function(f"document.querySelector('#{name}-ours textarea').value === 'abcdef'")
    tab.wait_for_timeout(300)  # in which plain gradio calls ten times more
    assert 2 <= calls.count("abcdef") <= 4  # each listener answers the latest, once more if it had begun


def test_plain_gradio_copies_outputs_where_progress_is_hidden_and_ours_does_not(visit_gradio) -> None:
    tab = visit_gradio()
    tab.evaluate(COUNT_COPIES)
    copies = {}
    for kind in ("ours", "plain"):
        tab.evaluate("window.copies = 0")
        tab.click(f"#call-{kind}")
        tab.wait_for_function(f"document.querySelector('#done textarea').value === '{kind}'")
        copies[kind] = tab.evaluate("window.copies")
    assert copies["plain"] > copies["ours"], copies  # a new value itself is copied once


def test_plain_gradio_speaks_the_browsers_language_and_ours_the_pages(visit_gradio) -> None:
    tab = visit_gradio()
    assert tab.evaluate("navigator.language") == "en-US"
    assert "Drop File Here" in tab.inner_text("#upload")
    assert "Datei hier ablegen" in visit_gradio("?lang=de").inner_text("#upload")


def test_plain_gradio_opens_a_sidebar_on_a_narrow_screen(visit_gradio) -> None:
    tab = visit_gradio(width=400)
    tab.wait_for_selector("#sidebar.open")
