"""What holds for all tests: their environment, their fixtures, and which of them run in one process."""

import functools
import gc
import os
from importlib.metadata import version
from pathlib import Path

# Before huggingface_hub and gradio are imported. The tests touch no network but pip's, and pip's only once, unless
# told to; and each process has ports of its own to launch pages at, below those that the system gives to connections.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["GRADIO_SERVER_PORT"] = str(10_000 + os.getpid() % 220 * 100)
# Tiny tensors gain nothing from a second thread, and on a busy machine the two wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import pytest
from browsing import CHROMIUM
from jaxtyping import config as jaxtyping
from jaxtyping import install_import_hook

TESTS = Path(__file__).parent
LIBRARY, BROWSER = TESTS.parent / "intraslice", TESTS / "browser"
FIXTURES = ("forked", "gradio_pages", "harness", "models", "opened", "stepping", "tiny_page")  # in tests/support
# In tests/library: where shapes are checked.
CHECKED = {"calibration", "core", "diagnostics", "evaluation", "methods", "modeling", "planning", "recovery"}
CHECKED |= {"search", "slicing", "streaming", "test_contract.py"}
# Files of browser tests that the second process runs, and the first does not: about half of the time.
SECOND = {f"test_browser_{name}" for name in ("device", "gradio", "pinning", "published", "rooms", "status", "tabs")}
# With which the tests of gradio's own behaviour, and our workarounds, have passed last.
GRADIO = "6.31"
pytest.register_assert_rewrite(*FIXTURES)  # a folder's conftest.py may import them before


def modules_with_shapes() -> list[str]:
    """The library's modules whose signatures have shapes; what the others have mypy checks, and at no cost."""
    files = [file for file in LIBRARY.rglob("*.py") if "from jaxtyping import" in file.read_text(encoding="utf-8")]
    return [".".join(file.relative_to(LIBRARY.parent).with_suffix("").parts) for file in files]


install_import_hook(modules_with_shapes(), "checking.check_types")
# Each client would read the certificates anew (20 ms), though the tests' servers have none.
httpx._transports.default.create_ssl_context = functools.cache(httpx.create_ssl_context)
# A busy machine takes longer than httpx and gradio's client wait for an answer.
for step in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, step, 60.0)


def pytest_configure(config: pytest.Config) -> None:
    """Import the fixtures, with torch and gradio, but not where other processes run the tests."""
    if not config.getoption("numprocesses", None):
        for name in FIXTURES:
            config.pluginmanager.import_plugin(name)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a long text by its length: a test's id is sent between processes, and some of these texts have megabytes."""
    return f"{argname}_of_{len(val)}" if isinstance(val, str | bytes) and len(val) > 100 else None


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of the browser and of gradio, and say which run in one process: those of a file.

    All browser tests run in two processes, first.
    """
    is_known_gradio = version("gradio").startswith(f"{GRADIO}.") and "gradio" not in config.option.markexpr
    for item in items:
        if item.path.is_relative_to(BROWSER):
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"))
            item.add_marker(pytest.mark.xdist_group(f"browser {1 + (item.path.stem in SECOND)}"))
        else:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if _is_of_plain_gradio(item):
            item.add_marker(pytest.mark.gradio)
            item.add_marker(pytest.mark.skipif(is_known_gradio, reason=f"how gradio {GRADIO} behaves is known"))
    items.sort(key=lambda item: (not item.path.is_relative_to(BROWSER), item.path.stem in SECOND))


def _is_of_plain_gradio(item: pytest.Item) -> bool:
    """Whether it tests only what gradio does without us: by its parameter, or by its name."""
    if "gradio" not in item.path.parent.name + item.path.stem:
        return False
    parameters = item.callspec.id.split("-") if hasattr(item, "callspec") else []
    return "plain" in parameters or (item.name.startswith("test_plain_gradio_") and "_ours_" not in item.name)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make sure that xdist has read the groups, and take what was imported out of garbage collection.

    Without groups each process has a browser of its own, and what a file's tests share is made in each of them. A full
    collection would look through all imports again and again.
    """
    grouped = getattr(session.config.option, "loadgroup", False)
    if grouped and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("xdist reads no groups with this pytest; install tests/requirements.txt")
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Check shapes and types in the tests of the functions that have them, and in the contract of all families.

    Other tests call the same functions, and the checks take a quarter of their time.
    """
    is_library = item.path.is_relative_to(TESTS / "library")
    part = item.path.relative_to(TESTS / "library").parts[0] if is_library else ""
    jaxtyping.update("jaxtyping_disable", part not in CHECKED)
