"""How soon the page answers, on the default model in a real browser: `python -m tests.live`.

Not a test: it prints what was measured beside what is wanted, in some five minutes on an idle machine. It works in a
cache of its own, which has nothing but the weights and the text. What is wanted was set on two cores.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

from playwright import sync_api as playwright

from intraslice.core.cache import cache_folder
from tests.support.page.browsing import ARGUMENTS, CHROMIUM, MOVE, running_app
from tests.support.page.fiddling import RELEASE, SLIDER

MINUTES = 600_000  # ms, of patience
MOVES = 40
READY = "document.querySelector('#ratio-chart .isx-plot')?.data?.length > 0"
STORED = "/perplexity [0-9.]+ → [0-9.]+ .*precomputed on/.test(document.querySelector('#headline')?.innerText)"
WHOLE = "document.querySelector('#status').innerText.includes('Calibrated on 32 x')"
FINAL = f"/perplexity [0-9.]+ → [0-9.]+ \\(/.test(document.querySelector('#headline').innerText) && !{STORED}"
ANSWERING = """['intraslice', 'crossmodule'].every((name) =>
    /{percent}% removed[^]*[1-9][0-9]* tokens?{ending}/.test(document.querySelector(`#${name}-answer`).innerText))
    && /[1-9][0-9]* token/.test(document.querySelector('#dense-answer').innerText)"""
SHIFTED = """document.querySelector('#shift-words [data-percent]')?.dataset.percent === '{percent}'
    && /IntraSlice [0-9].*Cross-module [0-9]/.test(document.querySelector('#shift-words').innerText)"""
MOVES_TIMED = """([chart, values]) => {
    const plot = document.querySelector(`${chart} .isx-plot`);
    const range = document.querySelector('#sparsity input[type=range]');
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set;
    const move = async (value) => {
        const start = performance.now();
        const drawn = new Promise((done) => plot.once('plotly_afterplot', done));
        set.call(range, value);
        range.dispatchEvent(new Event('input', { bubbles: true }));
        await drawn;
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
        return performance.now() - start;
    };
    return (async () => {
        const times = [];
        for (const value of values) {
            times.push(await move(value));
            await new Promise((done) => setTimeout(done, 120));
        }
        return times;
    })();
}"""


class Visitor:
    """A page that is opened, and how long it takes to show something."""

    def __init__(self, browser: playwright.Browser, address: str) -> None:
        # As high as the tab: a chart out of sight is drawn once the slider rests.
        self.page = browser.new_page(viewport={"width": 1440, "height": 2600})
        self.began = time.perf_counter()
        self.page.goto(address, wait_until="commit")

    def until(self, condition: str) -> float:
        """Seconds from the last beginning until the page fulfils a condition."""
        self.page.wait_for_function(condition, timeout=MINUTES)
        return time.perf_counter() - self.began

    def drag(self, values: list[float], chart: str = "#ratio-chart") -> list[float]:
        """Milliseconds from each move of the slider to pixels, sorted. Every value must differ from the one before."""
        return sorted(self.page.evaluate(MOVES_TIMED, [chart, values]))

    def release(self, percent: int) -> None:
        """Move the slider and let go of it, and begin to count."""
        self.page.locator(SLIDER).evaluate(MOVE, percent)
        self.page.wait_for_function(f"document.querySelector('#removed dd')?.dataset.percent === '{percent}.0'")
        self.began = time.perf_counter()
        self.page.locator(SLIDER).evaluate(RELEASE)

    def measure_here(self) -> None:
        """Measure the current setting live, and begin to count."""
        self.began = time.perf_counter()
        # In one step: a later answer may replace the headline between a mouse button's two events.
        self.page.locator("#headline [data-press]").evaluate("link => link.click()")

    def open(self, tab: str) -> None:
        """Bring a tab into view."""
        self.page.locator("#tabs button[role=tab]", has_text=tab).first.click()
        self.page.wait_for_timeout(1000)


def report(what: str, measured: float, wanted: float, unit: str = "s") -> None:
    verdict = "" if measured <= wanted else "  too slow"
    print(f"{what:<72}{measured:8.2f} {unit:<3} wanted {wanted:g}{verdict}", flush=True)


def opening(browser: playwright.Browser, address: str) -> Visitor:
    """Nothing is there but the weights; the server has just started, so its first answer is late."""
    visitor = Visitor(browser, address)
    report("opened: the stored perplexity", visitor.until(STORED), 3)
    report("opened: the slider answers from the snapshot", visitor.until(READY), 5)
    print(f"opened: the whole calibration, and its perplexity {visitor.until(f'{WHOLE} && {FINAL}'):31.1f} s")
    return visitor


def moving(visitor: Visitor) -> None:
    """Everything is loaded, nobody else is there."""
    for tab, chart in (("Ratios", "#ratio-chart"), ("Spectra", "#variance-chart")):
        visitor.open(tab)
        times = visitor.drag([21 + (move * 7) % 30 for move in range(MOVES)], chart)
        report(f"slider to pixels, {tab}, median", statistics.median(times), 100, "ms")
    visitor.open("Ratios")
    stored, final = [], []
    for percent in (33, 27, 42, 36, 21):
        visitor.release(percent)
        stored.append(visitor.until(STORED))
        visitor.measure_here()
        final.append(visitor.until(FINAL))
    report("let go: stored perplexity, median of 5", statistics.median(stored), 0.3)
    report("Measure here: final perplexity, median of 5", statistics.median(final), 3.5)


def answering(visitor: Visitor) -> None:
    """Generate after a move, and the activations of both methods."""
    visitor.open("Compare")
    times = []
    for percent in (20, 30, 10):
        visitor.release(percent)
        visitor.began = time.perf_counter()
        visitor.page.click("#generate")
        times.append(visitor.until(_filled(ANSWERING, percent)))
        visitor.until(_filled(ANSWERING, percent, "[.,]"))
    report("Generate after a move: all three columns answer, median of 3", statistics.median(times), 3)
    visitor.open("Activations")
    times = []
    for percent in (29, 11):
        visitor.release(percent)
        times.append(visitor.until(_filled(SHIFTED, percent)))
    report("activations of both methods after a move, the slower of 2", max(times), 10)


def _filled(condition: str, percent: int, ending: str = "") -> str:
    return condition.replace("{percent}", str(percent)).replace("{ending}", ending)


def main() -> None:
    """Measure, from an empty cache on."""
    with tempfile.TemporaryDirectory() as folder, playwright.sync_playwright() as driver:
        for kept in ("models", "wheels"):
            (Path(folder) / kept).symlink_to(cache_folder() / kept)
        os.environ["INTRASLICE_CACHE"] = folder
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        with running_app() as address:
            visitor = opening(browser, address)
            moving(visitor)
            answering(visitor)
        browser.close()


if __name__ == "__main__":
    main()
