"""The real page in a real browser: the slider moves the bars, no foreign host is asked, no error is logged."""

import json
import statistics

import pytest
from browsing import CHROMIUM, PATIENCE

from components.state.keys import slice_config
from components.state.session import Session
from components.state.settings import Settings
from intraslice.planning.ratios import make_plan

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]


def ratios(session: Session, percent: int, estimator: str = "pca") -> list[list[float]]:
    """What the library says of the snapshot's profile."""
    profile = session.source(Settings()).profile
    layers = make_plan(profile, slice_config(Settings(sparsity=percent, estimator=estimator))).layers
    return [[layer.attention_ratio for layer in layers], [layer.mlp_ratio for layer in layers]]


def close(first: list[list[float]], second: list[list[float]]) -> bool:
    return all(a == pytest.approx(b, rel=1e-4, abs=1e-6) for a, b in zip(first, second, strict=True))


def test_dragging_the_slider_draws_the_librarys_ratios(visit, snapshot_session) -> None:
    opened = visit()
    assert close(opened.bars(), ratios(snapshot_session, 30))
    for percent in (45, 12):
        opened.drag(percent)
        assert close(opened.bars(), ratios(snapshot_session, percent))
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


def test_a_link_opens_the_same_view_and_an_address_follows_the_view(visit, snapshot_session) -> None:
    opened = visit("/?sparsity=44&estimator=fisher&tab=compare&prompt=Hello%20there")
    page = opened.page
    page.wait_for_function("document.querySelector('#prompt textarea')?.value === 'Hello there'", timeout=PATIENCE)
    assert page.get_attribute("#tabs button[role=tab] >> text=Compare", "aria-selected") == "true"
    page.click("#tabs button[role=tab] >> text=Ratios")
    page.wait_for_selector("#ratio-chart .main-svg", timeout=PATIENCE)
    page.wait_for_function(
        "document.querySelector('#ratio-chart .isx-note').textContent.includes('Bars: Fisher')", timeout=PATIENCE
    )
    assert close(opened.bars(), ratios(snapshot_session, 44, "fisher"))
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


def test_the_table_says_what_the_bars_say(visit, snapshot_session) -> None:
    page = visit().page
    page.click("#ratio-chart .isx-twin summary")
    row = page.locator("#ratio-chart tbody tr").nth(7)
    row.wait_for(timeout=PATIENCE)
    cells = row.locator("td").all_inner_texts()
    assert cells[0] == "7"
    assert cells[1] == f"{ratios(snapshot_session, 30)[0][7]:.1%}"


def test_a_chart_saves_as_an_image(visit) -> None:
    page = visit().page
    with page.expect_download(timeout=PATIENCE) as download:
        page.click("#ratio-chart .isx-png")
    assert download.value.suggested_filename.endswith(".png")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tab", "chart", "limit"), [("ratios", "#ratio-chart", 100), ("spectra", "#variance-chart", 130)]
)
def test_slider_to_pixels(chromium, real_app, capsys, tab, chart, limit) -> None:
    page = chromium.new_page(viewport={"width": 1440, "height": 900})
    page.goto(f"{real_app}/?tab={tab}")
    page.wait_for_function(
        "/perplexity [0-9.]+ → [0-9]/.test(document.querySelector('#headline')?.innerText)", timeout=600_000
    )
    times = page.evaluate(
        """async (chart) => {
            const plot = document.querySelector(`${chart} .isx-plot`);
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
        }""",
        chart,
    )
    times.sort()
    with capsys.disabled():
        print(
            f"\n{tab}, slider to pixels: median {statistics.median(times):.0f} ms, 95th percentile {times[47]:.0f} ms"
        )
    assert statistics.median(times) < limit
    assert times[47] < 250
