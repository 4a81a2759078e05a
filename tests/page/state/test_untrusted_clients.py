"""The page attacked by plain HTTP, as by untrusted clients: nothing of the server goes out, and all work ends."""

import asyncio
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import gradio as gr
import gradio_pages
import httpx
import pytest
from gradio import processing_utils
from gradio_client import Client, handle_file
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from refused_values import NAN, REFUSED
from tiny_page import tiny_settings

from components import limits
from components.assets import ASSETS
from components.page import build_app, launch_options
from components.state import calibrations, request
from components.state.session import Session
from components.state.settings import Settings
from intraslice.pretrained import memory, sources
from intraslice.pretrained.sources import SUGGESTED_MODELS

SECRET = "hunter2"
EXPECTED = r" (must be|may have at most) .*, got | is not a locked ratio; expected "
FOREIGN = "somebody/foreign"
META = {"meta": {"_type": "gradio.FileData"}}


class Server(gradio_pages.Client):
    """A page for untrusted clients, and the folder that all of the server lies in."""

    home: Path

    def ask(self, endpoint: str, **values: Any) -> str:
        """The whole answer to a call by plain HTTP, which no client has looked at before it is sent."""
        headers = {"content-type": "application/json"}
        asked = self.http.post(f"{self.api}/call/v2/{endpoint}", content=json.dumps(values), headers=headers)
        assert asked.status_code == 200, asked.text
        return self.http.get(f"{self.api}/call/{endpoint}/{asked.json()['event_id']}").text

    def refusal(self, endpoint: str, **values: Any) -> str:
        answer = self.ask(endpoint, **values)
        assert answer.startswith("event: error\n"), answer
        return json.loads(answer.split("data: ", 1)[1])["error"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, launch_once, tiny_llama_gqa, word_tokenizer) -> Iterator[Server]:
    """A page as on a Space. Its default model is a tiny one."""
    home = tmp_path_factory.mktemp("server")
    tiny = tiny_settings(home, tiny_llama_gqa, word_tokenizer)
    (home / "secret.csv").write_text(f"{SECRET},number\n{SECRET},1\n")
    (home / "secret.jsonl").write_text(json.dumps({"text": {SECRET: 1}}))
    load = calibrations.load_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        patch.setenv("INTRASLICE_HOSTED", "1")
        patch.setenv("GRADIO_TEMP_DIR", str(home / "uploads"))
        patch.setattr(Settings.__new__, "__defaults__", tuple(tiny._replace(model="default", text="default")))
        patch.setattr(calibrations, "load_model", lambda name, *rest, **more: load(tiny.model, *rest, **more))
        patch.setattr(request, "_identities", {})  # of this process, in which "default" has other weights elsewhere
        server = Server(launch_once(build_app(Session(evaluation_tokens=256)), **launch_options()).address)
        server.home = home
        yield server


@pytest.fixture
def idle(server, monkeypatch) -> Server:
    """The same, where nobody may begin to load anything."""

    def load_model(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(calibrations, "load_model", load_model)
    return server


TEXTS = ("text", "upload")


@pytest.mark.parametrize(
    ("endpoint", "fields"),
    [
        *((name, TEXTS) for name in ("evaluate", "generate", "sweep_table", "command_lines", "prepare", "report")),
        ("locked_ratios", ("ratios_file",)),
    ],
)
def test_no_call_reads_a_file_of_the_server_or_fetches_an_address(idle, endpoint, fields, monkeypatch) -> None:
    fetched = []
    monkeypatch.setattr(processing_utils, "async_ssrf_protected_download", lambda *address: fetched.append(address))
    paths = [str(idle.home / name) for name in ("uploads/../secret.csv", "secret.jsonl")]
    values = [*paths, *({"path": path} for path in paths), *({"path": path} | META for path in paths)]
    values.append({"path": "https://example.com/x.csv", "url": "https://example.com/x.csv"} | META)
    for field, value in product(fields, values):
        words = idle.refusal(endpoint, **{field: value})
        assert "upload" in words or "is not in the list of choices" in words
        assert SECRET not in words
        assert str(idle.home) not in words
    assert not fetched


@pytest.mark.parametrize("endpoint", ["evaluate", "memory", "prepare", "plan"])
def test_no_call_tells_whether_the_server_has_a_folder(idle, endpoint) -> None:
    said = set()
    for name in ("tiny", "none", "tiny/config.json", "secret.csv"):
        answer = idle.ask(endpoint, model=str(idle.home / name))
        assert "microsoft/phi-2" in answer
        assert str(idle.home) not in answer
        said.add(answer.replace(Path(name).name, "NAME"))
    assert len(said) == 1


@pytest.fixture
def unread(idle, monkeypatch) -> Server:
    """The same, where nobody may look for a model on disk or on the Hub either."""
    for name in ("find_weights", "hub_model"):
        for module in (memory, sources):
            monkeypatch.setattr(module, name, None)
    return idle


def test_every_endpoint_and_tool_refuses_a_model_off_the_list(unread) -> None:
    def require_refusal(answer: str) -> None:
        assert all(text in answer for text in (FOREIGN, *SUGGESTED_MODELS)), answer

    async def call_tools() -> int:
        connection = streamablehttp_client(f"{unread.address}gradio_api/mcp/")
        async with connection as (read, write, _), ClientSession(read, write) as session:
            await session.initialize()
            tools = [tool for tool in (await session.list_tools()).tools if "model" in tool.inputSchema["properties"]]
            for tool in tools:
                require_refusal(str(await session.call_tool(tool.name, {"model": FOREIGN})))
            return len(tools)

    named = {"model": FOREIGN, "other": FOREIGN, "pinned": f"sparsity=20&model={FOREIGN}"}
    endpoints = httpx.get(f"{unread.address}gradio_api/info").json()["named_endpoints"]
    taken = {name: {one["parameter_name"] for one in about["parameters"]} for name, about in endpoints.items()}
    entrances = [(endpoint, name) for endpoint, names in taken.items() for name in named if name in names]
    for endpoint, name in entrances:
        require_refusal(unread.ask(endpoint[1:], **{name: named[name]}))
    assert endpoints["/plan"]["parameters"][0]["type"].get("enum") == [*SUGGESTED_MODELS]  # the dropdown's
    assert asyncio.run(call_tools()) == sum("model" in names for names in taken.values()) > 20
    assert len(entrances) > 30


@pytest.mark.parametrize(("language", "words"), [("en", "shows the default model"), ("de", "lädt das Modell")])
def test_a_link_to_a_model_off_the_list_says_so_and_keeps_its_other_settings(unread, language, words) -> None:
    def restored(model: str) -> tuple[Any, ...]:
        url, headers = f"{unread.address}gradio_api/run/restore", {"accept-language": language}
        answer = httpx.post(url, params={"model": model, "sparsity": 45}, json={"data": []}, headers=headers)
        settings = answer.json()["data"]
        return settings[0], settings[Settings._fields.index("sparsity")], settings[-1]

    *kept, notice = restored(FOREIGN)
    assert kept == ["default", 45]
    assert all(text in notice for text in (words, FOREIGN, "pip install -r requirements.txt &amp;&amp; python app.py"))
    assert restored("microsoft/phi-2") == ("microsoft/phi-2", 45, "")


def test_the_page_itself_tells_no_folder_of_the_server_and_nobody_sees_who_calls_what(idle) -> None:
    for page in ("", "config", "gradio_api/info"):
        text = httpx.get(f"{idle.address}{page}").text
        folders = (Path(gr.__file__).parents[1], ASSETS.parent, idle.home)
        assert not [folder for folder in folders if str(folder) in text]
    assert "plotly.js" in httpx.get(f"{idle.address}plotly.min.js").text[:200]
    assert [httpx.get(f"{idle.address}monitoring{page}").status_code for page in ("", "/summary")] == [404, 404]


def test_a_visitors_own_upload_is_read(server) -> None:
    client = Client(server.address, verbose=False)
    upload = handle_file(server.home / "text.txt")
    found = client.predict(upload=upload, sparsity=40, api_name="/evaluate")
    assert found["perplexity"]["sliced"] > 0
    assert str(server.home / "uploads") not in json.dumps(found)
    assert "--calibration text.txt" in client.predict(upload=upload, api_name="/command_lines")
    words = server.refusal("evaluate", upload=_sent(server, "mine.csv", f"{SECRET},b\n1,2\n"))
    report = Path(client.predict(upload=upload, sparsity=40, api_name="/report")).read_text(encoding="utf-8")
    assert str(server.home / "uploads") not in report
    assert "mine.csv" in words
    assert str(server.home) not in words


def _sent(server: Server, name: str, content: str) -> dict:
    answer = httpx.post(f"{server.address}gradio_api/upload", files={"files": (name, content)})
    return {"path": answer.json()[0]} | META


@pytest.mark.parametrize(
    ("endpoint", "values", "words"),
    [
        ("evaluate", {"sequences": 1, "length": 8192}, "Length must be a whole number from 2 to 2,048, got 8192"),
        ("evaluate", {"sequences": 256, "length": 512}, "at most 73,728 tokens, got 131,072 (256 sequences of 512)."),
        ("evaluate", {"model": [1]}, "Model must be text, got ["),
        ("generate", {"tokens": 10**9}, "Maximum new tokens must be a whole number from 1 to 512, got 1000000000"),
        ("generate", {"prompt": " "}, "The prompt is empty; expected some text."),
        ("generate", {"temperature": 1e9}, "Temperature must be a number from 0 to 5, got 1000000000.0"),
        ("generate", {"sample_seed": 2**40}, "must be a whole number from 0 to 2,147,483,647"),
        ("answer", {"prompt": "w10 " * 5_000}, "Prompt may have at most 16,000 characters, got 20,000"),
        ("passage", {"passage": "w10 " * 5_000}, "Passage may have at most 8,000 characters, got 20,000"),
        ("sweep_table", {"sparsities": list(range(1000))}, "A sweep may have at most 100 points, got 4,000"),
        ("sweep_table", {"sparsities": [NAN]}, "Sparsity must be a number from 0 to 80, got nan"),
        ("sweep_table", {"methods": ["intraslice"] * 1000}, "A sweep may have at most 100 points, got 8,000"),
        ("sweep_table", {"methods": "intraslice"}, "Methods must be a list, got 'intraslice'"),
        ("sweep_table", {"methods": [["a"]]}, "Method must be one of intraslice, "),
        ("sweep_table", {"estimators": ["none"]}, "one of pca, output-error, fisher, uniform, got 'none'"),
        ("facts", {"language": ["en"]}, "Language must be one of en, de, got ['en']"),
        ("sweep_table", {"sparsities": [70], "cap": 60}, "raise the cap"),
        ("command_lines", {"locked": "1 mlp 5," * 10_000}, "may have at most 10,000 characters, got 80,000"),
    ],
)
def test_what_is_too_much_is_refused_before_any_work(idle, endpoint, values, words) -> None:
    assert words in idle.refusal(endpoint, **values)


def test_requests_and_uploads_are_bounded_and_refused_in_words(server, capfd) -> None:
    """As `bounded_requests` does it, whose own tests have more."""
    url, folder = f"{server.address}gradio_api", server.home / "uploads"
    headers, before, largest = {"content-type": "application/json"}, set(folder.rglob("*")), limits.UPLOAD.value
    endless = (b" " * 2**16 for _ in range(10_000))  # says no length, and is read no further
    for content in (b" " * (limits.REQUEST.value + 1), endless):
        answer = httpx.post(f"{url}/queue/join", content=content, headers=headers, timeout=60)
        assert (answer.status_code, "maximum allowed size" in answer.text) == (413, True)
    answer = httpx.post(f"{url}/upload", files={"files": ("a.txt", bytes(largest + 1))}, timeout=60)
    assert (answer.status_code, "maximum allowed size" in answer.text) == (413, True)
    assert set(folder.rglob("*")) == before
    assert "Traceback" not in "".join(capfd.readouterr())
    assert httpx.get(f"{server.address}config").json()["max_file_size"] == largest


@pytest.mark.parametrize("field", REFUSED)
def test_bad_values_come_back_in_words_and_leave_no_traceback(idle, field, capfd) -> None:
    some = {repr(value): value for value in (REFUSED[field][0], None, REFUSED[field][-1]) if value in REFUSED[field]}
    for value in some.values():
        words = idle.refusal("evaluate", **{field: value})
        assert re.search(EXPECTED, words)
        assert len(words) < 1000
    answer = idle.ask("ratios", **{field: REFUSED[field][0]})
    assert re.search(EXPECTED, answer) or "is not in the list of choices" in answer
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err + printed.out
