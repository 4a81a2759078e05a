"""A published site in a real browser: the article from the disk without a network, its models from a static host."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browsing import PATIENCE, Opened
from tiny_page import in_job, publisher

from components.export.published import site
from components.export.published.views import Choice
from components.state.session import Session

from ..conftest import OnDevice


@pytest.fixture(scope="module")
def site_folder(tmp_path_factory, page_session: Session, on_device: OnDevice) -> Path:
    folder = tmp_path_factory.mktemp("site")
    choice = Choice((0, 30), ("Hello world",), 6, passage="Hello world, it's 2024 and I've paid")
    published = in_job(page_session, publisher(page_session).publish, on_device.request, choice)
    models = in_job(page_session, site.write_models, page_session, on_device.request, (0.0, 30.0), folder)
    site.write_pages(folder, published, models, "python -m intraslice publish --site site")
    return folder


@pytest.fixture(scope="module")
def site_address(site_folder: Path) -> Iterator[str]:
    """The folder on a static host."""
    handler = partial(SilentHandler, directory=str(site_folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def until(opened: Opened, condition: str) -> None:
    """As `Opened.until`, which evaluates strings in the page: the article's policy forbids that."""
    for _ in range(1200):
        if opened.page.evaluate(condition):
            return
        opened.page.wait_for_timeout(100)
    pytest.fail(f"never: {condition}; faults: {opened.faults}; {opened.page.inner_text('#device')}")


def test_the_article_opens_from_the_disk_without_a_network(chromium, site_folder) -> None:
    with chromium.new_context(offline=True) as context:
        context.set_default_timeout(PATIENCE)
        for name, heading in {"index.html": "How much of", "de.html": "Wie viel von"}.items():
            opened = Opened(context.new_page())
            opened.faults.clear()
            asked: list[str] = []
            opened.page.on("request", lambda request, asked=asked: asked.append(request.url))
            opened.page.goto((site_folder / name).as_uri())
            until(opened, "document.querySelectorAll('.main-svg').length >= 4")
            assert heading in opened.page.inner_text("h1")
            before = opened.page.inner_text("#tokens")
            opened.page.focus("#share")
            opened.page.keyboard.press("Home")
            until(opened, "document.querySelector('#percent').textContent.startsWith('0')")
            assert opened.page.inner_text("#tokens") != before
            assert "python -m http.server" in opened.page.inner_text("#device [role=status]")
            assert {url.rpartition("/")[2] for url in asked} == {name, "plotly.min.js"}
            assert opened.faults == [(site_folder / file).as_uri() for file in (name, "plotly.min.js")]


@pytest.mark.parametrize(
    ("name", "width", "answer"),
    [pytest.param("", 1440, "64 tokens", marks=pytest.mark.slow), ("de.html", 390, "64 Tokens")],
)
def test_its_models_answer_at_every_sparsity(chromium, axe, site_address, name, width, answer) -> None:
    with chromium.new_context(viewport={"width": width, "height": 900}) as context:
        context.set_default_timeout(PATIENCE)
        opened = Opened(context.new_page())
        page = opened.page
        page.goto(f"{site_address}/{name}")
        until(opened, "document.querySelectorAll('.main-svg').length >= 4")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for key, columns in {"Home": 1, "End": 2}.items():
            page.focus("#share")
            page.keyboard.press(key)
            until(opened, "!!document.querySelector('#device-download:not([hidden]), #device-generate:not([hidden])')")
            if page.is_visible("#device-download"):
                page.click("#device-download")
                until(opened, "!document.querySelector('#device-generate').hidden")
            page.fill("#own", "Hello world")
            page.click("#device-generate")
            until(opened, f"document.querySelectorAll('#device .isx-answer').length === {columns}")
            until(opened, "!document.querySelector('#device-generate').hidden")
            assert page.inner_text("#device .isx-device-answers").count(answer) == columns
        call = "window.intraslice.generate({ sparsity: 0.3, prompt: 'Hello world', maxTokens: 8 })"
        first, second = page.evaluate(call), page.evaluate(call)
        assert first["text"] == second["text"]
        assert first["tokensPerSecond"] > 0
        wrong = "window.intraslice.generate({ sparsity: 0.5, prompt: 'x' }).catch((problem) => problem.message)"
        assert page.evaluate(wrong) == "sparsity must be one of 0, 0.3, got 0.5"
        page.evaluate("document.querySelectorAll('.main-svg').forEach((drawn) => drawn.remove())")
        page.evaluate(axe)
        assert opened.found_by_axe("body") == []
        assert opened.faults == []
