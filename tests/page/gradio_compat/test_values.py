"""Values that come in, what becomes of them, and errors as messages."""

import asyncio
import threading
from typing import Any

import gradio as gr
import pytest
from gradio import processing_utils
from stepping import Panic

from components.gradio_compat.blocks import PatchedBlocks, translate_errors
from components.gradio_compat.requests import BYTES_PER_INODE, allocated_bytes, is_uploaded
from components.i18n.language import use_language

META = {"meta": {"_type": "gradio.FileData"}}
ADDRESS = {"path": "https://example.com/x.csv", "url": "https://example.com/x.csv"} | META
# Endpoint, values, and what our message says.
UNREADABLE = {
    "too few values": ("two", (1,), "1 of 2 values are missing"),
    "another type": ("slider", ("a",), "must be a number from 0 to 10, got"),
    "nothing": ("slider", (None,), "must be a number from 0 to 10, got"),
    "a path for a file": ("file", ("/etc/hostname",), "was not uploaded to this page"),
    "an address for a file": ("file", (ADDRESS,), "was not uploaded to this page"),
    "an address for a text": ("text", (ADDRESS,), "was not uploaded to this page"),
    "a path for a text": ("text", ({"path": "/etc/hostname"},), "was not uploaded to this page"),
    "a fraction": ("whole", (1.5,), "hole must be a whole number from 0 to 10, got 1.5"),
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
        whole = gr.Number(0, minimum=0, maximum=10, precision=0, label="whole")
        fields = {"slider": gr.Slider(0, 10, label="of ten"), "whole": whole, "file": gr.File(label="upload")}
        answer = gr.Textbox()
        for name, field in fields.items():
            gr.on([field.change], lambda value: str(value), field, answer, api_name=name)
    client = launch_once(page)
    client.is_plain = request.param is gr.Blocks
    return client


@pytest.mark.parametrize("case", UNREADABLE)
def test_plain_gradio_takes_it_or_gives_no_reason_and_ours_refuses_it_in_words(client, case, monkeypatch) -> None:
    async def fetch(url: str, *_, **__) -> str:
        fetched.append(url)
        raise OSError("no network")

    fetched: list[str] = []
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", fetch)
    endpoint, values, words = UNREADABLE[case]
    kind, answer = client.ask(endpoint, *values)
    if client.is_plain:
        assert kind == "complete" or answer["error"] is None
    else:
        assert kind == "error"
        assert words in answer["error"]
    assert bool(fetched) == (client.is_plain and ADDRESS in values)


def test_readable_values_arrive(client) -> None:
    assert client.ask("two", 1, 2) == ("complete", [3.0])
    assert client.ask("slider", 7) == ("complete", ["7"])
    (path,) = client.http.post(f"{client.api}/upload", files={"files": ("a.txt", b"text")}).json()
    assert "uploads" in path
    assert client.ask("file", {"path": path} | META) == ("complete", [path])


VALUES = [3.14159, "text", "b", None, True, None]


class Page:
    """A function of several components, and where their values were converted."""

    def __init__(self, kind: type[gr.Blocks], answer: Any = None) -> None:
        self.threads: list[bool] = []  # whether each conversion was in a thread of its own
        self.got: tuple[Any, ...] = ()
        with kind() as self.blocks:
            self.components = [gr.Slider(0, 10, step=0.01), gr.Textbox(), gr.Dropdown(["a", "b"])]
            self.components += [gr.Number(), gr.Checkbox(), gr.File()]
            self.html = gr.HTML()
            outputs = [self.html, self.components[0]]
            gr.Button().click(lambda *values: self._take(values, answer), self.components, outputs, api_name="take")
        for component in (*self.components, self.html):
            for name in ("preprocess", "postprocess"):
                setattr(component, name, self._noting(getattr(component, name)))
        (self.function,) = (fn for fn in self.blocks.fns.values() if fn.api_name == "take")

    def _take(self, values: tuple[Any, ...], answer: Any) -> Any:
        self.got = values
        return ("<b>bold</b>", 2) if answer is None else answer(self)

    def _noting(self, convert: Any) -> Any:
        def noted(value: Any) -> Any:
            self.threads.append(threading.current_thread() is not threading.main_thread())
            return convert(value)

        return noted

    def call(self, values: list[Any]) -> list[Any]:
        return asyncio.run(self.blocks.process_api(self.function, values))["data"]


def test_plain_gradio_converts_each_value_in_a_thread() -> None:
    page = Page(gr.Blocks)
    page.call(VALUES)
    assert page.threads == [True] * 8


def test_plain_values_are_converted_without_threads_and_as_gradio_does() -> None:
    page, plain = Page(PatchedBlocks), Page(gr.Blocks)
    assert page.call(VALUES) == plain.call(VALUES) == ["<b>bold</b>", 2]
    assert page.got == plain.got == tuple(VALUES)
    assert page.threads == [False] * 8


def test_gradio_converts_what_is_not_plain_and_refuses_a_wrong_value() -> None:
    page = Page(PatchedBlocks, lambda page: (gr.update(value="new", visible=False), 2))
    updated = page.call(VALUES)[0]
    assert (updated["value"], updated["visible"]) == ("new", False)
    assert True in page.threads
    wrong = [*VALUES[:2], "c", *VALUES[3:]]
    with pytest.raises(gr.Error, match="c is not in the list of choices"):
        Page(PatchedBlocks).call(wrong)


def test_a_component_that_is_left_unchanged_is_not_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[type] = []

    def build(kind: type[gr.Blocks]) -> Any:
        page = Page(kind, lambda _: (gr.skip(), 2))
        original = gr.HTML.__init__
        with monkeypatch.context() as patch:
            patch.setattr(gr.HTML, "__init__", lambda self, *a, **b: (made.append(kind), original(self, *a, **b))[1])
            return page.call(VALUES)[0]

    for kind in (gr.Blocks, PatchedBlocks):
        assert build(kind)["__type__"] == "update"
    assert made == [gr.Blocks]


def test_a_path_is_uploaded_if_it_lies_in_the_folder_whose_allocated_blocks_count(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    assert is_uploaded(str(tmp_path / "uploads" / "1" / "a.txt"))
    assert not is_uploaded(str(tmp_path / "uploads" / ".." / "a.txt"))
    assert not is_uploaded("/etc/hostname")
    (folder := tmp_path / "folder").mkdir()
    assert allocated_bytes(folder) == BYTES_PER_INODE
    for name in range(20):
        (folder / str(name)).write_bytes(b"x")
    assert allocated_bytes(folder) == 21 * BYTES_PER_INODE
    (folder / "large").write_bytes(bytes(2**20))
    assert allocated_bytes(folder) >= 21 * BYTES_PER_INODE + 2**20
    (folder / "sparse").open("wb").truncate(2**30)
    assert allocated_bytes(folder) < 2**22
    assert allocated_bytes(tmp_path / "gone") == 0


def make_page(kind: type[gr.Blocks]) -> gr.Blocks:
    def refuse(value: float) -> float:
        raise ValueError(f"{value:g} is too much; lower it")

    def fail(value: float) -> float:
        raise RuntimeError("of no interest to callers")

    def panic(value: float) -> float:
        raise SystemExit(value) if value else Panic("called `Option::unwrap()`")

    with kind() as page:
        gr.api(refuse, api_name="refuse")
        gr.api(panic, api_name="panic")
        gr.api(fail, api_name="fail")
        choice = gr.Dropdown(["one", "two"])
        choice.change(str, choice, gr.Textbox(), api_name="choose", queue=False)
    return page


def test_plain_gradio_answers_errors_without_a_text_and_prints_a_traceback(launch, capfd) -> None:
    assert launch(make_page(gr.Blocks)).ask("refuse", 7) == ("error", {"error": None})
    assert "Traceback" in capfd.readouterr().err


def test_ours_come_back_as_messages_and_only_the_pages_own_are_logged(launch, capfd, caplog) -> None:
    client = launch(make_page(PatchedBlocks))
    # Gradio quotes an unpaired surrogate, which no answer in UTF-8 can contain: ours is escaped.
    json = {"content": r'{"data": ["\ud800"]}', "headers": {"content-type": "application/json"}}
    assert r"\ud800" in client.http.post(f"{client.api}/run/choose", **json).json()["error"]
    kind, answer = client.ask("refuse", 7)
    assert (kind, answer["error"]) == ("error", "7 is too much; lower it.")
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not caplog.text
    for endpoint, value, name in (
        ("fail", 7, "RuntimeError"),
        ("panic", 1, "SystemExit"),
        *[("panic", 0, "Panic")] * 2,
    ):
        kind, answer = client.ask(endpoint, value)
        assert (kind, f"({name})" in answer["error"]) == ("error", True)
        assert "of no interest" not in answer["error"]
    assert "of no interest" in caplog.text


@pytest.mark.parametrize("problem", [ValueError("too much"), RuntimeError("a mistake"), gr.Error("too much")])
def test_the_title_of_a_message_is_translated(problem) -> None:
    with use_language("de"), pytest.raises(gr.Error) as shown, translate_errors():
        raise problem
    assert shown.value.title == "Fehler"
