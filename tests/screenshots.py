"""Screenshots of every tab, light and dark, wide and narrow: `python -m tests.screenshots FOLDER`.

With `--readme` the pictures of the README: one that moves, in which the slider is dragged and let go, and a small one
of each tab; and the chart of docs/results.md (`python -m tests.screenshots assets/pictures --readme`).

Not a test: it is for looking. Opens the real app with the default model, which a warm cache makes a matter of seconds.
"""

import argparse
import contextlib
import io
import math
from pathlib import Path

from PIL import Image
from playwright import sync_api as playwright

from tests.live import STORED
from tests.support.page.browsing import ARGUMENTS, CHROMIUM, MOVE, running_app
from tests.support.page.fiddling import RELEASE, SLIDER

SIZES = {1440: 900, 390: 844}
TABS = "#tabs button[role=tab], #tabs .overflow-dropdown button"
HEADLINE = "/perplexity [0-9.]+ → [0-9]/.test(document.querySelector('#headline')?.innerText)"
SETTLED = f"{HEADLINE} && document.querySelector('{TABS}')"  # the tabs may come after the headline
WHOLE = "document.documentElement.scrollHeight"
WINDOW = {"width": 1200, "height": 760}  # of the README's
MOVING, SMALL = 960, 640  # pixels wide
BACK_AND_FORTH = [round(30 + 22 * math.sin(2 * math.pi * step / 24)) for step in range(25)]  # per cent
MINUTE, FRAME, LONG = 60_000, 120, 1800  # ms
SWEPT = "/^All [0-9]+ points/.test(document.querySelector('#sweep-progress').innerText)"
ANSWERED = """['dense', 'intraslice', 'crossmodule'].every((name) =>
    /[0-9]+ tokens?/.test(document.querySelector(`#${name}-answer`).innerText))"""


def shoot(browser: playwright.Browser, address: str, folder: Path, tabs: list[str]) -> None:
    """One file a tab, theme and width: `ratios-light-1440.png`."""
    for theme in ("light", "dark"):
        for width, height in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto(f"{address}/?__theme={theme}")
            page.wait_for_function(SETTLED, timeout=10 * MINUTE)
            names = [name.strip() for name in page.locator(TABS).all_text_contents()]
            for name in [name for name in dict.fromkeys(names) if not tabs or name.lower() in tabs]:
                # by script, since a tab that finds no room on a narrow screen is in a closed menu
                page.locator(TABS, has_text=name).first.evaluate("tab => tab.click()")
                through(page)
                # A window as high as the page: one that playwright stretches for the picture alone moves the sidebar.
                page.set_viewport_size({"width": width, "height": page.evaluate(WHOLE)})
                page.wait_for_timeout(1000)
                page.screenshot(path=folder / f"{name.lower()}-{theme}-{width}.png")
                page.set_viewport_size({"width": width, "height": height})
            page.close()


def for_readme(browser: playwright.Browser, address: str, folder: Path) -> None:
    """`explorer.webp`, which moves, a small picture a tab, and that of docs/results.md."""
    page = browser.new_page(viewport=WINDOW)
    page.goto(f"{address}/?__theme=light")
    for reached in (SETTLED, STORED):
        page.wait_for_function(reached, timeout=10 * MINUTE)
    frames, lengths = [_seen(page, MOVING)], [LONG]
    for percent in BACK_AND_FORTH[1:]:
        page.locator(SLIDER).evaluate(MOVE, percent)
        page.wait_for_timeout(350)
        frames.append(_seen(page, MOVING))
        lengths.append(FRAME)
    page.locator(SLIDER).evaluate(RELEASE)
    page.wait_for_function(STORED, timeout=10 * MINUTE)
    options = {"append_images": [*frames[1:], _seen(page, MOVING)], "save_all": True, "duration": [*lengths, LONG]}
    frames[0].save(folder / "explorer.webp", **options, loop=0, quality=60, method=4)
    for name in dict.fromkeys(name.strip() for name in page.locator(TABS).all_text_contents()):
        page.locator(TABS, has_text=name).first.evaluate("tab => tab.click()")
        through(page)
        top = "#tabs"
        if name == "Compare":
            page.locator(SLIDER).evaluate(MOVE, 20)
            page.wait_for_timeout(1000)
            page.locator(SLIDER).evaluate(RELEASE)
            page.wait_for_function(SETTLED, timeout=10 * MINUTE)  # stored, or measured for the last tab
            page.get_by_role("button", name="Generate", exact=True).click()
            page.wait_for_function(ANSWERED, timeout=10 * MINUTE)
            page.wait_for_timeout(20_000)  # until the answers have grown
            top = "#dense-answer"
        if name == "Sweep":  # six points, in some two minutes
            for left_out in ("Uniform", "40%"):
                page.locator("#sweep-choice").get_by_label(left_out, exact=True).uncheck()
            page.wait_for_timeout(1000)
            page.click("#sweep-run")
            page.wait_for_function(SWEPT, timeout=10 * MINUTE)
            top = "#sweep-chart"
        page.locator(top).evaluate("shown => scrollTo(0, shown.getBoundingClientRect().top + scrollY - 150)")
        page.wait_for_timeout(500)
        left = page.locator("#tabs").bounding_box()["x"] - 16  # with the margin that the page has
        seen = {"x": left, "y": 150, "width": WINDOW["width"] - left, "height": WINDOW["height"] - 150}
        _seen(page, SMALL, clip=seen).save(folder / f"{name.lower()}.webp", quality=70, method=6)
        if name == "Sweep":
            chart = page.locator("#leaderboard-size-chart .isx-plot")
            chart.scroll_into_view_if_needed()
            page.wait_for_timeout(1000)
            Image.open(io.BytesIO(chart.screenshot())).convert("RGB").save(folder / "sizes.webp", quality=80, method=6)


def _seen(page: playwright.Page, width: int, **part: dict) -> Image.Image:
    picture = Image.open(io.BytesIO(page.screenshot(**part))).convert("RGB")
    return picture.resize((width, width * picture.height // picture.width), Image.Resampling.LANCZOS)


def through(page: playwright.Page) -> None:
    """Scroll to the end and back, since what has not been in sight is not drawn yet."""
    page.wait_for_timeout(2000)
    for step in range(0, page.evaluate(WHOLE), 400):
        page.evaluate(f"scrollTo(0, {step})")
        page.wait_for_timeout(150)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(500)


def main() -> None:
    """Read the command line and fill the folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.screenshots", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tabs", nargs="*", default=[], help="such as ratios compare; default: all")
    parser.add_argument("--address", help="of a page that is open already; default: a new one")
    parser.add_argument("--readme", action="store_true", help="the README's pictures")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver, contextlib.ExitStack() as stack:
        address = arguments.address or stack.enter_context(running_app())
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        if arguments.readme:
            for_readme(browser, address.rstrip("/"), arguments.folder)
        else:
            shoot(browser, address.rstrip("/"), arguments.folder, arguments.tabs)
        browser.close()


if __name__ == "__main__":
    main()
