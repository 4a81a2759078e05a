"""A user who fiddles: random actions on the page, at any moment, and what has to be true once it has come to rest.

Used by the browser tests on a tiny model, and by `python -m tests.load.fiddle` on the default one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
from playwright import sync_api as playwright

if TYPE_CHECKING:
    from browsing import Opened

SECONDS = 5  # within which the page says that nothing runs for it any more
AT_REST = 1.0  # seconds without an open call, after which nothing runs for the client
# What a browser and gradio log of a lost network, and of a page that is left, also some moments later.
NETWORK = ("net::ERR", "Failed to fetch", "network error", "AbortError", "Connection errored out", "Unable to preload")
SLIDER = "#sparsity input[type=range]"
RELEASE = "range => range.dispatchEvent(new Event('pointerup', { bubbles: true }))"
PRESS = """where => {
    const button = document.querySelector(where);
    if (button && !button.disabled) button.click();
}"""
# What the page shows outside of the tabs, and the bars of its first chart.
SHOWN = """() => {
    const text = where => document.querySelector(where)?.innerText ?? null;
    const percents = [...document.querySelectorAll('#removed dd')].map(one => one.dataset.percent);
    const read = document.querySelector('#readout .isx-read')?.dataset ?? {};
    const plot = document.querySelector('#ratio-chart .isx-plot');
    const status = document.querySelector('#status .isx-status');
    return {
        slider: Number(document.querySelector('#sparsity input[type=range]').value),
        target: Number(percents[0]),
        headline: text('#headline'),
        readout: text('#readout'),
        removed: text('#removed'),
        measured: [read.dense ?? null, read.sliced ?? null],
        bars: (plot?.data ?? []).filter(trace => trace.type === 'bar').map(trace => [...trace.y]),
        status: text('#status'),
        isBusy: Boolean(status?.matches('.isx-busy') || status?.querySelector('progress')),
    };
}"""


class Fiddler:
    """One user on one page.

    Args:
        models: links (queries) of models and calibrations, between which the user changes.
        pause: seconds at most between two actions.
    """

    def __init__(
        self, opened: Opened, address: str, chance: random.Random, models: Sequence[str], pause: float = 0.5
    ) -> None:
        self.opened, self.page, self.address, self.chance, self.models = opened, opened.page, address, chance, models
        self.pause, self.done, self._visited = pause, list[str](), 0
        self._actions: dict[str, Callable[[], Any]] = {
            "move": lambda: self._slide(chance.randrange(61)),
            "drag": self._drag,
            "keys": lambda: self.page.press(SLIDER, chance.choice(["ArrowRight", "ArrowLeft", "PageUp", "Home"])),
            "tab": self._open_tab,
            "estimator": lambda: self._choose("#estimator"),
            "cap": lambda: self._slide(chance.randrange(60, 101), "#cap input[type=range]", release=True),
            "measure": lambda: self._press("#measure-here"),
            "generate": self._generate,
            "stop": lambda: self._press(chance.choice(["#cancel", "#stop"])),
            "pin": lambda: self._press("#pin"),
            "undo": lambda: self._press(chance.choice(["#undo", "#redo"])),
            "language": lambda: self._visit(self._with(lang=chance.choice(["de", "en"]))),
            "reload": lambda: self._arrive(self.page.reload),
            "back": self._back,
            "model": lambda: self._visit(chance.choice(self.models)),
            "offline": self._lose_the_network,
        }

    def start(self) -> None:
        """Open the page, and do not wait until it is drawn."""
        self._visit(self.chance.choice(self.models))

    def act(self, count: int) -> None:
        """Do `count` things, each soon after the last."""
        for _ in range(count):
            self.page.wait_for_timeout(1000 * self.chance.uniform(0, self.pause))
            name = self.chance.choice(list(self._actions))
            self.done.append(f"{time.strftime('%X')} {name}")
            try:
                self._actions[name]()
            except playwright.Error as error:
                raise AssertionError(self._told(error)) from error

    def check(self, patience: float) -> dict[str, Any]:
        """Release the slider, wait up to `patience` seconds until nothing runs, and look at the page; what it shows.

        Everything has to be of one setting, and to be what the page shows that is opened by its link.
        """
        self.page.wait_for_selector("body.isx-begun")
        self.opened.open_tab("ratios")  # a tab that is not open is not drawn
        self.page.locator(SLIDER).evaluate(RELEASE)
        shown = self._come_to_rest(self.page, patience)
        assert abs(shown["target"] - shown["slider"]) < 0.06, self._told(shown)
        # What the readout has in numbers is in the headline, in the language of the page.
        for value in filter(None, shown["measured"]):
            rounded = f"{float(value):,.1f}"
            assert any(text in shown["headline"] for text in (rounded, _german(rounded))), self._told(shown)
        self.opened.forgive(*NETWORK)
        assert self.opened.faults == [], self._told(self.opened.faults)
        link = self.page.evaluate("location.href")
        with self.page.context.new_page() as page:
            page.set_viewport_size(self.page.viewport_size)
            page.goto(link)
            fresh = self._come_to_rest(page, patience)
        differences = {name: (shown[name], fresh[name]) for name in shown if shown[name] != fresh[name]}
        differences.pop("status", None)  # a page that is opened says nothing of what was stopped before
        assert differences == {}, self._told(f"{link} shows something else: {differences}")
        return shown

    def _come_to_rest(self, page: playwright.Page, patience: float) -> dict[str, Any]:
        """Wait until the server has no open call, and then at most `SECONDS` until the page says so."""
        page.wait_for_selector(f"body.isx-begun {SLIDER}")
        deadline = time.monotonic() + patience
        rested = time.monotonic()
        while time.monotonic() < rested + AT_REST:
            assert time.monotonic() < deadline, self._told("jobs go on")
            page.wait_for_timeout(200)
            if httpx.get(f"{self.address}/healthz", timeout=60).json()["calls"]:
                rested = time.monotonic()
        deadline = time.monotonic() + SECONDS
        while (shown := page.evaluate(SHOWN))["isBusy"]:
            assert time.monotonic() < deadline, self._told(shown)
            page.wait_for_timeout(100)
        return shown

    def _told(self, what: Any) -> str:
        return f"{what}\nafter {self.done}"

    def _press(self, where: str) -> None:
        self.page.evaluate(PRESS, where)

    def _slide(self, value: float, slider: str = SLIDER, release: bool = False) -> None:
        if (found := self.page.locator(slider)).count():  # folded away where it is not
            self.opened.slide(value, slider.partition(" ")[0])
            if release:
                found.evaluate(RELEASE)

    def _drag(self) -> None:
        for _ in range(self.chance.randrange(2, 6)):
            self._slide(self.chance.randrange(61))
            self.page.wait_for_timeout(self.chance.randrange(60))
        self.page.locator(SLIDER).evaluate(RELEASE)

    def _open_tab(self) -> None:
        self.page.evaluate(
            "chance => { const all = document.querySelectorAll('#tabs button[role=\"tab\"]');"
            " all[Math.floor(chance * all.length)]?.click(); }",
            self.chance.random(),
        )

    def _choose(self, where: str) -> None:
        choices = self.page.locator(f"{where} input[type=radio]")
        if count := choices.count():
            choices.nth(self.chance.randrange(count)).dispatch_event("click")

    def _generate(self) -> None:
        self.opened.open_tab("compare")
        self._press("#generate")

    def _lose_the_network(self) -> None:
        self.page.context.set_offline(True)
        self.page.wait_for_timeout(2000)
        self.page.context.set_offline(False)

    def _with(self, **values: str) -> str:
        """The page's query with other values."""
        return f"/?{urlencode(dict(parse_qsl(urlsplit(self.page.url).query)) | values)}"

    def _visit(self, query: str) -> None:
        self._arrive(lambda: self.page.goto(self.address + query))
        self._visited += 1

    def _back(self) -> None:
        if self._visited > 1:
            self._visited -= 1
            self._arrive(self.page.go_back)

    def _arrive(self, leave: Callable[[], Any]) -> None:
        """Leave the page for another, or the same anew."""
        leave()
        self.page.wait_for_selector(SLIDER)


def _german(number: str) -> str:
    return number.translate(str.maketrans(",.", ".,"))


def open_page(browser: playwright.Browser) -> playwright.Page:
    """A page of its own context, so that losing the network is its own."""
    page = browser.new_context().new_page()
    page.set_viewport_size({"width": 1440, "height": 900})
    return page
