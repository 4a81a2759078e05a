"""Pin and compare in a real browser: pin, change, undo, redo, share the link, open it elsewhere and see the ghost."""

import json

import pytest
from browsing import CHROMIUM, PATIENCE, Opened
from test_browser_page import close, ratios

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]

GHOST = """() => document.querySelector('#ratio-chart .isx-plot').data
    .filter(trace => trace.type === 'bar' && trace.name.startsWith('A: ')).map(trace => [...trace.y])"""
REMOVED = "percent => document.querySelector('#removed').textContent.includes(`${percent}.0%`)"


def ghost(opened: Opened) -> list[list[float]]:
    opened.page.wait_for_function(f"({GHOST})().length === 2", timeout=PATIENCE)
    return opened.page.evaluate(GHOST)


def bars(opened: Opened) -> list[list[float]]:
    return opened.bars()[:2]


def wait_for(opened: Opened, percent: int) -> None:
    opened.page.wait_for_function(REMOVED, arg=percent, timeout=PATIENCE)


def rest(opened: Opened) -> None:
    """Until the last change counts as a step of its own."""
    opened.page.wait_for_timeout(800)


def test_a_pinned_setting_is_seen_beside_another_undone_shared_and_opened_elsewhere(visit, snapshot_session) -> None:
    opened = visit("/?sparsity=20")
    page = opened.page
    wait_for(opened, 20)
    page.click("#pin")
    assert close(ghost(opened), ratios(snapshot_session, 20))
    page.wait_for_selector("#unpin", timeout=PATIENCE)
    rest(opened)
    opened.drag(45)
    rest(opened)
    opened.drag(50)
    rest(opened)
    assert close(ghost(opened), ratios(snapshot_session, 20))
    assert close(bars(opened), ratios(snapshot_session, 50))
    assert "Against A (20 %, PCA-aware): 31.8 M parameters fewer" in page.inner_text("#headline")
    assert "against A" in page.inner_text("#readout")
    assert "Outlines: the pinned setting A." in page.inner_text("#ratio-chart .isx-note")
    page.click("#ratio-chart .isx-twin summary")
    page.wait_for_function("document.querySelector('#ratio-chart tbody').textContent.includes('(A: ')")

    page.focus("body")
    for keys, percent in (("Control+z", 45), ("Control+z", 20), ("Control+Shift+Z", 45), ("Control+Shift+Z", 50)):
        page.keyboard.press(keys)
        wait_for(opened, percent)
        page.wait_for_timeout(200)
    assert page.is_disabled("#redo")
    page.focus("#sparsity input[type=number]")
    page.keyboard.press("Control+z")  # in a field it is the field's own
    page.click("#undo")
    wait_for(opened, 45)
    page.wait_for_function("location.search.includes('sparsity=45')", timeout=PATIENCE)

    address = page.evaluate("location.search")
    assert "pinned=sparsity%3D20" in address
    page.close()
    elsewhere = visit(f"/{address}&__theme=dark")
    wait_for(elsewhere, 45)
    assert close(ghost(elsewhere), ratios(snapshot_session, 20))
    assert close(bars(elsewhere), ratios(snapshot_session, 45))
    elsewhere.page.click("#unpin")
    elsewhere.page.wait_for_function(f"({GHOST})().length === 0", timeout=PATIENCE)
    elsewhere.page.wait_for_function("!location.search.includes('pinned')", timeout=PATIENCE)
    elsewhere.page.wait_for_function("!document.querySelector('#headline').textContent.includes('Against')")
    rest(elsewhere)
    elsewhere.page.keyboard.press("Control+z")
    assert close(ghost(elsewhere), ratios(snapshot_session, 20))


def test_every_tab_shows_what_is_pinned_and_a_move_does_not_bring_it_again(visit) -> None:
    page = visit("/?tab=spectra&sparsity=45&pinned=sparsity%3D20").page
    rings = """() => document.querySelector('#variance-chart .isx-plot').layout.shapes
        .filter(shape => shape.type === 'circle').length"""
    page.wait_for_selector("#variance-chart .main-svg", timeout=PATIENCE)
    page.wait_for_function(f"({rings})() === 12", timeout=PATIENCE)  # three value heads, the MLP and two of the stream
    for chart in ("rank", "pair"):
        page.wait_for_function(
            f"""document.querySelector('#{chart}-chart .isx-note')?.textContent
                .includes('Circles: the pinned setting A.')""",
            timeout=PATIENCE,
        )
    answers = []
    page.on("response", lambda response: "/run/" in response.url and answers.append(response))
    page.locator("#sparsity input[type=range]").evaluate(
        """(range) => {
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(range, 50);
            range.dispatchEvent(new Event('input', { bubbles: true }));
        }"""
    )
    page.wait_for_function(REMOVED, arg=50, timeout=PATIENCE)
    page.wait_for_timeout(3000)
    seen = len(answers)
    page.wait_for_timeout(1000)
    assert len(answers) == seen  # what has answered rests
    moved = [text for text in (answer.text() for answer in answers) if "50.0%" in text]
    assert moved
    assert not any('"ghost":"{' in text for text in moved)
    page.click("#tabs button[role=tab] >> text=Compare")
    page.wait_for_selector("#pinned-answer", state="visible", timeout=PATIENCE)
    assert len(page.evaluate("getComputedStyle(document.querySelector('#answers')).gridTemplateColumns").split()) == 4


@pytest.mark.parametrize("pinned", ["sparsity%3D99", "%00"])
def test_a_link_that_pins_nonsense_opens_the_page_all_the_same(visit, pinned) -> None:
    opened = visit(f"/?sparsity=33&pinned={pinned}")
    wait_for(opened, 33)
    assert json.loads(json.dumps(opened.page.evaluate(GHOST))) == []
    assert not opened.page.is_visible("#unpin")
