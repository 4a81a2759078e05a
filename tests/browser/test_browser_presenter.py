"""Presenter mode in a real browser: one chart a screen, the slider below it, the arrows go on; and the list of keys."""

import pytest
from browsing import Opened

STOPS = [
    *("#anatomy-chart", "#layer-chart", "#ratio-chart", "#importance-chart", "#estimator-check-chart"),
    *("#search-chart", "#convergence-chart", "#variance-chart", "#rank-chart", "#pair-chart", "#shift-chart"),
    *("#histogram-chart", "#answers", "#next-tokens", "#passage", "#facts-chart", "#leaderboard-chart"),
    *("#leaderboard-accuracy-chart", "#leaderboard-speed-chart", "#leaderboard-size-chart"),
]
LATE = """(selector) => {
    const element = document.querySelector(selector), text = element.textContent;
    element.textContent = "";
    setTimeout(() => (element.textContent = text), 300);
}"""
INSIDE = """(selector) => {
    const visible = (one) => one && getComputedStyle(one).visibility === 'visible' && one.offsetParent !== undefined;
    const inside = (one) => {
        const box = one.getBoundingClientRect();
        return box.width > 0 && box.height > 0 && box.left >= 0 && box.top >= 0 && box.right <= innerWidth + 1
            && box.bottom <= innerHeight + 1;
    };
    const stage = document.querySelector(selector)?.closest('.isx-stage');
    if (!stage || !visible(stage)) return false;
    const shown = stage.querySelector('.isx-chart') ?? stage;
    const plot = stage.querySelector('.isx-plot');
    const bar = document.querySelector('#slider-bar');
    const headline = document.querySelector('#headline');
    return inside(shown) && inside(bar) && inside(headline) && (!plot || (inside(plot) && plot.clientHeight > 200))
        && (!plot || plot.querySelector('canvas, table, figure')
            || (plot._fullLayout?.width === plot.clientWidth && plot._fullLayout.height === plot.clientHeight))
        && headline.scrollHeight <= headline.clientHeight + 1
        && shown.getBoundingClientRect().bottom <= bar.getBoundingClientRect().top + 1
        && headline.getBoundingClientRect().bottom <= shown.getBoundingClientRect().top + 1
        && document.documentElement.scrollWidth <= innerWidth;
}"""


@pytest.fixture(scope="module")
def pinned(visit_once) -> Opened:
    """A page with a pinned setting, whose notes are longer."""
    opened = visit_once("/?sparsity=45&pinned=sparsity%3D20", 1280, 720)
    opened.page.wait_for_selector("body.isx-pinned")  # the link is read, which chooses a tab
    return opened


@pytest.mark.parametrize(("width", "height"), [(1280, 720), pytest.param(1920, 1080, marks=pytest.mark.slow)])
def test_the_arrows_lead_through_all_charts_one_a_screen(pinned, width, height) -> None:
    page = pinned.page
    page.set_viewport_size({"width": width, "height": height})
    pinned.open_tab("ratios")
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    pinned.hurry(50, 1000)  # a busy machine takes its time to fill a tab
    page.keyboard.press("p")
    for stop in STOPS:
        pinned.until(INSIDE, arg=stop)
        assert page.locator(".isx-stage").count() == 1
        if stop == STOPS[-1]:
            pinned.hurry(50, 5)  # between the looks at tabs that stay empty
        if stop == "#passage":  # the tab's last chart comes late
            pinned.until("document.querySelector('#facts-chart .isx-title').textContent")
            page.evaluate(LATE, "#facts-chart .isx-title")
        page.keyboard.press("ArrowRight")
    # Export has nothing to show: it comes back.
    page.wait_for_selector("#export-about", state="attached")
    pinned.until(INSIDE, arg=STOPS[-1])
    for stop in STOPS[-2:-5:-1]:
        page.keyboard.press("PageUp")
        pinned.until(INSIDE, arg=stop)
    assert not page.is_visible("#controls")
    page.keyboard.press("Escape")
    assert page.locator(".isx-stage").count() == 0
    page.wait_for_selector("#controls")


def test_the_slider_and_fields_keep_their_keys_and_all_keys_are_listed(pinned) -> None:
    opened, page = pinned, pinned.page
    page.set_viewport_size({"width": 1280, "height": 720})
    opened.open_tab("ratios")
    page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    page.click("#present")
    for stop in STOPS[:2]:
        opened.until(INSIDE, arg=stop)
        page.keyboard.press("ArrowRight")
    opened.until(INSIDE, arg="#ratio-chart")
    opened.drag(50)
    slider = page.locator("#sparsity input[type=range]")
    box = slider.bounding_box()
    opened.moved_by(lambda: slider.click(position={"x": box["width"] / 3, "y": box["height"] / 2}))
    page.keyboard.press("ArrowRight")  # the slider has given the focus back
    opened.until(INSIDE, arg="#importance-chart")
    page.focus("#sparsity input[type=range]")
    before = page.inner_text("#removed")
    page.keyboard.press("ArrowRight")  # the focused slider's own
    opened.until("before => document.querySelector('#removed').innerText !== before", arg=before)
    opened.until(INSIDE, arg="#importance-chart")
    page.keyboard.press("Escape")

    opened.open_tab("compare")
    page.fill("#prompt textarea", "")
    page.type("#prompt textarea", "pa?")
    assert page.input_value("#prompt textarea") == "pa?"
    assert page.locator(".isx-stage, dialog[open]").count() == 0
    page.locator("#prompt textarea").blur()
    page.keyboard.press("?")
    page.wait_for_selector("dialog.isx-keys[open]")
    assert "Presenter mode" in page.inner_text(".isx-keys")
    page.uncheck(".isx-keys input")
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.locator("body").evaluate("body => document.activeElement.blur()")
    page.keyboard.press("p")
    assert page.locator("body.isx-present").count() == 0  # single keys are turned off
    page.click("#keys")
    page.check(".isx-keys input")
    page.click(".isx-keys button")
    page.locator("body").evaluate("body => document.activeElement.blur()")
    page.keyboard.press("p")
    opened.until(INSIDE, arg="#answers")
