"""A published page in a real browser, from the disk, without a network: nothing is asked for, the slider moves all."""

from pathlib import Path

import pytest
from browsing import PATIENCE
from tiny_page import in_job, publisher

from components.export.published import html
from components.export.published.views import Choice
from intraslice.__main__ import main

CHOICE = Choice((0, 30, 60), ("w10 w20 w30", "w7 w8"), 6)
BARS = "document.querySelector('#ratios .isx-plot').data.filter(t => t.type === 'bar').map(t => [...t.y])"
MARK = "document.querySelector('#sweep .isx-plot').layout?.shapes.at(-1).x0"


@pytest.fixture(scope="module")
def published(page_session, tiny):
    return in_job(page_session, publisher(page_session).publish, tiny, CHOICE)


@pytest.fixture(scope="module")
def file(published, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("published") / "tiny.html"
    path.write_text(html.page(published), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def offline(chromium):
    """A context without a network; one for all tests, since a new one would compile the scripts again."""
    with chromium.new_context(offline=True) as context:
        context.set_default_timeout(PATIENCE)
        context.new_page().goto("file:///dev/null")  # keeps the process
        yield context


@pytest.fixture
def opened(offline, file):
    """Opens a file offline; at the end nothing else was asked for, and nothing went wrong."""
    pages, asked, faults = [], [], []

    def open_page(address: str = "", width: int = 1440, scheme: str = "light"):
        pages.append(page := offline.new_page())
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(address or file.as_uri())
        page.wait_for_selector("#ratios .main-svg")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert faults == []
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {file.as_uri()}


def until(page, condition: str) -> None:
    """Wait for it; playwright's own waiting evaluates strings, which the file's policy forbids."""
    for _ in range(PATIENCE // 100):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"never: {condition}")


def close(first: list[list[float]], second: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, rel=1e-4, abs=1e-6) for a, b in zip(first, second, strict=True))


def ratios(step) -> list[list[float]]:
    return [[getattr(layer, module) for layer in step.plan.layers] for module in ("attention", "mlp")]


def test_the_slider_moves_everything_by_keyboard(opened, published) -> None:
    page = opened()
    assert close(page.evaluate(BARS), ratios(published.steps[1]))
    before = {part: page.inner_text(part) for part in ("#headline", "#numbers", "#answers", "#removed")}
    page.focus("#share")
    page.keyboard.press("ArrowRight")
    until(page, f"{MARK} > 0.5")
    assert close(page.evaluate(BARS), ratios(published.steps[2]))
    assert all(page.inner_text(part) != words for part, words in before.items())
    assert page.get_attribute("#share", "aria-valuetext").startswith("60%, perplexity")
    assert f"{published.steps[2].perplexities.sliced:.1f}" in page.inner_text("#headline")
    page.keyboard.press("Home")
    assert "Nothing is removed" in page.inner_text("#headline")


def test_layers_prompts_and_points_are_chosen(opened, published, file) -> None:
    page = opened(f"{file.as_uri()}#58")
    assert page.inner_text("#percent") == "60%"  # the nearest step to the address's
    page.select_option("#layer", "2")
    assert "layer 2" in page.inner_text("#spectra .isx-title")
    page.focus("#ratios .isx-plot")
    page.keyboard.press("ArrowLeft")
    assert "layer 1" in page.inner_text("#spectra .isx-title")
    assert page.input_value("#layer") == "1"
    page.select_option("#prompt", "1")
    assert published.steps[2].answers[1]["dense"].text in page.inner_text("#answers")
    page.click("#sweep .isx-twin summary")
    page.click("#sweep .isx-pick >> nth=0")
    assert page.input_value("#share") == "1"


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_a_small_screen_the_readers_lights_and_paper(opened, scheme) -> None:
    page = opened(width=390, scheme=scheme)
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
    assert 4_000_000 < file.stat().st_size < html.MAX_BYTES
    page = chromium.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("#ratios .main-svg")
    assert "SmolLM2" in page.inner_text("h1")
    assert len(page.evaluate(BARS)[0]) == 30
    page.focus("#share")
    page.keyboard.press("Home")
    until(page, f"{BARS}.flat().every(y => y === 0)")
    page.close()
