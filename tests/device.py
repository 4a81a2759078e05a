"""How fast the default model runs on a visitor's own device, in a real browser: `python -m tests.device`.

Not a test: it prints what was measured beside what is wanted. The device is this machine, and the browser is Chromium.
"""

from __future__ import annotations

import argparse
import time

from playwright import sync_api as playwright

from components.device.files import FILE_TYPES
from tests.support.page.browsing import ARGUMENTS, CHROMIUM, running_app

MINUTES = 600_000  # ms, of patience
STATUS = "document.querySelector('#device [role=status]').textContent"
READY = f"{STATUS}.includes('The models are on your device')"
FIRST = "document.querySelector('#device .isx-of-dense .isx-text')?.textContent.trim().length > 0"
SPEEDS = "({ ...document.querySelector('.isx-device-costs').dataset })"
# Half of the logical cores are used, so twice as many are claimed.
THREADS = "Object.defineProperty(navigator, 'hardwareConcurrency', {{ get: () => {} }})"


def choose(page: playwright.Page, address: str, arguments: argparse.Namespace) -> float:
    """Open the Compare tab and choose the device; returns the moment."""
    page.goto(f"{address}/?sparsity={arguments.sparsity:g}&tab=compare")
    page.wait_for_selector("#status:has-text('Calibrated on 32 x')", timeout=MINUTES)
    page.click("#run-on input[value=device]")
    start = time.perf_counter()
    page.click(f"#device-type input[value={arguments.type}]")
    return start


def main() -> None:
    """Print the times of the default model at one sparsity."""
    parser = argparse.ArgumentParser(prog="python -m tests.device", description=__doc__)
    parser.add_argument("--sparsity", type=float, default=30.0)
    parser.add_argument("--type", choices=FILE_TYPES, default="q8_0")
    arguments = parser.parse_args()
    with playwright.sync_playwright() as driver, running_app() as address:
        context = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS).new_context()
        page = context.new_page()
        page.set_default_timeout(MINUTES)
        start = choose(page, address, arguments)
        page.click("#device-download")
        page.wait_for_function(READY)
        print(f"chosen for the first time, until the files are on the device: {time.perf_counter() - start:.1f} s")
        page.close()
        for threads in (1, 2):
            page = context.new_page()
            page.set_default_timeout(MINUTES)
            page.add_init_script(THREADS.format(2 * threads))
            start = choose(page, address, arguments)
            page.wait_for_function(READY)
            page.click("#generate")
            page.wait_for_function(FIRST)
            seconds = time.perf_counter() - start
            page.click("#device-speed")
            page.wait_for_selector("#device-stop:visible")
            page.wait_for_selector("#device-speed:visible")
            speeds = {name: float(value) for name, value in page.evaluate(SPEEDS).items()}
            print(f"{threads} thread(s), isolated: {page.evaluate('crossOriginIsolated')}")
            print(f"  chosen with the files in the browser's storage, to the first token: {seconds:.1f} s (wanted 6)")
            for kind in ("prefill", "decode"):
                dense, sliced = speeds[f"dense{kind}"], speeds[f"sliced{kind}"]
                print(f"  {kind}: dense {dense:.1f}, sliced {sliced:.1f} tokens/s, {sliced / dense:.2f} times")
            page.close()


if __name__ == "__main__":
    main()
