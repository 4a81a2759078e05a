"""Values that come in."""

import gradio as gr
import pytest
from gradio import processing_utils

from components.gradio_compat.blocks import PatchedBlocks

META = {"meta": {"_type": "gradio.FileData"}}
ELSEWHERE = {"path": "/etc/hostname"}
ADDRESS = {"path": "https://example.com/x.csv", "url": "https://example.com/x.csv"} | META
# Endpoint, values, and what our message says.
UNREADABLE = {
    "too few values": ("two", (1,), "1 of 2 values are missing"),
    "another type": ("slider", ("a",), "must be a number from 0 to 10, got"),
    "nothing": ("slider", (None,), "must be a number from 0 to 10, got"),
    "a path for a file": ("file", ("/etc/hostname",), "was not uploaded to this page"),
    "an address for a file": ("file", (ADDRESS,), "was not uploaded to this page"),
    "an address for a text": ("text", (ADDRESS,), "was not uploaded to this page"),
}


@pytest.fixture(scope="module", params=[gr.Blocks, PatchedBlocks], ids=["plain", "ours"])
def client(request, launch_once):
    def two(first: float, second: float) -> float:
        return first + second

    def text(value: str) -> str:
        return str(value)

    with request.param() as page:
        gr.api(two, api_name="two")
        gr.api(text, api_name="text")
        slider, file, answer = gr.Slider(0, 10, label="of ten"), gr.File(label="upload"), gr.Textbox()
        gr.on([slider.change], lambda value: str(value), slider, answer, api_name="slider")
        number = gr.Number(0, minimum=0, maximum=10, precision=0, label="whole")
        gr.on([number.change], lambda value: str(value), number, answer, api_name="whole")
        gr.on([file.change], lambda value: str(value), file, answer, api_name="file")
    client = launch_once(page)
    client.is_plain = request.param is gr.Blocks
    return client


@pytest.fixture
def fetched(monkeypatch) -> list[str]:
    """The addresses that gradio fetches."""
    addresses: list[str] = []

    async def fetch(url: str, *_, **__) -> str:
        addresses.append(url)
        raise OSError("no network")

    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    return addresses


@pytest.mark.parametrize("case", UNREADABLE)
def test_plain_gradio_gives_no_reason_and_ours_does(client, fetched, case) -> None:
    endpoint, values, words = UNREADABLE[case]
    kind, answer = client.ask(endpoint, *values)
    assert kind == "error"
    assert answer["error"] is None if client.is_plain else words in answer["error"]
    assert bool(fetched) == (client.is_plain and ADDRESS in values)


def test_plain_gradio_hands_on_a_path_outside_of_the_uploads_and_ours_refuses(client) -> None:
    kind, answer = client.ask("text", ELSEWHERE)
    if client.is_plain:
        assert (kind, answer) == ("complete", [str(ELSEWHERE)])
    else:
        assert kind == "error"
        assert "was not uploaded to this page" in answer["error"]


def test_plain_gradio_rounds_a_fraction_and_ours_refuses_it(client) -> None:
    kind, answer = client.ask("whole", 1.5)
    if client.is_plain:
        assert (kind, answer) == ("complete", ["2"])
    else:
        assert "whole must be a whole number from 0 to 10, got 1.5" in answer["error"].lower()


def test_readable_values_arrive(client) -> None:
    assert client.ask("two", 1, 2) == ("complete", [3.0])
    assert client.ask("slider", 7) == ("complete", ["7"])
    (path,) = client.http.post(f"{client.api}/upload", files={"files": ("a.txt", b"text")}).json()
    assert "uploads" in path
    assert client.ask("file", {"path": path} | META) == ("complete", [path])
