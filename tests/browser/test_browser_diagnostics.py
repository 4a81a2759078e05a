"""The Spectra and Activations tabs in a real browser, before any model is loaded."""

import json

from components.activations.snapshot import shift
from components.state.request import parse
from components.state.session import Session
from components.state.settings import Settings

GONE = """wanted => {
    const { x, y } = document.querySelector('#rank-chart .isx-plot').data.find(trace => trace.name === 'head goes');
    return JSON.stringify(x.map((layer, index) => [layer, y[index]])) === wanted;
}"""
NEURONS = """words => document.querySelector('#variance-chart .isx-plot').layout.annotations
    .some(one => one.text.includes(words))"""


def test_marks_on_the_spectra_follow_the_slider(visit, page_session: Session) -> None:
    opened = visit("/?tab=spectra&layer=17")
    page = opened.page
    page.wait_for_selector("#rank-chart .main-svg")
    for percent in (50, 20):
        opened.slide(percent)
        plan = page_session.slice_plan(parse(Settings(sparsity=percent))).layers
        gone = [[layer, head] for layer, own in enumerate(plan) for head in range(9) if head not in own.heads]
        page.wait_for_function(GONE, arg=json.dumps(gone, separators=(",", ":")))
        page.wait_for_function(NEURONS, arg=f"{plan[17].neurons:,} of 1,536 neurons stay")


def test_a_layer_chosen_on_one_tab_is_shown_on_the_other(visit) -> None:
    page = visit("/?tab=activations").page
    page.wait_for_selector("#shift-chart .main-svg")
    page.focus("#shift-chart .isx-plot")
    page.keyboard.press("End")
    title = "document.querySelector('#{}-chart .isx-title').textContent.includes('layer 29')"
    page.wait_for_function(title.format("histogram"))
    kept = shift().methods["crossmodule"].places["residual"][29]
    cells = page.locator("#histogram-chart tbody tr").nth(2).locator("td")
    page.wait_for_function(
        "wanted => document.querySelector('#histogram-chart tbody').textContent.includes(wanted)",
        arg=f"{kept.error:.1%}",
    )
    assert cells.all_inner_texts()[:2] == ["Residual stream", "Cross-module"]
    page.click("#tabs button[role=tab] >> text=Spectra")
    page.wait_for_function(title.format("variance"))
