"""One app and one Chromium for all browser tests, and what is measured on a tiny model before the first of them."""

import os
import shutil
import subprocess
import tarfile
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import pytest
import torch
from browsing import ARGUMENTS, CHROMIUM, PATIENCE, Opened, running_app
from gguf_files import byte_tokenizer
from playwright import sync_api as playwright
from tiny_page import PageSession, in_job, tiny_settings

from components.device import wllama
from components.page import build_app, launch_options
from components.state.request import Request, parse
from components.state.session import Session
from intraslice.core.cache import cache_folder
from intraslice.core.errors import UserError

USUAL_CACHE = cache_folder()  # that of the default model, before the tests have one of their own
AXE = "4.10.3"


@pytest.fixture(scope="package")
def axe() -> str:
    """axe-core's script: from npm once, then from the cache. Where it cannot be had, one that finds nothing."""
    kept = USUAL_CACHE / "axe-core" / f"{AXE}.js"
    if not kept.is_file():
        if not shutil.which("npm"):
            return _without_axe("no npm, which axe-core comes from")
        with tempfile.TemporaryDirectory() as folder:
            packed = subprocess.run(["npm", "pack", f"axe-core@{AXE}"], cwd=folder, capture_output=True, text=True)
            if packed.returncode:
                return _without_axe(f"npm cannot fetch axe-core: {packed.stderr.strip()[-200:]}")
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                script = archive.extractfile("package/axe.min.js").read()
        kept.parent.mkdir(parents=True, exist_ok=True)
        (whole := kept.with_suffix(f".{os.getpid()}")).write_bytes(script)
        whole.replace(kept)  # another process may read it
    return kept.read_text(encoding="utf-8")


def _without_axe(reason: str) -> str:
    """The walks through the page are more than axe's: they go on, and pytest's summary says what they lack."""
    warnings.warn(f"accessibility is not tested: {reason}", stacklevel=2)
    return "window.axe = { run: async () => ({ violations: [] }) }"


@pytest.fixture(scope="package")
def tiny(tmp_path_factory, tiny_llama_gqa, word_tokenizer) -> Iterator[Request]:
    """A tiny model, with a bias by which attention is pruned too. The cache is these tests' own."""
    home = tmp_path_factory.mktemp("browser")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        yield parse(tiny_settings(home, tiny_llama_gqa, word_tokenizer)).with_settings(bias=1.0)


@pytest.fixture(scope="package")
def page_session(tiny: Request) -> Session:
    """The app's session, in which the tiny model is calibrated, measured and sliced by both methods."""
    session = PageSession(evaluation_tokens=256)
    session.texts = (*session.texts, tiny.settings.text)  # a link may name what the page offers, and no other file
    for request in (tiny, tiny.with_settings(bias=None)):
        assert list(session.measure(request, "somebody"))[-1].kind == "ready"
        in_job(session, session.slice, request, "crossmodule")
    return session


@pytest.fixture(scope="package")
def address(page_session: Session) -> Iterator[str]:
    page = build_app(page_session)
    page.queue()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url.rstrip("/")
    page.close()


@pytest.fixture(scope="package")
def tiny_query(tiny: Request) -> str:
    """The link of the tiny model, but for its bias."""
    chosen = {name: getattr(tiny.settings, name) for name in ("model", "text", "sequences", "length", "sparsity")}
    return f"/?{urlencode(chosen)}"


@pytest.fixture(scope="package")
def chromium() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=[*ARGUMENTS, "--process-per-site"])
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def browser_context(chromium: playwright.Browser, address: str) -> Iterator[playwright.BrowserContext]:
    """Shared, since a new one would compile all scripts again, as would a new process: a page stays open to keep it."""
    with chromium.new_context(permissions=["clipboard-read", "clipboard-write"]) as context:
        context.set_default_timeout(PATIENCE)
        context.new_page().goto(f"{address}/healthz")
        yield context


def _visits(context: playwright.BrowserContext, address: str) -> Iterator[Callable[..., Opened]]:
    """A function that opens the page with nothing stored; at the end nothing may have gone wrong on it."""
    opened: list[Opened] = []

    def open_page(query: str = "", width: int = 1440, height: int = 900, language: str = "") -> Opened:
        visitor = Opened(context.new_page())
        opened.append(visitor)
        visitor.page.set_viewport_size({"width": width, "height": height})
        browser = context.new_cdp_session(visitor.page)
        browser.send("Storage.clearDataForOrigin", {"origin": address, "storageTypes": "cookies,local_storage"})
        if language:
            agent = visitor.page.evaluate("navigator.userAgent")
            browser.send("Emulation.setUserAgentOverride", {"userAgent": agent, "acceptLanguage": language})
        visitor.page.goto(address + query)
        # A tab that a link does not open has no chart until it is opened.
        drawn = "#tabs [aria-selected=true]" if "tab=" in query else ".js-plotly-plot .main-svg"
        visitor.page.wait_for_selector(f"body.isx-begun {drawn}", state="attached")
        return visitor

    yield open_page
    # Before the pages are closed: in one that becomes hidden gradio's client reads messages out of order.
    faults = [list(visitor.faults) for visitor in opened]
    for visitor in opened:
        visitor.page.close()
    assert faults == [[]] * len(opened)


@pytest.fixture
def visit(browser_context, address) -> Iterator[Callable[..., Opened]]:
    yield from _visits(browser_context, address)


@pytest.fixture(scope="module")
def visit_once(browser_context, address) -> Iterator[Callable[..., Opened]]:
    """As `visit`, for the tests of a file: each sets what it needs, and relies on nothing that another has left."""
    yield from _visits(browser_context, address)


@pytest.fixture(scope="package")
def _plain(browser_context, address) -> Iterator[Opened]:
    visits = _visits(browser_context, address)
    yield next(visits)()
    next(visits, None)  # which looks at what went wrong


@pytest.fixture
def plain(_plain: Opened) -> Opened:
    """The page as it opens without a link, on its first tab; its settings are as the last test left them."""
    _plain.open_tab("ratios")
    _plain.page.evaluate("scrollTo({ top: 0, behavior: 'instant' })")
    return _plain


@pytest.fixture
def usual_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache in which the default model lies."""
    monkeypatch.setenv("INTRASLICE_CACHE", str(USUAL_CACHE))


@pytest.fixture
def real_app(usual_cache: None) -> Iterator[str]:
    """`python app.py` with the default model, in a process of its own: no test's type checks slow it down."""
    with running_app() as url:
        yield url


@pytest.fixture(scope="package")
def engine(page_session: Session) -> str:
    """The WebAssembly files, kept in the usual cache and linked into the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(USUAL_CACHE))
        try:
            kept = wllama.fetch()
        except UserError as problem:
            pytest.skip(str(problem))
    wllama.folder().parent.mkdir(parents=True, exist_ok=True)
    if not wllama.folder().exists():
        wllama.folder().symlink_to(kept, target_is_directory=True)
    return f"device/wllama-{wllama.VERSION}/"


class OnDevice(NamedTuple):
    """A request for a tiny model that llama.cpp can run, and its link."""

    request: Request
    query: str


@pytest.fixture(scope="package")
def on_device(tmp_path_factory, page_session: Session, tiny: Request, tiny_llama_gqa, engine: str) -> OnDevice:
    home = tmp_path_factory.mktemp("device")
    tokenizer, dense = byte_tokenizer(rows=250), tiny_llama_gqa()
    dense.resize_token_embeddings(len(tokenizer))
    with torch.no_grad():
        dense.model.embed_tokens.weight[:3] = 0.0  # so that it says nothing but text
    dense.save_pretrained(home / "tiny")
    tokenizer.save_pretrained(home / "tiny")
    settings = tiny.settings._replace(model=str(home / "tiny"), bias=None, sparsity=30)
    request = parse(settings)
    assert list(page_session.measure(request, "somebody"))[-1].kind == "ready"
    chosen = {name: getattr(settings, name) for name in ("model", "text", "sequences", "length", "sparsity")}
    return OnDevice(request, f"/?{urlencode(chosen)}&tab=compare&prompt=Hello%20world")
