"""The page in a real browser: what the browser tests of every tab share."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import pytest
from playwright import sync_api as playwright

from app import build_app, launch_options
from components.state.session import Session
from components.state.settings import Settings

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000  # ms; a busy machine takes its time


class SnapshotSession(Session):
    """The page as it is before the default model is loaded, which here it never is."""

    def prepare(self, settings: Settings, visitor: str) -> Iterator:
        return iter(())

    def measure(self, settings: Settings, visitor: str) -> Iterator:
        return iter(())

    def memory(self, model: str) -> str:
        return "135 M parameters"


@dataclass
class Opened:
    """A page, and what went wrong on it."""

    page: "playwright.Page"
    faults: list[str] = field(default_factory=list)

    def bars(self) -> list[list[float]]:
        script = (
            "document.querySelector('#ratio-chart .isx-plot').data.filter(t => t.type === 'bar').map(t => [...t.y])"
        )
        return self.page.evaluate(script)

    def drag(self, value: float, slider: str = "#sparsity") -> None:
        """Move a slider as a finger would, and wait for other bars."""
        script = """(range, value) => {
            Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set.call(range, value);
            range.dispatchEvent(new Event('input', { bubbles: true }));
        }"""
        self.moved_by(lambda: self.page.locator(f"{slider} input[type=range]").evaluate(script, value))

    def moved_by(self, act: Callable[[], object]) -> None:
        """Do something, and wait for other bars."""
        before = self.bars()
        act()
        script = """before => JSON.stringify(document.querySelector('#ratio-chart .isx-plot').data
            .filter(t => t.type === 'bar').map(t => [...t.y])) !== before"""
        self.page.wait_for_function(script, arg=json.dumps(before, separators=(",", ":")), timeout=PATIENCE)


@pytest.fixture(scope="session")
def snapshot_session() -> Session:
    return SnapshotSession()


@pytest.fixture(scope="session")
def address(snapshot_session: Session) -> Iterator[str]:
    page = build_app(snapshot_session)
    page.queue()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url.rstrip("/")
    page.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium, address):
    """Opens the page; at the end nothing may have gone wrong on it."""
    opened = []

    def open_page(query: str = "", width: int = 1440, height: int = 900, **options) -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": height}, **options)
        visitor = Opened(context.new_page())
        page, faults = visitor.page, visitor.faults
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: _is_foreign(request.url) and faults.append(f"asked for {request.url}"))
        page.goto(address + query, timeout=PATIENCE)
        # A tab that a link does not open has no chart until it is opened.
        drawn = "#tabs [aria-selected=true]" if "tab=" in query else ".js-plotly-plot .main-svg"
        page.wait_for_selector(f"body.isx-begun {drawn}", timeout=PATIENCE, state="attached")
        opened.append((context, visitor))
        return visitor

    yield open_page
    for context, visitor in opened:
        context.close()
        assert visitor.faults == []


def _is_foreign(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "http://localhost", "data:", "blob:"))


@pytest.fixture
def real_app() -> Iterator[str]:
    """`python app.py` with the default model, in a process of its own: no test's type checks slow it down."""
    with running_app() as url:
        yield url


@contextlib.contextmanager
def running_app(folder: Path = ROOT, output: IO | None = None) -> Iterator[str]:
    """The address of `python app.py` of a folder while it runs; what it says goes to `output`, else to the screen."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_SERVER_PORT": str(port)}
    app = subprocess.Popen([sys.executable, "app.py"], cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        for _ in range(120):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(1)
        else:
            raise TimeoutError(f"app.py opened no port within two minutes (exit code so far: {app.poll()})")
        yield f"http://127.0.0.1:{port}"
    finally:
        app.terminate()
        app.wait()
