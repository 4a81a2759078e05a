"""A published page and a published site in a real browser: from the disk without a network, or on a static host."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browsing import PATIENCE, Opened, until
from tiny_page import in_job, publisher

from components.export import pages, site
from components.export.views import Choice
from components.state.session import Session
from intraslice.__main__ import main

from .conftest import OnDevice

CHOICE = Choice((0, 30, 60), ("w10 w20 w30", "w7 w8"), 6)
BARS = "document.querySelector('#ratios .isx-plot').data.filter(t => t.type === 'bar').map(t => [...t.y])"
MARK = "document.querySelector('#sweep .isx-plot').layout.shapes.at(-1).x0"


@pytest.fixture(scope="module")
def published(page_session, tiny):
    return in_job(page_session, publisher(page_session).publish, tiny, CHOICE)


@pytest.fixture(scope="module")
def file(published, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "tiny.html"
    path.write_text(pages.page(published), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def offline(chromium):
    """A context without a network; one for all tests, since a new one would compile the scripts again."""
    with chromium.new_context(offline=True) as context:
        context.set_default_timeout(PATIENCE)
        context.new_page().goto("file:///dev/null")  # keeps the process
        yield context


@pytest.fixture
def open_file(offline, file):
    """Opens a file offline; at the end nothing else was asked for, and nothing went wrong."""
    opened: list[Opened] = []

    def open_page(address: str = "", width: int = 1440, scheme: str = "light"):
        opened.append(Opened(page := offline.new_page()))
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.goto(address or file.as_uri())
        page.wait_for_selector("#ratios .main-svg")
        return page

    yield open_page
    for one in opened:
        one.page.close()
        assert [fault.partition("#")[0] for fault in one.faults] == [file.as_uri()]


def ratios(step) -> list:
    planned = ([getattr(layer, module) for layer in step.plan.layers] for module in ("attention", "mlp"))
    return [pytest.approx(layers, rel=1e-4, abs=1e-6) for layers in planned]


def test_the_slider_moves_everything_by_keyboard(open_file, published) -> None:
    page = open_file()
    assert page.evaluate(BARS) == ratios(published.steps[1])
    before = {part: page.inner_text(part) for part in ("#headline", "#numbers", "#answers", "#removed")}
    page.focus("#share")
    page.keyboard.press("ArrowRight")
    until(page, f"{MARK} > 0.5")
    assert page.evaluate(BARS) == ratios(published.steps[2])
    assert all(page.inner_text(part) != words for part, words in before.items())
    assert page.get_attribute("#share", "aria-valuetext").startswith("60%, perplexity")
    assert f"{published.steps[2].perplexities.sliced.value:.1f}" in page.inner_text("#headline")
    page.keyboard.press("Home")
    assert "Nothing is removed" in page.inner_text("#headline")


def test_layers_prompts_and_points_are_chosen(open_file, published, file) -> None:
    page = open_file(f"{file.as_uri()}#58")
    assert page.inner_text("#percent") == "60%"  # the nearest step to the address's
    page.select_option("#layer", "2")
    assert "layer 2" in page.inner_text("#spectra .isx-title")
    page.focus("#ratios .isx-plot")
    page.keyboard.press("ArrowLeft")
    assert "layer 1" in page.inner_text("#spectra .isx-title")
    assert page.input_value("#layer") == "1"
    page.select_option("#prompt", "1")
    assert published.steps[2].answers[1]["dense"].text in page.inner_text("#answers")
    said = published.steps[2].facts.columns["intraslice"].facts[4].completion.splitlines()[0]
    page.click("#facts [data-at='1 4']")
    assert f"writes “{said}" in page.inner_text("#facts .isx-detail")
    page.click("#sweep .isx-twin summary")
    page.click("#sweep .isx-pick >> nth=0")
    assert page.input_value("#share") == "1"


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_a_small_screen_the_readers_lights_and_paper(open_file, scheme) -> None:
    page = open_file(width=390, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colour = page.evaluate("document.querySelector('#ratios .isx-plot').data[0].marker.color")
    assert colour == {"light": "#1a7ab8", "dark": "#9bd0f2"}[scheme]
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    widths = page.evaluate("[...document.querySelectorAll('.isx-plot .main-svg:first-child')].map(s => s.clientWidth)")
    assert len(widths) == 4
    assert max(widths) <= 700
    assert page.evaluate("document.querySelector('#sweep .isx-plot').layout.font.color") == "#1b1f24"


@pytest.mark.slow
def test_the_default_models_file(chromium, usual_cache, tmp_path) -> None:
    file = tmp_path / "real.html"
    assert main(["publish", "--out", str(file), "--sparsities", "0", "0.3", "--eval-tokens", "2560"]) == 0
    assert 4_000_000 < file.stat().st_size < pages.MAX_BYTES
    page = chromium.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("#ratios .main-svg")
    assert "SmolLM2" in page.inner_text("h1")
    assert len(page.evaluate(BARS)[0]) == 30
    page.focus("#share")
    page.keyboard.press("Home")
    until(page, f"{BARS}.flat().every(y => y === 0)")
    page.close()


@pytest.fixture(scope="module")
def site_folder(tmp_path_factory, page_session: Session, on_device: OnDevice) -> Path:
    folder = tmp_path_factory.mktemp("site")
    choice = Choice((0, 30), ("Hello world",), 6, passage="Hello world, it's 2024 and I've paid")
    published = in_job(page_session, publisher(page_session).publish, on_device.request, choice)
    models = in_job(page_session, site.write_models, page_session, on_device.request, (0.0, 30.0), folder)
    site.write_pages(folder, published, models)
    return folder


@pytest.fixture(scope="module")
def site_address(site_folder: Path) -> Iterator[str]:
    """The folder under a sub-path of a static host, without a slash at its end."""
    handler = partial(SilentHandler, directory=str(site_folder.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{site_folder.name}"
        server.shutdown()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_the_article_opens_from_the_disk_without_a_network(chromium, site_folder) -> None:
    with chromium.new_context(offline=True) as context:
        context.set_default_timeout(PATIENCE)
        for name, heading in {"index.html": "How much of", "de.html": "Wie viel von"}.items():
            opened = Opened(context.new_page())
            opened.faults.clear()
            asked: list[str] = []
            opened.page.on("request", lambda request, asked=asked: asked.append(request.url))
            opened.page.goto((site_folder / name).as_uri())
            opened.until("document.querySelectorAll('.main-svg').length >= 4")
            assert heading in opened.page.inner_text("h1")
            before = opened.page.inner_text("#tokens")
            opened.page.focus("#share")
            opened.page.keyboard.press("Home")
            opened.until("document.querySelector('#percent').textContent.startsWith('0')")
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
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site_address}/{name}")
        opened.until("document.querySelectorAll('.main-svg').length >= 4")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        for key, columns in {"Home": 1, "End": 2}.items():
            page.focus("#share")
            page.keyboard.press(key)
            opened.until("document.querySelector('#device-download:not([hidden]), #device-generate:not([hidden])')")
            if page.is_visible("#device-download"):
                page.click("#device-download")
                opened.until("document.querySelector('#device-generate').hidden === false")
            page.fill("#own", "Hello world")
            page.click("#device-generate")
            opened.until(f"document.querySelectorAll('#device .isx-answer').length === {columns}")
            opened.until("document.querySelector('#device-generate').hidden === false")
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
        assert [url for url in asked if not url.startswith((f"{site_address}/", "blob:", "data:"))] == []
