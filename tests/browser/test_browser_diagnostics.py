"""The Spectra and Activations tabs in a real browser, before any model is loaded."""

import json

import pytest
from browsing import CHROMIUM, PATIENCE, Opened

from components.activations.snapshot import shift
from components.state.session import Session
from components.state.settings import Settings

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]

GONE = """wanted => {
    const { x, y } = document.querySelector('#rank-chart .isx-plot').data.find(trace => trace.name === 'head goes');
    return JSON.stringify(x.map((layer, index) => [layer, y[index]])) === wanted;
}"""


def slide(opened: Opened, percent: int) -> None:
    """Move the slider as a finger would, on any tab."""
    opened.page.locator("#sparsity input[type=range]").evaluate(
        """(range, value) => {
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(range, value);
            range.dispatchEvent(new Event('input', { bubbles: true }));
        }""",
        percent,
    )


def test_marks_on_the_spectra_follow_the_slider(visit, snapshot_session: Session) -> None:
    opened = visit("/?tab=spectra&layer=17")
    page = opened.page
    page.wait_for_selector("#rank-chart .main-svg", timeout=PATIENCE)
    for percent in (50, 20):
        slide(opened, percent)
        plan = snapshot_session.slice_plan(Settings(sparsity=percent)).layers
        gone = [[layer, head] for layer, own in enumerate(plan) for head in range(9) if head not in own.heads]
        page.wait_for_function(GONE, arg=json.dumps(gone, separators=(",", ":")), timeout=PATIENCE)
        words = f"{plan[17].neurons:,} of 1,536 neurons stay"
        page.wait_for_function(
            """words => document.querySelector('#variance-chart .isx-plot').layout.annotations
                .some(one => one.text.includes(words))""",
            arg=words,
            timeout=PATIENCE,
        )


def test_a_layer_chosen_on_one_tab_is_shown_on_the_other(visit) -> None:
    page = visit("/?tab=activations").page
    page.wait_for_selector("#shift-chart .main-svg", timeout=PATIENCE)
    page.focus("#shift-chart .isx-plot")
    page.keyboard.press("End")
    title = "document.querySelector('#{}-chart .isx-title').textContent.includes('layer 29')"
    page.wait_for_function(title.format("histogram"), timeout=PATIENCE)
    kept = shift().methods["crossmodule"].places["residual"][29]
    cells = page.locator("#histogram-chart tbody tr").nth(2).locator("td")
    page.wait_for_function(
        "wanted => document.querySelector('#histogram-chart tbody').textContent.includes(wanted)",
        arg=f"{kept.error:.1%}",
        timeout=PATIENCE,
    )
    assert cells.all_inner_texts()[:2] == ["Residual stream", "Cross-module"]
    page.click("#tabs button[role=tab] >> text=Spectra")
    page.wait_for_function(title.format("variance"), timeout=PATIENCE)


@pytest.mark.parametrize("tab", ["spectra", "activations"])
def test_a_small_screen_scrolls_only_down(visit, tab: str) -> None:
    page = visit(f"/?tab={tab}", width=390, height=844).page
    page.wait_for_selector(f"#{'variance' if tab == 'spectra' else 'shift'}-chart .main-svg", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
