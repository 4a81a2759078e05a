"""Chromium, a page in it, and `python app.py`: used by the browser tests, the load tests and the screenshots."""

import contextlib
import itertools
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import IO, Any

from playwright import sync_api as playwright

ROOT = Path(__file__).parents[3]
# The headless shell draws the same pages with less work, since it has no window of its own.
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
ARGUMENTS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
PATIENCE = 120_000  # ms, the default timeout: a busy machine takes its time
POLL = 20  # ms
playwright.expect.set_options(timeout=PATIENCE)
# What every tab shows last when it is opened.
SHOWN = {
    "ratios": "#importance-chart:has(.main-svg)",
    "estimator": "#convergence-chart:has(.main-svg)",
    "spectra": "#pair-chart:has(.main-svg)",
    "activations": "#histogram-chart:has(.main-svg)",
    "compare": "#answers",
    "sweep": "#sweep-progress",
    "export": "#export-about",
}
# The code viewer is gradio's own; the charts' drawings are many nodes, and the charts' tests look after their colours.
NOT_OURS = [["#export-snippet"], ["#export-command"], [".main-svg"]]
MOVE = """(range, value) => {
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(range, value);
    range.dispatchEvent(new Event('input', { bubbles: true }));
}"""
BARS = "document.querySelector('#ratio-chart .isx-plot').data.filter(t => t.type === 'bar').map(t => [...t.y])"
DRAWN = f"""expected => {{
    const bars = {BARS};
    return bars.length === expected.length && expected.every((layers, index) => layers.length === bars[index].length
        && layers.every((ratio, layer) => Math.abs(bars[index][layer] - ratio) <= 1e-6 + 1e-4 * ratio));
}}"""
# Where a point of a trace is in the plot area, in pixels.
POINT = """(plot, [trace, index]) => {
    const { x, y } = plot.data[trace];
    const { xaxis, yaxis } = plot._fullLayout;
    return [xaxis.d2p(x[index]), yaxis.d2p(y[index])];
}"""
COMPONENT_NUMBER = "where => gradio_config.components.find(({ props }) => `#${props.elem_id}` === where).id"

# From now on, what the page does after or at every pause (both in ms) begins sooner.
HURRY = """([pause, to]) => {
    for (const name of ["setTimeout", "setInterval"]) {
        const begin = window[name];
        window[name] = (act, ms, ...rest) => begin(act, ms === pause ? to : ms, ...rest);
    }
}"""


@dataclass
class Opened:
    """A page, the errors and foreign requests that were seen on it, and how its calls were answered."""

    page: "playwright.Page"
    faults: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("console", self._look_at)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: _is_foreign(request.url) and self.faults.append(request.url))
        self.page.on("requestfinished", lambda request: self._note(request, "finished"))
        self.page.on("requestfailed", lambda request: self._note(request, request.failure))

    def _look_at(self, message: "playwright.ConsoleMessage") -> None:
        if message.type == "error":
            self.faults.append(f"{message.text} ({message.location['url']})")

    def _note(self, request: "playwright.Request", end: str | None) -> None:
        if "/queue/" in request.url:
            path = request.url.partition("/queue/")[2]
            said = (request.post_data or "")[-60:]  # the function's number and the session
            self.calls.append(f"{time.monotonic():.2f} {request.method} {path} {end} {said}")

    def forgive(self, *words: str) -> None:
        """Drop the faults that contain one of these words."""
        self.faults[:] = [fault for fault in self.faults if not any(word in fault for word in words)]

    def leave_for(self, address: str) -> None:
        """Open an address in place of the page; what that still waits for fails, which is no fault of either."""
        before = list(self.faults)
        self.page.goto("about:blank")
        self.faults[:] = before
        self.page.goto(address)

    def until(self, script: str, arg: object = None) -> Any:
        """As `until`; what the page shows and what went wrong on it is told of a wait in vain."""
        try:
            return until(self.page, script, arg)
        except TimeoutError as error:
            shown = self.page.inner_text("body")
            calls = "\n".join(self.calls[-20:])
            raise AssertionError(
                f"{error}\nfaults: {self.faults}\ncalls, now {time.monotonic():.2f}:\n{calls}\nthe page: {shown[:6000]}"
            ) from error

    def call(self, element: str, act: Callable[[], object] | None = None) -> None:
        """Click an element, or `act`, until its call is sent: gradio ignores a click while the last call ends."""
        own = f'"trigger_id":{self.page.evaluate(COMPONENT_NUMBER, element)},'
        with self.page.expect_request(lambda request: "/join" in request.url and own in request.post_data) as sent:
            looks = itertools.count()
            while not sent.is_done():
                if next(looks) % (1000 // POLL) == 0:
                    act() if act else self.page.click(element)
                self.page.wait_for_timeout(POLL)

    def download(self, button: str, path: Path) -> str:
        """Save to a path what a click on a button downloads; its suggested name."""
        with self.page.expect_download() as download:
            self.page.click(button)
        download.value.save_as(path)
        return download.value.suggested_filename

    def bars(self) -> list[list[float]]:
        return self.until(f"(bars => bars.length && bars)({BARS})")

    def draws(self, *ratios: list[list[float]]) -> None:
        """Wait until the bars are these ratios of attention and MLPs, and the outlines those of the pinned setting."""
        self.until(DRAWN, arg=[layers for modules in ratios for layers in modules])

    def slide(self, value: float, slider: str = "#sparsity") -> None:
        """Move a slider as a finger would."""
        self.page.locator(f"{slider} input[type=range]").evaluate(MOVE, value)

    def drag(self, value: float, slider: str = "#sparsity") -> None:
        """Move a slider, and wait for other bars."""
        self.moved_by(lambda: self.slide(value, slider))

    def open_more(self) -> None:
        if not self.page.locator("#more .label-wrap.open").count():
            self.page.click("#more .label-wrap")
        self.page.wait_for_selector("#cap input[type=range]", state="visible")

    def settle_at(self, value: float, slider: str = "#sparsity") -> None:
        """Move a slider that may stand there already."""
        if float(self.page.input_value(f"{slider} input[type=range]")) != value:
            self.drag(value, slider)

    def moved_by(self, act: Callable[[], object]) -> None:
        """Do something, and wait for other bars."""
        before = self.bars()
        act()
        self.until(f"before => (bars => bars.length && `${{bars}}` !== `${{before}}`)({BARS})", arg=before)

    def hurry(self, pause: int, to: int) -> None:
        """Let what the page does after or at every pause begin sooner, until it is left."""
        self.page.evaluate(HURRY, [pause, to])

    def says(self, where: str, *words: str) -> None:
        self.until(
            """([where, words]) => {
                const text = document.querySelector(where).textContent;
                return words.every(word => text.includes(word));
            }""",
            arg=[where, list(words)],
        )

    def click_point(self, chart: str, trace: int, index: int) -> None:
        """Click a point of a chart once its hover label is shown. The page may still move it, so its place is within
        the plot area, which playwright finds anew for each move of the mouse.
        """
        area = self.page.locator(f"{chart} .nsewdrag").first
        for _ in range(PATIENCE // 1000):
            x, y = self.page.eval_on_selector(f"{chart} .isx-plot", POINT, [trace, index])
            area.hover(position={"x": x - 1, "y": y})
            area.hover(position={"x": x, "y": y})
            with contextlib.suppress(playwright.TimeoutError):
                self.page.wait_for_selector(f"{chart} .hovertext", timeout=1000)
                area.click(position={"x": x, "y": y})
                return
        raise AssertionError(f"point {index} of trace {trace} in {chart} shows no label under the mouse")

    def addressed(self, *words: str) -> None:
        self.until("words => words.every(word => location.search.includes(word))", arg=list(words))

    def open_tab(self, tab: str) -> None:
        """Open a tab by its id, from the row or from its menu on a small screen, and wait until it is drawn."""
        self.page.evaluate(
            """tab => [...document.querySelectorAll('#tabs button[role="tab"], #tabs .overflow-menu button')]
                .find(button => button.textContent.trim() === isx.tabs[tab]).click()""",
            tab,
        )
        self.until(
            """where => {
                const shown = document.querySelector(where);
                return shown.checkVisibility() && shown.innerText.trim();
            }""",
            arg=SHOWN[tab],
        )

    def prepare_axe(self, script: str) -> None:
        """Open what is folded, and hide thousands of nodes that axe leaves out."""
        self.page.evaluate(script)
        self.page.evaluate("document.querySelectorAll('.isx-fold').forEach((one) => (one.open = true))")
        self.page.add_style_tag(content=".main-svg { display: none !important }")

    def found_by_axe(self, include: str, minor: bool = False) -> list[str]:
        """Serious violations within an element, once axe is there; where minor ones count, all."""
        violations = self.page.evaluate(
            "([include, exclude]) => axe.run({ include, exclude }, { resultTypes: ['violations'] })",
            [[include], NOT_OURS],
        )["violations"]
        return [
            f"{violation['id']}: {[(node['target'], node['failureSummary'][:200]) for node in violation['nodes'][:5]]}"
            for violation in violations
            if minor or violation["impact"] in ("serious", "critical")
        ]


def until(page: "playwright.Page", script: str, arg: object = None) -> Any:
    """Wait until a script's value is true; the value. A script that fails is asked again: what it reads is not there
    yet. (Playwright's own waiting ends at once then, and asks in the page, which a published one forbids.)
    """
    deadline = time.monotonic() + PATIENCE / 1000
    while True:
        try:
            if value := page.evaluate(script, arg):
                return value
        except playwright.Error as error:
            value = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"{script}\nwith {arg} is {value}")
        page.wait_for_timeout(POLL)


def _is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:"))


def copy_app(folder: Path, *others: str) -> None:
    """Copy what `python app.py` needs, and other files of the repository, to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("app.py", "assets", "components", "intraslice", "README.md", "requirements.txt", *others):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serving(words: Sequence[str | Path], environment: Mapping[str, str], **options: Any) -> Iterator[tuple[str, Popen]]:
    """The address of a page, which these words start, from when it takes connections; and its process."""
    port = free_port()
    app = Popen(words, env={**environment, "GRADIO_SERVER_PORT": str(port)}, **options)
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            assert app.poll() is None, "it ended by itself"
            time.sleep(0.1)
        else:
            raise TimeoutError("the page opened no port within two minutes")
        yield f"http://127.0.0.1:{port}", app
    finally:
        app.terminate()
        app.wait()


@contextlib.contextmanager
def running_app(folder: Path = ROOT, output: IO | None = None) -> Iterator[str]:
    """The address of `python app.py` of a folder while it runs; what it says goes to `output`, else to the screen."""
    with serving([sys.executable, "app.py"], os.environ, cwd=folder, stdout=output, stderr=output) as (address, _):
        yield address
