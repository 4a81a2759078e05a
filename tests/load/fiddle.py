"""`python -m tests.load.fiddle`: users who fiddle with the default model's page, cold and warm; one line each.

Ends with 1 where a page does not end with one setting, or says that something runs when nothing does.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import httpx
from playwright.sync_api import Browser, sync_playwright

from tests.load.host import link_cache
from tests.support.page.browsing import ARGUMENTS, CHROMIUM, PATIENCE, Opened, running_app
from tests.support.page.fiddling import VIEWPORT, Fiddler

KEPT = {"cold": ("wheels", "models"), "warm": ("wheels", "models", "calibration")}


def fiddle(browser: Browser, seed: int, start: str, actions: int) -> str:
    """One user on a server of their own; what went wrong, or nothing."""
    with tempfile.TemporaryDirectory() as home:
        link_cache(Path(home), KEPT[start])
        with (
            patch.dict(os.environ, INTRASLICE_CACHE=home),
            running_app() as address,
            browser.new_context(viewport=VIEWPORT) as context,
        ):
            context.set_default_timeout(PATIENCE)
            models = [f"{address}{query}" for query in ("/", "/?sequences=8", "/?cap=90")]
            opened, health = Opened(context.new_page()), partial(httpx.get, f"{address}/healthz", timeout=60)
            fiddler = Fiddler(opened, random.Random(seed), models, lambda: not health().json()["calls"], pause=4.0)
            try:
                fiddler.fiddle(actions, patience=600)
            except AssertionError as error:
                return str(error)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--actions", type=int, default=15)
    options = parser.parse_args()
    failed = 0
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        for seed in range(options.first, options.first + options.seeds):
            start, began = ("cold", "warm")[seed % 2], time.monotonic()
            problem = fiddle(browser, seed, start, options.actions)
            failed += bool(problem)
            print(f"seed {seed}, {start}: {problem or 'holds'} ({time.monotonic() - began:.0f} s)", flush=True)
        browser.close()
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
