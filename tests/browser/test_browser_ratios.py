"""The Ratios tab in a real browser: ratios by hand, the other controls, links, the tour."""

import json
import threading
import time

import pytest
from browsing import Opened
from playwright.sync_api import expect

from .test_browser_page import ratios

NOTE = "#ratio-chart .isx-note"
# Keeps the smallest size that the status names: another status may follow at once.
KEEP_REACH = r"""() => new MutationObserver(() => {
    window.reach ??= document.querySelector('#status').innerText.match(/cannot be reached.* reach is ([\d.]+) MB/)?.[1];
}).observe(document.querySelector('#status'), { childList: true, subtree: true, characterData: true })"""
BIAS = "bias => Math.abs(document.querySelector('#bias input[type=range]').value - bias) < 0.03"


def unfold_overrides(page) -> None:
    page.click("#overrides summary")
    page.locator("#overrides tbody tr").nth(29).wait_for()


def cell(page, layer: int, module: str, what: str):
    return page.get_by_label(f"Layer {layer}, {module}: {what}", exact=True)


def test_a_ratio_typed_by_hand_stays_and_the_others_make_up_for_it(plain, page_session, monkeypatch) -> None:
    opened, page = plain, plain.page
    opened.settle_at(20)
    unfold_overrides(page)
    before = ratios(page_session, sparsity=20)
    opened.draws(before)
    cell(page, 7, "attention", "per cent removed").fill("40")
    cell(page, 7, "attention", "per cent removed").press("Enter")
    opened.says(NOTE, "estimator: Manual")
    opened.draws(ratios(page_session, locked="7 attention 40"))
    expect(cell(page, 7, "attention", "locked")).to_be_checked()
    opened.addressed("locked=7+attention+40")
    opened.says("#removed", "20.0%")
    opened.slide(40)
    opened.draws(ratios(page_session, locked="7 attention 40", sparsity=40))
    opened.slide(20)
    page.click("#overrides .isx-unlock")
    opened.says(NOTE, "estimator: Output error")
    opened.draws(before)
    opened.until("!location.search.includes('locked')")

    opened.slide(1)
    before = ratios(page_session, sparsity=1)
    opened.draws(before)
    cell(page, 3, "MLP", "per cent removed").fill("90")
    cell(page, 3, "MLP", "per cent removed").press("Enter")
    opened.says("#overrides-problem", "unlock ratios")
    opened.draws(before)
    assert "locked" not in page.url

    # It is undone in the table, and does not spoil the next one.
    opened.until("document.querySelector('#overrides summary').textContent === 'Lock ratios manually'")
    assert float(cell(page, 3, "MLP", "per cent removed").input_value()) == pytest.approx(100 * before[1][3], abs=0.06)
    expect(cell(page, 3, "MLP", "locked")).not_to_be_checked()
    cell(page, 0, "attention", "per cent removed").fill("150")
    cell(page, 0, "attention", "per cent removed").press("Enter")
    opened.says("#overrides-problem", "The percentage of “0 attention” must be a number from 0 to 100, got 150.")
    cell(page, 0, "attention", "per cent removed").fill("2")
    opened.moved_by(lambda: cell(page, 0, "attention", "per cent removed").press("Enter"))
    opened.addressed("locked=0+attention+2")
    opened.says("#overrides", "(1 locked)")
    opened.moved_by(lambda: page.click("#overrides .isx-unlock"))

    # Units, by another script, which is what a click on a head is, and by hand.
    lock = "dispatchEvent(new CustomEvent('isx-lock-unit', {detail: '3 attention head 5 remove'}))"
    opened.moved_by(lambda: page.evaluate(lock))
    opened.addressed("locked=3+attention+head+5+remove")
    opened.says("#overrides .isx-units", "Layer 3: query head 5 is removed")
    page.fill("#overrides .isx-unit", "3 attention head 99 keep")
    page.press("#overrides .isx-unit", "Enter")
    opened.says("#overrides-problem", "Layer 3 has no head 99; its heads are 0 to 8")
    page.fill("#overrides .isx-unit", "3 attention head 5 keep")
    plan = page_session.plan  # its answer comes after the next edit
    monkeypatch.setattr(page_session, "plan", lambda one: time.sleep("keep" in one.settings.locked) or plan(one))
    page.evaluate("window.answers = 0; addEventListener('isx-locks', () => answers++)")
    page.press("#overrides .isx-unit", "Enter")
    page.get_by_label("Unlock: Layer 3: query head 5 is kept, and so is its key/value head").click()
    opened.until("answers === 2 && !isx.locks().size")
    opened.until("!location.search.includes('locked')")


def test_the_bias_is_found_until_it_is_given_and_shapes_are_a_runtimes(plain, page_session) -> None:
    opened, page, auto = plain, plain.page, plain.page.locator("#bias-auto input")
    opened.settle_at(20)
    opened.open_more()
    before = ratios(page_session, sparsity=20)
    opened.draws(before)
    expect(auto).to_be_checked()
    usual = page_session.slice_plan(page_session.opening).reasons.bias
    opened.until(BIAS, arg=usual)
    opened.slide(0.8, "#bias")
    opened.draws(ratios(page_session, bias=0.8))
    expect(auto).not_to_be_checked()
    opened.addressed("bias=0.8")
    auto.check()
    opened.draws(before)
    opened.until("!location.search.includes('bias')")
    opened.until(BIAS, arg=usual)

    page.get_by_label("Runtime", exact=True).check()
    opened.draws(ratios(page_session, shapes="runtime"))
    opened.addressed("shapes=runtime")
    opened.says("#importance-chart", "blocks of 32 neurons")
    page.get_by_label("Free", exact=True).check()  # as other tests expect it
    opened.draws(before)


def test_ratios_are_searched_for_and_locked(visit, tiny_query) -> None:
    opened = visit(tiny_query.replace("sparsity=30", "sparsity=25"))
    page = opened.page
    opened.open_tab("estimator")
    page.click("#search-measure")
    opened.says("#search-words", "On text that the search did not read, KL from the dense model changed from")
    assert page.locator("#search-chart .bars .point").count() == 6
    expect(page.locator("#search-measure")).to_be_hidden()
    page.click("#search-use")
    opened.addressed("locked=")
    opened.open_tab("ratios")
    opened.says("#overrides", "(5 locked)")
    opened.says(NOTE, "estimator: Manual")


def test_a_size_sets_the_sparsity_that_fits(visit, tiny_query) -> None:
    opened = visit(tiny_query)
    page = opened.page
    opened.open_more()
    page.fill("#size textarea", "1 kB float32")
    page.evaluate(KEEP_REACH)
    page.click("#size .submit-button")
    smallest = opened.until("window.reach")
    page.fill("#size textarea", f"{smallest} MB float32")
    opened.call("#size", lambda: page.press("#size textarea", "Enter"))
    opened.until("document.querySelector('#sparsity input[type=number]').value > 50")
    percent = float(page.input_value("#sparsity input[type=number]"))
    opened.addressed(f"sparsity={percent:g}")
    opened.says("#removed", f"{percent:.1f}%")


def test_a_link_carries_every_setting_and_the_page_goes_on_with_them_when_its_server_slept(visit, page_session) -> None:
    chosen = "sparsity=44&estimator=fisher&locked=7+attention+25,+3+mlp+0&bias=1.4&shapes=runtime&recovery=distill"
    opened = visit(f"/?{chosen}&tab=compare&prompt=Hello%20there")
    page = opened.page
    opened.until("document.querySelector('#prompt textarea').value === 'Hello there'")
    assert page.get_attribute("#tabs button[role=tab] >> text=Compare", "aria-selected") == "true"
    opened.open_tab("ratios")
    opened.says(NOTE, "estimator: Manual")
    opened.says("#importance-chart", "blocks of 32 neurons")
    own = {"estimator": "fisher", "locked": "7 attention 25, 3 mlp 0", "bias": 1.4, "shapes": "runtime"}
    opened.draws(ratios(page_session, sparsity=44, **own))
    expect(page.get_by_label("Runtime", exact=True)).to_be_checked()  # the link opens More settings
    expect(page.locator("#bias-auto input")).not_to_be_checked()
    expect(page.locator("#bias input[type=range]")).to_have_value("1.4")
    expect(page.locator("#recovery").get_by_label("Distillation", exact=True)).to_be_checked()
    page.wait_for_selector("#train")
    unfold_overrides(page)
    opened.says("#overrides summary", "2 locked")
    expect(cell(page, 3, "MLP", "locked")).to_be_checked()
    opened.drag(25)
    opened.addressed("sparsity=25")
    assert "tab=" not in page.url

    page.evaluate("isx.look()")
    assert page.locator(".isx-awake").count() == 0
    page.route("**/healthz", lambda route: route.abort())
    opened.hurry(3000, 200)  # until it asks a server that does not answer again
    page.evaluate("isx.look()")
    assert "is not responding" in page.inner_text(".isx-awake")
    page.unroute("**/healthz")  # it answers again, by itself
    page.wait_for_selector(".isx-awake", state="detached")
    other = json.dumps({"ok": True, "began": 1.0})
    page.route("**/healthz", lambda route: route.fulfill(body=other, content_type="application/json"))
    page.evaluate("isx.look()")
    assert "has restarted" in page.inner_text(".isx-awake")
    with page.expect_navigation():
        page.click(".isx-awake button")
    page.unroute("**/healthz")
    opened.until("document.querySelector('#sparsity input[type=number]').value === '25'")
    # Failed requests, and what was on its way.
    opened.forgive("net::ERR_FAILED", "AbortError", "errored out", "Failed to fetch")


def test_the_headline_does_not_wait_for_plotly_which_is_fetched_again_after_an_error(browser_context, address) -> None:
    opened, held, passing = Opened(browser_context.new_page()), [], threading.Event()
    opened.page.route("**/plotly.min.js", lambda route: route.continue_() if passing.is_set() else held.append(route))
    opened.page.goto(address)
    opened.until("document.querySelector('#headline').innerText.includes('perplexity')")
    opened.until("isx.plotlyScript")
    assert opened.page.locator(".main-svg").count() == 0
    # A drawing may fetch it again in the moment after the error: the event is waited for, not the state that it leaves.
    opened.page.evaluate("isx.plotlyScript.addEventListener('error', () => (window.hasFailed = true))")
    passing.set()
    for route in held:
        route.abort()
    opened.until("window.hasFailed")
    opened.slide(33)
    opened.until("document.querySelector('#ratio-chart .main-svg')")
    assert opened.faults
    opened.forgive("plotly.min.js")
    assert not opened.faults
    opened.page.close()
