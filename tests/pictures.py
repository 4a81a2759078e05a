"""The README's pictures, from the real page on the default model: `python -m tests.pictures` fills `assets/pictures`.

One that moves, in which the slider is dragged and let go, and a small one of each tab.
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from PIL import Image
from playwright import sync_api as playwright

from components.assets import ASSETS
from tests.browsing import ARGUMENTS, CHROMIUM, running_app
from tests.screenshots import MINUTE, SETTLED, TABS, through

FOLDER = ASSETS / "pictures"
WINDOW = {"width": 1200, "height": 760}
MOVING, SMALL = 960, 640  # pixels wide
BACK_AND_FORTH = [round(30 + 22 * math.sin(2 * math.pi * step / 24)) for step in range(25)]  # per cent
FRAME, LONG = 120, 1800  # ms
WHOLE = "/perplexity [0-9.]+ → [0-9.]+ on/.test(document.querySelector('#headline').innerText)"
MOVE = """(percent) => {
    const range = document.querySelector('#sparsity input[type=range]');
    Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(range, percent);
    range.dispatchEvent(new Event('input', { bubbles: true }));
}"""
RELEASE = "document.querySelector('#sparsity input[type=range]').dispatchEvent(new Event('pointerup', {bubbles: true}))"


def moving(page: playwright.Page) -> None:
    """Drag the slider to and fro, let go, and wait for the perplexity."""
    frames, lengths = [_seen(page, MOVING)], [LONG]
    for percent in BACK_AND_FORTH[1:]:
        page.evaluate(MOVE, percent)
        page.wait_for_timeout(350)
        frames.append(_seen(page, MOVING))
        lengths.append(FRAME)
    page.evaluate(RELEASE)
    page.wait_for_function(WHOLE, timeout=10 * MINUTE)
    frames.append(_seen(page, MOVING))
    lengths.append(LONG)
    first, *others = frames
    options = {"append_images": others, "save_all": True, "duration": lengths, "loop": 0, "quality": 60, "method": 4}
    first.save(FOLDER / "explorer.webp", **options)


def still(page: playwright.Page) -> None:
    """One picture a tab."""
    names = [name.strip() for name in page.locator(TABS).all_text_contents()]
    for name in dict.fromkeys(names):
        page.locator(TABS, has_text=name).first.evaluate("tab => tab.click()")
        through(page)
        _seen(page, SMALL).save(FOLDER / f"{name.lower()}.webp", quality=70, method=6)


def _seen(page: playwright.Page, width: int) -> Image.Image:
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return picture.resize((width, width * picture.height // picture.width), Image.Resampling.LANCZOS)


def main() -> None:
    """Fill the folder."""
    FOLDER.mkdir(exist_ok=True)
    with playwright.sync_playwright() as driver, running_app() as address:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport=WINDOW)
        page.goto(f"{address}/?__theme=light")
        page.wait_for_function(SETTLED, timeout=10 * MINUTE)
        page.wait_for_function(WHOLE, timeout=10 * MINUTE)
        moving(page)
        still(page)
        browser.close()
    for path in sorted(Path(FOLDER).iterdir()):
        print(f"{path.name:<20}{path.stat().st_size / 1e3:8.0f} kB")


if __name__ == "__main__":
    main()
