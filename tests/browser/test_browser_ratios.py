"""The Ratios tab in a real browser: ratios by hand, the other controls, the tour; what axe-core finds on every tab."""

import pytest
from browsing import NOT_OURS, Opened

from components.state.request import parse
from components.state.settings import Settings
from components.tabs import TABS
from intraslice.planning.ratios import make_plan

from .test_browser_page import close, ratios

NOTE = "#ratio-chart .isx-note"


def unfold_overrides(page) -> None:
    page.click("#overrides summary")
    page.locator("#overrides tbody tr").nth(29).wait_for()


def cell(page, layer: int, module: str, what: str):
    return page.get_by_label(f"Layer {layer}, {module}: {what}", exact=True)


def test_a_ratio_typed_by_hand_stays_and_the_others_make_up_for_it(visit, page_session) -> None:
    opened = visit()
    page = opened.page
    unfold_overrides(page)
    before = opened.bars()
    cell(page, 7, "attention", "per cent removed").fill("40")
    cell(page, 7, "attention", "per cent removed").press("Enter")
    opened.says(NOTE, "By hand")
    assert close(opened.bars(), ratios(page_session, locked="7 attention 40"))
    assert cell(page, 7, "attention", "locked").is_checked()
    opened.addressed("locked=7+attention+40")
    assert "30.0%" in page.inner_text("#removed")
    opened.drag(40)
    assert opened.bars()[0][7] == pytest.approx(0.4)
    assert "40.0%" in page.inner_text("#removed")
    opened.drag(30)
    opened.moved_by(lambda: page.click("#overrides .isx-unlock"))  # the note comes before the bars
    opened.says(NOTE, "PCA-aware")
    assert close(opened.bars(), before)
    page.wait_for_function("!location.search.includes('locked')")

    opened.drag(1)
    opened.says("#removed", "1.0%")
    before = opened.bars()
    cell(page, 3, "MLP", "per cent removed").fill("90")
    cell(page, 3, "MLP", "per cent removed").press("Enter")
    opened.says("#overrides-problem", "unlock some")
    assert opened.bars() == before
    assert "locked" not in page.url


def test_the_bias_is_found_until_it_is_given_and_shapes_are_a_runtimes(visit, page_session) -> None:
    opened = visit()
    page, auto = opened.page, opened.page.locator("#bias-auto input")
    before, slider = opened.bars(), page.locator("#bias input[type=range]")
    assert auto.is_checked()
    usual = make_plan(page_session.source(parse(Settings())).profile, parse(Settings()).slicing)
    assert float(slider.input_value()) == pytest.approx(usual.reasons.bias, abs=0.03)
    opened.drag(0.8, "#bias")
    assert close(opened.bars(), ratios(page_session, bias=0.8))
    assert not auto.is_checked()
    opened.addressed("bias=0.8")
    opened.moved_by(auto.check)
    assert close(opened.bars(), before)
    page.wait_for_function("!location.search.includes('bias')")
    assert float(slider.input_value()) == pytest.approx(usual.reasons.bias, abs=0.03)

    opened.moved_by(lambda: page.get_by_label("Runtime", exact=True).check())
    assert close(opened.bars(), ratios(page_session, shapes="runtime"))
    opened.addressed("shapes=runtime")
    assert "blocks of 32 neurons" in page.inner_text("#importance-chart")


def test_a_link_carries_locks_bias_and_shapes(visit, page_session) -> None:
    opened = visit("/?locked=7+attention+25,+3+mlp+0&bias=1.4&shapes=runtime")
    page = opened.page
    opened.says(NOTE, "By hand")
    opened.says("#importance-chart", "blocks of 32 neurons")
    chosen = {"locked": "7 attention 25, 3 mlp 0", "bias": 1.4, "shapes": "runtime"}
    assert close(opened.bars(), ratios(page_session, **chosen))
    assert page.get_by_label("Runtime", exact=True).is_checked()
    assert not page.locator("#bias-auto input").is_checked()
    assert page.locator("#bias input[type=range]").input_value() == "1.4"
    unfold_overrides(page)
    assert cell(page, 3, "MLP", "locked").is_checked()
    assert "2 locked" in page.inner_text("#overrides summary")


def test_the_tour_leads_through_the_page_and_gives_it_back(visit) -> None:
    opened = visit(width=390, height=844)
    page = opened.page
    page.wait_for_function("!document.querySelector('#controls.open')")
    assert page.locator(".isx-tour").count() == 0
    page.click("#tour")
    titles = []
    for step in range(1, 7):
        page.wait_for_function(f"document.querySelector('.isx-tour span').textContent === '{step} of 6'")
        page.wait_for_selector(".isx-spot", state="visible")
        titles.append(page.inner_text(".isx-tour h3"))
        assert page.evaluate("document.activeElement.id") == "isx-tour-title"
        card = page.locator(".isx-tour").bounding_box()
        assert card["x"] >= 0
        assert card["x"] + card["width"] <= 390
        assert card["y"] + card["height"] <= 844
        if step == 1:
            opened.says("#removed", "45.0%")
        if step < 6:
            page.click(".isx-tour [data-go=on]")
    assert len(set(titles)) == 6
    page.wait_for_selector("#asking", state="visible")
    opened.addressed("tab=compare")
    page.click(".isx-tour [data-go=back]")
    page.wait_for_function("document.querySelector('.isx-tour span').textContent === '5 of 6'")
    page.keyboard.press("Escape")
    assert page.locator(".isx-tour, .isx-spot").count() == 0
    assert page.evaluate("document.activeElement.id") == "tour"


def found_by_axe(opened: Opened, include: str) -> list[str]:
    """Serious violations within an element."""
    results = opened.page.evaluate(
        "([include, exclude]) => axe.run({ include, exclude }, { resultTypes: ['violations'] })", [[include], NOT_OURS]
    )
    return [
        f"{violation['id']}: {[(node['target'], node['failureSummary'][:200]) for node in violation['nodes'][:5]]}"
        for violation in results["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])  # dark has less contrast
def test_axe_finds_nothing_serious_on_any_tab(visit, axe, theme) -> None:
    opened = visit(f"/?__theme={theme}")
    opened.page.evaluate(axe)
    opened.page.evaluate("document.querySelectorAll('.isx-fold').forEach((one) => (one.open = true))")
    found = {}
    for tab in TABS:
        opened.open_tab(tab)
        found[tab] = found_by_axe(opened, "body" if tab == "ratios" else "#tabs")
    assert found == {tab: [] for tab in TABS}
