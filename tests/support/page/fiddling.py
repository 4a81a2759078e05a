"""A user who fiddles: random actions on the page, at any moment, and what has to be true once it has come to rest."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from playwright import sync_api as playwright

if TYPE_CHECKING:
    from browsing import Opened

VIEWPORT = {"width": 1440, "height": 900}
SECONDS = 5  # within which the page is drawn, and says that nothing runs for it any more
# Looks at the page in a second, for which no job has to run. They are the clock: a busy machine stands still at times.
LOOKS = 10
# What a browser and gradio log of a lost network, and of a page that is left, also some moments later.
NETWORK = ("net::ERR", "Failed to fetch", "network error", "AbortError", "Connection errored out", "Unable to preload")
SLIDER = "#sparsity input[type=range]"
RELEASE = "range => range.dispatchEvent(new Event('pointerup', { bubbles: true }))"
PRESS = """where => {
    const button = document.querySelector(where);
    if (button && !button.disabled) button.click();
}"""
# A link governs the tab until it is read, so the button may not come.
GENERATE = """async () => {
    isx.openTab('compare');
    const button = () => document.querySelector('#generate');
    for (let frames = 20; frames-- && !button(); ) await new Promise(requestAnimationFrame);
    button()?.click();
}"""
# What the page shows outside of the tabs, the numbers of the open tab's charts, and the bars that are drawn of them.
SHOWN = """() => {
    const text = where => document.querySelector(where)?.innerText ?? null;
    const percents = [...document.querySelectorAll('#removed dd')].map(one => one.dataset.percent);
    const read = document.querySelector('#readout .isx-read')?.dataset ?? {};
    const plot = document.querySelector('#ratio-chart .isx-plot');
    const charts = [...document.querySelectorAll('.isx-chart')].filter(one => one.checkVisibility());
    const status = document.querySelector('#status .isx-status');
    return {
        slider: Number(document.querySelector('#sparsity input[type=range]').value),
        target: Number(percents[0]),
        headline: text('#headline'),
        readout: text('#readout'),
        removed: text('#removed'),
        pinned: text('#pinned'),
        measured: [read.dense ?? null, read.sliced ?? null],
        charts: charts.map(({ isxChart }) => [isxChart?.title, isxChart?.note, isxChart?.table.rows]),
        bars: (plot?.data ?? []).filter(trace => trace.type === 'bar').map(trace => [...trace.y]),
        status: text('#status'),
        isBusy: Boolean(status?.matches('.isx-busy') || status?.querySelector('progress')),
    };
}"""


class Fiddler:
    """One user on one page.

    Args:
        models: addresses of models and calibrations, between which the user changes.
        is_idle: whether the server does nothing for a page that is open.
    """

    def __init__(self, opened: Opened, chance: random.Random, models: Sequence[str], is_idle: Callable[[], bool]):
        self.opened, self.page, self.chance, self.models = opened, opened.page, chance, models
        self.is_idle, self.done = is_idle, list[str]()
        self._actions: dict[str, Callable[[], Any]] = {
            "move": lambda: self._slide(chance.randrange(61)),
            "drag": self._drag,
            "keys": lambda: self.page.press(SLIDER, chance.choice(["ArrowRight", "ArrowLeft", "PageUp", "Home"])),
            "tab": self._open_tab,
            "estimator": lambda: self._choose("#estimator"),
            "cap": lambda: self._slide(chance.randrange(60, 101), "#cap input[type=range]", release=True),
            "measure": lambda: self._press("#measure-here"),
            "generate": lambda: self.page.evaluate(GENERATE),
            "stop": lambda: self._press(chance.choice(["#cancel", "#stop"])),
            "pin": lambda: self._press("#pin"),
            "undo": lambda: self._press(chance.choice(["#undo", "#redo"])),
            "language": lambda: self._visit(self._with(lang=chance.choice(["de", "en"]))),
            "reload": lambda: self._arrive(self.page.reload),
            "back": self._back,
            "model": lambda: self._visit(chance.choice(self.models)),
            "offline": self._lose_the_network,
        }

    def fiddle(self, count: int, patience: float) -> None:
        """Open the page and do `count` things, each soon after the last, then release the slider.

        Within `SECONDS` after nothing runs any more, for which it waits for up to `patience` seconds, all of the page
        has to be of one setting; a page that is opened by its link has to show the same. Raises AssertionError.
        """
        names = self.chance.choices(list(self._actions), k=count)  # first, so that a seed alone decides what is done
        try:
            self._visit(self.chance.choice(self.models))
            for name in names:
                self.page.wait_for_timeout(self.chance.uniform(0, 500))
                self.done.append(f"{time.strftime('%X')} {name}")
                self._actions[name]()
            self._check(patience)
        except playwright.Error as error:
            raise AssertionError(self._told(error)) from error

    def _check(self, patience: float) -> None:
        self.page.wait_for_selector("body.isx-begun")
        self.opened.open_tab("ratios")  # a tab that is not open is not drawn
        self.page.locator(SLIDER).evaluate(RELEASE)
        self._come_to_rest(self.opened, lambda: _contradictions(self.page.evaluate(SHOWN)), patience)
        link = type(self.opened)(self.page.context.new_page())
        link.page.goto(self.page.url)
        self._come_to_rest(link, lambda: self._differences(link.page), patience, within=patience)
        link.page.close()

    def _differences(self, page: playwright.Page) -> dict[str, Any]:
        """What the page that was opened by the link shows otherwise, but for what was stopped before."""
        shown, fresh = self.page.evaluate(SHOWN), page.evaluate(SHOWN)
        differences = {name: (shown[name], fresh[name]) for name in shown if shown[name] != fresh[name]}
        return {name: values for name, values in differences.items() if name != "status"} | _contradictions(fresh)

    def _come_to_rest(
        self, opened: Opened, problems: Callable[[], dict[str, Any]], patience: float, within: float = SECONDS
    ) -> None:
        """Wait until nothing runs, and then at most `within` so many seconds until there is no problem."""
        opened.page.wait_for_selector(f"body.isx-begun {SLIDER}")
        began, looks = time.monotonic(), 0  # since nothing runs
        while (found := problems()) or looks < LOOKS:
            assert time.monotonic() < began + patience, self._told(f"jobs go on: {found}")
            assert looks < within * LOOKS, self._told(f"{opened.page.url}: {found}")
            opened.page.wait_for_timeout(1000 / LOOKS)
            looks = looks + 1 if self.is_idle() else 0
        opened.forgive(*NETWORK)
        assert opened.faults == [], self._told(opened.faults)

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

    def _lose_the_network(self) -> None:
        """For two seconds; gradio loads the page again where that has broken a call."""
        self.page.context.set_offline(True)
        self.page.wait_for_timeout(2000)
        self.page.context.set_offline(False)
        self._arrive(lambda: self.opened.until("!document.querySelector('.toast-body.error')"))

    def _with(self, **values: str) -> str:
        """The page's address with other values."""
        parts = urlsplit(self.page.url)
        return parts._replace(query=urlencode(dict(parse_qsl(parts.query)) | values)).geturl()

    def _visit(self, address: str) -> None:
        self._arrive(lambda: self.page.goto(address))

    def _back(self) -> None:
        if self.page.evaluate("navigation.canGoBack"):
            self._arrive(self.page.go_back)

    def _arrive(self, leave: Callable[[], Any]) -> None:
        """Leave the page for another, or the same anew."""
        leave()
        self.page.wait_for_selector(SLIDER)


def _contradictions(shown: dict[str, Any]) -> dict[str, Any]:
    """What a page shows that is busy, or not of one setting; nothing else."""
    # What the readout has with two digits is in the headline with one, in the language of the page.
    german = str.maketrans(",.", ".,")
    headlines = (shown["headline"], shown["headline"].translate(german))
    rounded = [{f"{float(value) + shift:,.1f}" for shift in (-0.005, 0.005)} for value in shown["measured"] if value]
    is_told = all(any(text in line for text in texts for line in headlines) for texts in rounded)
    return {} if is_told and not shown["isBusy"] and abs(shown["target"] - shown["slider"]) < 0.06 else shown
