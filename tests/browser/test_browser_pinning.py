"""Pin and compare in a real browser: pin, change, undo, redo, share the link, open it elsewhere and see its overlay."""

from browsing import Opened
from playwright.sync_api import expect

from components.state.session import Session

from .test_browser_page import NEURONS, ratios


def wait_for(opened: Opened, percent: int) -> None:
    opened.says("#removed", f"{percent}.0%")


def commit(opened: Opened, words: str) -> None:
    """Wait until the address has these words, then make the change an undo step, as a timer would."""
    opened.addressed(words)
    opened.page.evaluate("isx.step(0)")


def every_tab_shows_what_is_pinned(opened: Opened, page_session: Session) -> None:
    """And a move does not bring it again."""
    page = opened.page
    rings = """() => document.querySelector('#variance-chart .isx-plot').layout.shapes
        .filter(shape => shape.type === 'circle').length"""
    page.wait_for_selector("#variance-chart .main-svg")
    opened.until(f"({rings})() === 12")  # three value heads, the MLP and two of the stream
    for chart in ("rank", "pair"):
        opened.says(f"#{chart}-chart .isx-note", "Circles: the pinned setting A.")
    answered = []  # whose bodies are there
    page.on("requestfinished", lambda request: "/run/" in request.url and answered.append(request))
    opened.slide(50)
    wait_for(opened, 50)
    neurons = page_session.slice_plan(page_session.opening.with_settings(sparsity=50)).layers[0].neurons
    opened.until(NEURONS, arg=f"{neurons:,} of 1,536 neurons kept")
    moved = [text for text in (request.response().text() for request in answered) if "50.0%" in text]
    assert moved
    assert not any('"overlay":"{' in text for text in moved)
    page.click("#tabs button[role=tab] >> text=Compare")
    page.wait_for_selector("#pinned-answer", state="visible")
    assert len(page.evaluate("getComputedStyle(document.querySelector('#answers')).gridTemplateColumns").split()) == 4


def test_a_pinned_setting_is_seen_beside_another_undone_shared_and_opened_elsewhere(visit, page_session) -> None:
    opened = visit("/?sparsity=25&estimator=output-error")
    page, pinned = opened.page, ratios(page_session, sparsity=25)
    wait_for(opened, 25)
    page.click("#pin")
    opened.draws(pinned, pinned)
    page.wait_for_selector("#unpin")
    commit(opened, "pinned")
    opened.drag(45)
    commit(opened, "sparsity=45")
    opened.drag(50)
    commit(opened, "sparsity=50")
    opened.draws(ratios(page_session, sparsity=50), pinned)
    opened.says("#headline", "Against A (25%, Output error): 26.6 M fewer parameters")
    opened.says("#readout", "against A")
    opened.says("#ratio-chart .isx-note", "Outlines: the pinned setting A.")
    page.click("#ratio-chart .isx-twin summary")
    opened.until("document.querySelector('#ratio-chart tbody').textContent.includes('(A: ')")

    # While the estimator is being chosen, one step back is the setting before that.
    page.evaluate("isx.note(Object.entries(isx.usual).map(([name, value]) => (name === 'estimator' ? 'auto' : value)))")
    page.focus("body")
    page.keyboard.press("Control+z")
    wait_for(opened, 50)
    for keys, percent in (("Control+z", 45), ("Control+z", 25), ("Control+Shift+Z", 45), ("Control+Shift+Z", 50)):
        page.keyboard.press(keys)
        wait_for(opened, percent)
        opened.addressed(f"sparsity={percent}")
    expect(page.locator("#redo")).to_be_disabled()
    page.focus("#sparsity input[type=number]")
    page.keyboard.press("Control+z")  # in a field it is the field's own
    page.click("#undo")
    wait_for(opened, 45)
    opened.addressed("sparsity=45")

    address = page.evaluate("location.search")
    assert "pinned=sparsity%3D25" in address
    page.close()
    elsewhere = visit(f"/{address}&__theme=dark&tab=spectra")
    wait_for(elsewhere, 45)
    every_tab_shows_what_is_pinned(elsewhere, page_session)
    elsewhere.open_tab("ratios")
    elsewhere.slide(45)
    elsewhere.addressed("sparsity=45")
    elsewhere.draws(ratios(page_session, sparsity=45), pinned)
    elsewhere.page.locator("#recovery").get_by_label("Distillation", exact=True).check()
    elsewhere.says("#pinned", "A is 25%, Output error, recovery: ")  # what is otherwise now
    elsewhere.page.click("#unpin")
    elsewhere.draws(ratios(page_session, sparsity=45))
    elsewhere.until("!location.search.includes('pinned')")
    elsewhere.until("!document.querySelector('#headline').textContent.includes('Against')")
    elsewhere.page.evaluate("isx.step(0)")
    elsewhere.page.keyboard.press("Control+z")
    elsewhere.draws(ratios(page_session, sparsity=45), pinned)
