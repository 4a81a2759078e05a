"""What plain gradio does in the browser, beside what our workarounds make of it."""

import time
from collections.abc import Iterator

import gradio as gr
import pytest
from browsing import until
from starlette.middleware import Middleware

from components.assets import ASSETS
from components.gradio_compat.browser.on_latest import SILENT, on_latest
from components.gradio_compat.page_config import CachedPage
from components.server.middleware import in_language

LARGE = "x" * 1000
COUNT_COPIES = """() => {
    const copy = structuredClone;
    window.copies = 0;
    window.structuredClone = (value, options) => {
        if (typeof value === "string" && value.length >= 1000) window.copies += 1;
        return copy(value, options);
    };
}"""


# Every second message is handled as in a hidden page, and timers are as late as there.
HIDE_AND_SHOW = """() => {
    let reads = 0;
    Object.defineProperty(Document.prototype, "visibilityState", { get: () => (reads++ % 2 ? "hidden" : "visible") });
    const later = window.setTimeout;
    window.setTimeout = (call, wait, ...values) => later(call, wait || 300, ...values);
    window.seen = new Set();
    setInterval(() => window.seen.add(document.querySelector("#growing textarea")?.value), 5);
}"""


class Page:
    """A page that shows what is worked around: each twice, as plain gradio has it and as we do."""

    def __init__(self) -> None:
        self.texts: list[str] = []  # that were answered
        with gr.Blocks() as self.blocks, gr.Sidebar(elem_id="sidebar"):
            gr.File(elem_id="upload")
        with self.blocks:
            text, *answers = (gr.Textbox(elem_id=name) for name in ("text", "first", "second"))
            for answer in answers:
                on_latest([text.input], fn=self._answer, inputs=text, outputs=answer, queue=False)
            growing, grow = gr.Textbox(elem_id="growing"), gr.Button("grow", elem_id="grow")
            grow.click(self._grow, None, growing)
            large, done = gr.HTML(LARGE), gr.Textbox(elem_id="done")
            for kind, progress in (("plain", {"show_progress": "hidden"}), ("ours", SILENT)):
                button = gr.Button(kind, elem_id=f"call-{kind}")
                button.click(lambda kind=kind: (f"{LARGE}{kind}", kind), None, [large, done], **progress)

    def _grow(self) -> Iterator[str]:
        for length in range(1, 9):
            time.sleep(0.03)
            yield "a" * length

    def _answer(self, text: str) -> str:
        self.texts.append(text)
        time.sleep(0.03)
        return text


@pytest.fixture(scope="module")
def page(launch_once) -> Page:
    page = Page()
    client = launch_once(page.blocks, app_kwargs={"middleware": [Middleware(in_language), Middleware(CachedPage)]})
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


def test_two_listeners_of_one_text_answer_the_latest_and_end(visit_gradio, page) -> None:
    tab = visit_gradio()
    tab.locator("#text textarea").press_sequentially("abcdef")
    for name in ("first", "second"):
        until(tab, f"document.querySelector('#{name} textarea').value === 'abcdef'")
    tab.wait_for_timeout(300)  # in which plain gradio calls ten times more
    assert 2 <= page.texts.count("abcdef") <= 4  # once more if it had begun


def test_plain_gradio_copies_outputs_where_progress_is_hidden_and_ours_does_not(visit_gradio) -> None:
    tab = visit_gradio()
    tab.evaluate(COUNT_COPIES)
    copies = {}
    for kind in ("ours", "plain"):
        tab.evaluate("window.copies = 0")
        tab.click(f"#call-{kind}")
        until(tab, f"document.querySelector('#done textarea').value === '{kind}'")
        copies[kind] = tab.evaluate("window.copies")
    assert copies["plain"] > copies["ours"], copies  # a new value itself is copied once


def test_plain_gradio_speaks_the_browsers_language_and_ours_the_pages(visit_gradio) -> None:
    tab = visit_gradio()
    assert tab.evaluate("navigator.language") == "en-US"
    tab.wait_for_selector("#upload >> text=Drop File Here")
    visit_gradio("?lang=de").wait_for_selector("#upload >> text=Datei hier ablegen")


def test_plain_gradio_opens_a_sidebar_on_a_narrow_screen(visit_gradio) -> None:
    visit_gradio(width=400).wait_for_selector("#sidebar.open")


def test_plain_gradio_shows_changes_out_of_order_where_a_page_becomes_hidden_and_ours_does_not(visit_gradio) -> None:
    def mixes(tab) -> bool:
        tab.click("#grow")
        tab.wait_for_timeout(2000)
        return tab.evaluate("[...window.seen].some(text => text.replaceAll('a', ''))")

    plain, ours = visit_gradio(), visit_gradio()
    plain.evaluate(HIDE_AND_SHOW)
    ours.evaluate(f"() => {{ ({HIDE_AND_SHOW})(); {(ASSETS / 'in_order.js').read_text(encoding='utf-8')} }}")
    assert any(mixes(plain) for _ in range(20))  # a slow server's messages keep their order
    assert not mixes(ours)
    until(ours, "document.querySelector('#growing textarea').value === 'aaaaaaaa'")
