"""Small gradio pages, plain ones and ours, and a client that speaks plain HTTP to them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import httpx
import pytest
from gradio import blocks, networking

# Gradio asks a page that it launches for a sign of life within 3 seconds, which a busy machine may need.
networking.url_ok = lambda _: True
# A page makes three servers of 80 routes each before the one that `launch` starts, which takes most of its time.
blocks.App = SimpleNamespace(create_app=lambda *_, **__: None)


def same(value: float) -> float:
    """The value itself: what most pages of these tests answer."""
    return value


def page_of(work: Callable = same, kind: Callable[[], gr.Blocks] = gr.Blocks, **options: Any) -> gr.Blocks:
    """A page with one endpoint, `/work`."""
    with kind() as page:
        gr.api(work, api_name="work", **options)
    return page


class Client:
    """Calls the endpoints of a page, from an address of this machine."""

    def __init__(self, address: str, source: str | None = None) -> None:
        self.address, self.api = address, f"{address}gradio_api"
        self.http = httpx.Client(transport=httpx.HTTPTransport(local_address=source), timeout=60)

    def call(self, endpoint: str, *values: Any, **asked: Any) -> httpx.Response:
        """Call an endpoint; the server's receipt, whose `event_id` nobody reads yet."""
        return self.http.post(f"{self.api}/call/{endpoint}", json={"data": values} | asked)

    def join(self, endpoint: str, *values: Any) -> str:
        """The id of a call."""
        return self.call(endpoint, *values).json()["event_id"]

    def ask(self, endpoint: str, *values: Any) -> tuple[str, Any]:
        """The last event of a call, such as "complete" or "error", and its data."""
        answer = self.http.get(f"{self.api}/call/{endpoint}/{self.join(endpoint, *values)}").text
        event, data = answer.strip().split("\n\n")[-1].split("\n")
        return event.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    def config(self, language: str = "en") -> dict:
        """The page's configuration as a browser of a language gets it."""
        return self.http.get(f"{self.address}config", headers={"accept-language": language}).json()


def launcher(home: Path) -> Iterator[Callable[..., Client]]:
    """A function that launches a page, whose uploads lie in `home / "uploads"`. All are closed at the end."""
    pages = []

    def launch_page(page: gr.Blocks, **options: Any) -> Client:
        pages.append(page)
        _, address, _ = page.queue().launch(prevent_thread_lock=True, quiet=True, **options)
        return Client(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(home / "uploads"))
        yield launch_page
        for page in pages:
            page.close(verbose=False)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    yield from launcher(tmp_path)


@pytest.fixture(scope="module")
def launch_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Client]]:
    """As `launcher`, for the tests of a file."""
    yield from launcher(tmp_path_factory.mktemp("gradio"))
