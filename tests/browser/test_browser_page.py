"""The page in a real browser: the slider moves the charts, links and layers, small screens, a server that restarts."""

import json

import pytest
from browsing import PATIENCE, Opened
from playwright.sync_api import expect

from components.activations.measure import ShiftViews
from components.estimator.measure import EstimatorCheckCache
from components.state.session import Session
from components.tabs import TABS
from intraslice.planning.ratios import make_plan

COLOUR = "document.querySelector('#ratio-chart .isx-plot').data[0].marker.color"
ZOOM = "document.querySelector('#ratio-chart .isx-plot').layout.xaxis2.range"
GONE = """wanted => {
    const { x, y } = document.querySelector('#rank-chart .isx-plot').data.find(trace => trace.name === 'head removed');
    return JSON.stringify(x.map((layer, index) => [layer, y[index]])) === wanted;
}"""
TYPED = """(field, typed) => {
    field.value = typed;
    for (const type of ['input', 'change']) field.dispatchEvent(new Event(type, { bubbles: true }));
}"""
ARRIVED = """document.querySelector('#estimator-check-chart').getBoundingClientRect().top.toFixed()
    === (document.querySelector('#slider-bar').offsetHeight + 20).toFixed()"""
NEURONS = """words => document.querySelector('#variance-chart .isx-plot').layout.annotations
    .some(one => one.text.includes(words))"""


def ratios(session: Session, **settings: object) -> list[list[float]]:
    """What the library says of the snapshot's profile."""
    request = session.opening.with_settings(**settings)
    layers = make_plan(session.source(request).profile, request.slicing).layers
    return [[layer.attention_ratio for layer in layers], [layer.mlp_ratio for layer in layers]]


def test_dragging_the_slider_draws_the_librarys_ratios(plain, page_session, tmp_path) -> None:
    opened, page = plain, plain.page
    opened.settle_at(30)
    for percent in (45, 12):
        opened.slide(percent)
        expected = ratios(page_session, sparsity=percent)
        opened.draws(expected)
        opened.says("#removed", f"target{percent}.0%")
    with page.expect_request("**/queue/join*"):  # a key lets go as the hand does, and the setting is measured
        opened.moved_by(lambda: page.press("#sparsity input[type=range]", "ArrowRight"))
    opened.drag(12)

    page.click("#ratio-chart .isx-twin summary")
    opened.says("#ratio-chart tbody tr:nth-child(8)", f"{expected[0][7]:.1%}")
    cells = page.locator("#ratio-chart tbody tr").nth(7).locator("td").all_inner_texts()
    assert cells[:2] == ["7", f"{expected[0][7]:.1%}"]

    assert opened.download("#ratio-chart .isx-png", tmp_path / "chart").endswith(".png")

    light = page.evaluate(COLOUR)
    page.evaluate("document.body.classList.add('dark')")
    opened.until(f"{COLOUR} !== '{light}'")
    page.evaluate("document.body.classList.remove('dark')")
    opened.until(f"{COLOUR} === '{light}'")


def test_a_number_that_a_slider_does_not_have_becomes_its_end_or_the_one_before(plain) -> None:
    for typed, percent in (("150", 60), ("-3", 0), ("", 0), ("30", 30)):
        plain.page.eval_on_selector("#sparsity input[type=number]", TYPED, typed)
        expect(plain.page.locator("#sparsity input[type=number]")).to_have_value(str(percent))
        plain.says("#removed", f"target{percent}.0%")


def test_a_layer_is_chosen_by_click_and_by_key_and_zoom_survives_the_slider(plain, page_session) -> None:
    opened, page = plain, plain.page
    opened.settle_at(30)
    area = page.locator("#ratio-chart .nsewdrag").first
    box = area.bounding_box()
    spot = {"x": box["width"] * 12.6 / 30, "y": box["height"] / 2}
    area.hover(position=spot)
    area.click(position=spot)
    opened.says("#importance-chart .isx-title", "layer 12")
    page.focus("#ratio-chart .isx-plot")
    page.keyboard.press("ArrowRight")
    opened.says("#importance-chart .isx-title", "layer 13")
    opened.addressed("layer=13")

    whole = page.evaluate(ZOOM)
    area.hover(position={"x": 0.2 * box["width"], "y": spot["y"]})
    page.mouse.down()
    area.hover(position={"x": 0.6 * box["width"], "y": spot["y"]}, force=True)  # plotly covers the page while it drags
    page.mouse.up()
    opened.until(f"before => JSON.stringify({ZOOM}) !== before", arg=json.dumps(whole, separators=(",", ":")))
    zoomed = page.evaluate(ZOOM)
    opened.drag(50)
    assert page.evaluate(ZOOM) == zoomed

    page.emulate_media(reduced_motion="reduce")
    page.evaluate("location.hash = 'verdict-chart'")  # a link from before there was the tab Estimator
    opened.until(ARRIVED)
    page.wait_for_selector("#estimator-check-chart .main-svg")
    opened.click_point("#estimator-check-chart", trace=0, index=27)
    opened.says("#importance-chart .isx-title", "layer 27")
    page.locator("#estimator").get_by_label("PCA-aware").check()
    view = EstimatorCheckCache(page_session).cached(page_session.opening)
    misjudged = [module.layer for module in view.agreement.misjudged if module.estimator == "pca"]
    assert misjudged
    opened.says("#estimator-check-words", *(f"layer {layer}'s" for layer in misjudged))
    page.locator("#estimator").get_by_label("Output error").check()


def test_a_layer_chosen_on_one_tab_is_shown_on_the_other_whose_marks_follow_the_slider(plain, page_session) -> None:
    opened, page = plain, plain.page
    opened.open_tab("activations")
    page.wait_for_selector("#shift-chart .main-svg")
    page.focus("#shift-chart .isx-plot")
    page.keyboard.press("End")
    opened.says("#histogram-chart .isx-title", "layer 29")
    shift = ShiftViews(page_session).exact_view(page_session.opening)
    opened.says("#histogram-chart tbody", f"{shift.methods['crossmodule'].places['residual'][29].error:.1%}")
    cells = page.locator("#histogram-chart tbody tr").nth(2).locator("td")
    assert cells.all_inner_texts()[:2] == ["Residual stream", "Cross-module"]
    page.click("#tabs button[role=tab] >> text=Spectra")
    opened.says("#variance-chart .isx-title", "layer 29")
    page.wait_for_selector("#rank-chart .main-svg")
    for percent in (50, 20):
        opened.slide(percent)
        plan = page_session.slice_plan(page_session.opening.with_settings(sparsity=percent)).layers
        gone = [[layer, head] for layer, own in enumerate(plan) for head in range(9) if head not in own.heads]
        opened.until(GONE, arg=json.dumps(gone, separators=(",", ":")))
        opened.until(NEURONS, arg=f"{plan[29].neurons:,} of 1,536 neurons kept")


def test_a_control_that_has_the_focus_has_a_ring_that_nothing_cuts_off(plain) -> None:
    page = plain.page
    ring = """() => {
        const input = document.activeElement;
        const { outlineStyle, outlineColor, outlineOffset } = getComputedStyle(input);
        const reach = parseFloat(outlineOffset) + 2;
        const box = input.getBoundingClientRect();
        for (let parent = input.parentElement; parent.tagName !== 'BODY'; parent = parent.parentElement) {
            if (getComputedStyle(parent).overflow === 'visible') continue;
            const { left, right, top, bottom } = parent.getBoundingClientRect();
            if (box.left - reach < left || box.right + reach > right) return [input.outerHTML, parent.outerHTML];
            if (box.top - reach < top || box.bottom + reach > bottom) return [input.outerHTML, parent.outerHTML];
        }
        return [outlineStyle, outlineColor];
    }"""
    page.keyboard.press("Tab")  # after a click, a focus is not always shown
    for dark, colour in ((False, "rgb(0, 114, 178)"), (True, "rgb(86, 180, 233)")):
        page.evaluate("dark => document.body.classList.toggle('dark', dark)", dark)
        scheme = page.evaluate("getComputedStyle(document.documentElement).colorScheme")  # that of scrollbars
        assert scheme == ("dark" if dark else "light")
        for control in ("#dtype", "#bias-auto", "#bias", "#sparsity"):
            for field in page.locator(f"{control} input").all():
                field.focus()
                assert page.evaluate(ring) == ["solid", colour], control
    page.evaluate("document.body.classList.remove('dark')")


def test_a_budget_sets_the_calibrations_sizes_and_is_chosen_by_them_and_a_recovery_has_a_button_of_its_own(
    plain,
) -> None:
    plain.open_more()
    budget = plain.page.locator("#budget")
    expect(budget.get_by_label("Quick")).to_be_checked()  # the page opens with it
    plain.until("() => /about [0-9]+ (s|min) and [0-9]+ (s|min)/.test(document.querySelector('#budget').innerText)")
    budget.get_by_label("Thorough").check()
    plain.addressed("sequences=128", "samples=16")
    expect(budget.get_by_label("Thorough")).to_be_checked()
    plain.page.locator("#sequences input").fill("64")  # neither
    plain.until("() => !document.querySelector('#budget input:checked')")
    budget.get_by_label("Quick").check()
    plain.until("() => !/sequences|samples/.test(location.search)")

    page = plain.page
    expect(page.locator("#train")).to_be_hidden()
    page.locator("#recovery").get_by_label("Distillation", exact=True).check()
    page.locator("#train").wait_for(state="visible")
    plain.addressed("recovery=distill")
    page.locator("#recovery").get_by_label("None").check()
    page.locator("#train").wait_for(state="hidden")


def test_the_page_opens_with_the_estimator_that_was_chosen_and_another_model_has_its_own_chosen(
    visit, page_session, tiny
) -> None:
    opened = visit()
    page, chosen = opened.page, page_session.opening.settings.estimator
    expect(page.locator(f"#estimator input[value={chosen}]")).to_be_checked()
    opened.says("#controls", "was chosen by measurement")
    opened.addressed(f"estimator={chosen}")
    opened.slide(25)
    opened.addressed("sparsity=25", f"estimator={chosen}")
    page.locator("#estimator").get_by_label("PCA-aware").check()
    opened.until("() => !/estimator=/.test(location.search)")
    page.locator("#model input").fill(tiny.settings.model)
    page.locator("#model input").press("Enter")
    page.wait_for_selector("#estimator input[value=auto]:checked")
    opened.until("() => /model=/.test(location.search) && !/estimator=/.test(location.search)")
    opened.leave_for(page.url)
    page.wait_for_selector("#estimator input[value=pca]:checked")


@pytest.fixture(scope="module")
def small(visit_once) -> Opened:
    """A small screen, whose controls are folded."""
    opened = visit_once(width=390, height=844)
    opened.until("document.querySelector('body.isx-ready-controls:not(:has(#controls.open))')")
    return opened


def test_a_small_screen_keeps_the_slider_and_scrolls_only_down_on_every_tab(small) -> None:
    opened, page = small, small.page
    opened.open_tab("ratios")
    page.evaluate("document.querySelector('#importance-chart').scrollIntoView()")
    opened.until("(top => 0 <= top && top < 200)(document.querySelector('#sparsity').getBoundingClientRect().top)")
    for tab in TABS:
        opened.open_tab(tab)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
        if tab == "compare":
            boxes = [page.locator(f"#{name}-answer").bounding_box() for name in ("dense", "intraslice", "crossmodule")]
            assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
            assert all(box["width"] > 300 for box in boxes)


TOUCHED = """() => {
    const target = document.querySelector('#ratio-chart .nsewdrag');
    const { x, y } = target.getBoundingClientRect();
    const touches = [new Touch({ identifier: 1, target, clientX: x + 50, clientY: y + 50 })];
    const begun = new TouchEvent('touchstart', { bubbles: true, cancelable: true, touches, changedTouches: touches });
    return target.dispatchEvent(begun);
}"""


def test_a_finger_on_a_chart_scrolls_the_page(browser_context, address) -> None:
    """Plotly takes a touch for itself, to zoom, unless its drag mode is off."""
    context = browser_context.browser.new_context(
        has_touch=True, is_mobile=True, viewport={"width": 390, "height": 844}
    )
    page = context.new_page()
    page.goto(address, timeout=PATIENCE)
    page.wait_for_selector("body.isx-begun #ratio-chart .nsewdrag", state="attached", timeout=PATIENCE)
    assert page.evaluate(TOUCHED)
    context.close()


def test_the_tour_leads_through_the_page_and_gives_it_back(small) -> None:
    opened, page = small, small.page
    assert page.locator(".isx-tour").count() == 0
    page.click("#tour")
    titles = []
    for step in range(1, 7):
        opened.until(f"document.querySelector('.isx-tour span').textContent === '{step} of 6'")
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
    opened.until("document.querySelector('.isx-tour span').textContent === '5 of 6'")
    page.keyboard.press("Escape")
    assert page.locator(".isx-tour, .isx-spot").count() == 0
    assert page.evaluate("document.activeElement.id") == "tour"


def test_embedding_hides_the_controls_and_a_pinned_setting_that_is_none_is_ignored(visit) -> None:
    opened = visit("/?embed=1&sparsity=33&pinned=%00")
    opened.says("#removed", "33.0%")
    assert not opened.page.is_visible("#controls")
    assert opened.page.is_visible("#sparsity")
    assert len(opened.bars()) == 2  # no outlines
    assert not opened.page.is_visible("#unpin")
