"""The real page in a real browser: the slider moves the bars, no foreign host is asked, no error is logged."""

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright import sync_api as playwright

from app import build_app
from components import look
from components.session import Session, calibration_key, slice_config
from components.views import Settings
from intraslice.ratios import make_plan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000  # ms; a busy machine takes its time

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]


class SnapshotSession(Session):
    """The page as it is before the default model is loaded, which here it never is."""

    def prepare(self, settings: Settings, visitor: str) -> Iterator:
        return iter(())

    def measure(self, settings: Settings, visitor: str) -> Iterator:
        return iter(())

    def memory(self, model: str) -> str:
        return "135 M parameters"


@dataclass
class Opened:
    """A page, and what went wrong on it."""

    page: "playwright.Page"
    faults: list[str] = field(default_factory=list)

    def bars(self) -> list[list[float]]:
        script = (
            "document.querySelector('#ratio-chart .isx-plot').data.filter(t => t.type === 'bar').map(t => [...t.y])"
        )
        return self.page.evaluate(script)

    def drag(self, percent: int) -> None:
        """Move the slider as a finger would, and wait for other bars."""
        before = json.dumps(self.bars())
        self.page.locator("#sparsity input[type=range]").evaluate(
            """(range, value) => {
                Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(range, value);
                range.dispatchEvent(new Event('input', { bubbles: true }));
            }""",
            percent,
        )
        script = """before => JSON.stringify(document.querySelector('#ratio-chart .isx-plot').data
            .filter(t => t.type === 'bar').map(t => [...t.y])) !== before"""
        self.page.wait_for_function(script, arg=json.dumps(json.loads(before), separators=(",", ":")), timeout=PATIENCE)


@pytest.fixture(scope="module")
def session() -> Session:
    return SnapshotSession()


@pytest.fixture(scope="module")
def address(session: Session) -> Iterator[str]:
    page = build_app(session)
    page.queue()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **look.launch_options())
    yield url.rstrip("/")
    page.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Opens the page; at the end nothing may have gone wrong on it."""
    opened = []

    def open_page(query: str = "", width: int = 1440, height: int = 900, **options) -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        visitor = Opened(context.new_page())
        page, faults = visitor.page, visitor.faults
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: _is_foreign(request.url) and faults.append(f"asked for {request.url}"))
        page.goto(address + query, timeout=PATIENCE)
        page.wait_for_selector(".js-plotly-plot .main-svg", timeout=PATIENCE, state="attached")
        opened.append((context, visitor))
        return visitor

    yield open_page
    for context, visitor in opened:
        context.close()
        assert visitor.faults == []


def _is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:"))


def ratios(session: Session, percent: int, estimator: str = "pca") -> list[list[float]]:
    """What the library says of the snapshot's profile."""
    profile = session._source(calibration_key(Settings())).profile
    layers = make_plan(profile, slice_config(Settings(sparsity=percent, estimator=estimator))).layers
    return [[layer.attention_ratio for layer in layers], [layer.mlp_ratio for layer in layers]]


def close(first: list[list[float]], second: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, rel=1e-4, abs=1e-6) for a, b in zip(first, second, strict=True))


def test_dragging_the_slider_draws_the_librarys_ratios(visit, session) -> None:
    opened = visit()
    assert close(opened.bars(), ratios(session, 30))
    for percent in (45, 12):
        opened.drag(percent)
        assert close(opened.bars(), ratios(session, percent))
        assert f"{percent}" in opened.page.inner_text("#removed")


def test_zoom_survives_the_slider(visit) -> None:
    opened = visit()
    axis = "document.querySelector('#ratio-chart .isx-plot').layout.xaxis2.range"
    whole = opened.page.evaluate(axis)
    box = opened.page.locator("#ratio-chart .nsewdrag").first.bounding_box()
    middle = box["y"] + box["height"] / 2
    opened.page.mouse.move(box["x"] + 0.2 * box["width"], middle)
    opened.page.mouse.down()
    opened.page.mouse.move(box["x"] + 0.6 * box["width"], middle, steps=8)
    opened.page.mouse.up()
    opened.page.wait_for_function(
        f"before => JSON.stringify({axis}) !== before", arg=json.dumps(whole, separators=(",", ":")), timeout=PATIENCE
    )
    zoomed = opened.page.evaluate(axis)
    opened.drag(50)
    assert opened.page.evaluate(axis) == zoomed


def test_a_click_and_the_arrow_keys_choose_a_layer(visit) -> None:
    page = visit().page
    box = page.locator("#ratio-chart .nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 12.6 / 30, box["y"] + box["height"] / 2, steps=4)
    page.mouse.click(box["x"] + box["width"] * 12.6 / 30, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "document.querySelector('#importance-chart .isx-title').textContent.includes('layer 12')", timeout=PATIENCE
    )
    page.focus("#ratio-chart .isx-plot")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "document.querySelector('#importance-chart .isx-title').textContent.includes('layer 13')", timeout=PATIENCE
    )
    assert "layer=13" in page.url


def test_colours_follow_the_theme_live(visit) -> None:
    page = visit("/?__theme=light").page
    colour = "document.querySelector('#ratio-chart .isx-plot').data[0].marker.color"
    light = page.evaluate(colour)
    page.evaluate("document.body.classList.add('dark')")
    page.wait_for_function(f"{colour} !== '{light}'", timeout=PATIENCE)


def test_a_link_opens_the_same_view_and_an_address_follows_the_view(visit, session) -> None:
    opened = visit("/?sparsity=44&estimator=fisher&tab=compare&prompt=Hello%20there")
    page = opened.page
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'Hello there'", timeout=PATIENCE)
    assert page.get_attribute("#tabs button[role=tab] >> text=Compare", "aria-selected") == "true"
    page.click("#tabs button[role=tab] >> text=Ratios")
    page.wait_for_selector("#ratio-chart .main-svg", timeout=PATIENCE)
    page.wait_for_function(
        "document.querySelector('#ratio-chart .isx-note').textContent.includes('Bars: Fisher')", timeout=PATIENCE
    )
    assert close(opened.bars(), ratios(session, 44, "fisher"))
    opened.drag(20)
    page.wait_for_function("location.search.includes('sparsity=20')", timeout=PATIENCE)
    assert "tab=" not in page.url


def test_a_small_screen_keeps_the_slider_and_scrolls_only_down(visit) -> None:
    page = visit(width=390, height=844).page
    page.wait_for_function("!document.querySelector('#controls.open')", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.evaluate("document.querySelector('#importance-chart').scrollIntoView()")
    page.wait_for_timeout(300)
    top = page.locator("#sparsity").bounding_box()["y"]
    assert 0 <= top < 200


def test_embedding_hides_the_controls(visit) -> None:
    page = visit("/?embed=1").page
    assert not page.is_visible("#controls")
    assert page.is_visible("#sparsity")


def test_the_table_says_what_the_bars_say(visit, session) -> None:
    page = visit().page
    page.click("#ratio-chart .isx-twin summary")
    row = page.locator("#ratio-chart tbody tr").nth(7)
    row.wait_for(timeout=PATIENCE)
    cells = row.locator("td").all_inner_texts()
    assert cells[0] == "7"
    assert cells[1] == f"{ratios(session, 30)[0][7]:.1%}"


def test_a_chart_saves_as_an_image(visit) -> None:
    page = visit().page
    with page.expect_download(timeout=PATIENCE) as download:
        page.click("#ratio-chart .isx-png")
    assert download.value.suggested_filename.endswith(".png")


@pytest.fixture
def real_app() -> Iterator[str]:
    """`python app.py` with the default model, in a process of its own: no test's type checks slow it down."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port)}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=Path(__file__).parent.parent, env=environment)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        app.terminate()
        app.wait()


@pytest.mark.slow
def test_slider_to_pixels(chromium, real_app, capsys) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(real_app)
    page.wait_for_function(
        "/perplexity [0-9.]+ → [0-9]/.test(document.querySelector('#headline')?.innerText)", timeout=600_000
    )
    times = page.evaluate(
        """async () => {
            const plot = document.querySelector('#ratio-chart .isx-plot');
            const range = document.querySelector('#sparsity input[type=range]');
            const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
            const times = [];
            for (let move = 0; move < 50; move++) {
                const start = performance.now();
                const drawn = new Promise((done) => plot.once('plotly_afterplot', done));
                set.call(range, 20 + ((move * 7) % 30));
                range.dispatchEvent(new Event('input', { bubbles: true }));
                await drawn;
                await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
                times.push(performance.now() - start);
                await new Promise((done) => setTimeout(done, 120));
            }
            return times;
        }"""
    )
    times.sort()
    with capsys.disabled():
        print(f"\nslider to pixels: median {statistics.median(times):.0f} ms, 95th percentile {times[47]:.0f} ms")
    assert statistics.median(times) < 100
    assert times[47] < 250
