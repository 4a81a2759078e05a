"""The page's HTML and configuration: made once for each language, with the caller's address."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.state_holder import StateHolder
from gradio_pages import Client
from starlette.middleware import Middleware
from stepping import until

from components import limits
from components.gradio_compat import page_config
from components.gradio_compat.blocks import PatchedBlocks
from components.gradio_compat.page_config import CachedPage
from components.i18n.language import LANGUAGES, lazy_gettext
from components.server.middleware import in_language


def make_page(kind: type[gr.Blocks] = PatchedBlocks) -> gr.Blocks:
    with kind() as page, gr.Row():
        gr.Slider(0, 10, value=3, label="of all")
        gr.Dropdown(["a", "b"], value="a")
    return page


@pytest.mark.parametrize("kind", [gr.Blocks, PatchedBlocks], ids=["plain", "ours"])
def test_plain_gradio_builds_the_configuration_anew_for_each_session_and_ours_for_none(kind, monkeypatch) -> None:
    built, original = [], gr.Slider.get_config
    monkeypatch.setattr(gr.Slider, "get_config", lambda self, *rest: built.append(self) or original(self, *rest))
    page, holder = make_page(kind), StateHolder()
    page.state_session_capacity = 9
    holder.set_blocks(page)
    built.clear()
    sessions = [holder[f"session {number}"] for number in range(2)]
    assert len(built) == (2 if kind is gr.Blocks else 0)
    (slider,) = (key for key, block in page.default_config.blocks.items() if isinstance(block, gr.Slider))
    sessions[0]._update_value_in_config(slider, 7)
    sessions[0][slider] = gr.Slider(0, 20, label="of one", render=False)
    assert [session[slider].label for session in sessions] == ["of one", "of all"]
    configurations = {each["id"]: each for each in page.get_config_file()["components"]}
    assert configurations[slider]["props"]["value"] == 3


ENGLISH, GERMAN = "Cancel", "Abbrechen"


@pytest.mark.parametrize(("kind", "german"), [(gr.Blocks, ENGLISH), (PatchedBlocks, GERMAN)], ids=["plain", "ours"])
def test_plain_gradio_sends_one_configuration_to_all_and_ours_one_for_each_language(launch, kind, german) -> None:
    with kind() as page:
        gr.Textbox(label=lazy_gettext(ENGLISH))
    client = launch(page, app_kwargs={"middleware": [Middleware(in_language)]})
    for language, label in (("en", ENGLISH), ("de", german), ("en", ENGLISH)):
        (component,) = (one for one in client.config(language)["components"] if one["type"] == "textbox")
        assert component["props"]["label"] == label


HEAD = '<meta name="of" content="ours">'


class Page(gr.Blocks):
    """Notes each time that its configuration is read."""

    @property
    def config(self):
        self.made = getattr(self, "made", 0) + 1
        return vars(self)["config"]

    @config.setter
    def config(self, config):
        vars(self)["config"] = config


@pytest.fixture(scope="module")
def client(launch_once):
    with Page() as page:
        gr.Textbox(label="words")
    ours = [Middleware(in_language), Middleware(CachedPage, head=HEAD)]
    client = launch_once(page, app_kwargs={"middleware": ours})
    client.page = page
    return client


def ask(client, path: str = "", **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.http.get(f"{client.address}{path}", headers=named)


def test_plain_gradio_makes_the_page_anew_for_everybody(launch) -> None:
    with Page() as page:
        gr.Textbox(label="words")
    client = launch(page, head=HEAD)
    ask(client)
    before = page.made
    assert f"{HEAD}</head>" not in ask(client).text  # gradio's script inserts it later
    assert page.made > before


def test_the_page_is_made_once_for_each_language(client) -> None:
    for code in LANGUAGES:
        ask(client, f"?lang={code}")
    before = client.page.made
    for code in LANGUAGES:
        assert ask(client, f"?lang={code}&deep_link=none").status_code == 200
    assert client.page.made == before
    assert f"{HEAD}</head>" in ask(client).text


@pytest.mark.parametrize("query", ["", "?serialize=False", "?all_endpoints=True", "?all_endpoints=1&page=nowhere"])
def test_what_programs_read_of_the_endpoints_is_gradios(client, query) -> None:
    answer = ask(client, f"gradio_api/info{query}")
    assert answer.json().keys() == {"named_endpoints", "unnamed_endpoints"}
    assert "etag" in answer.headers
    if "=T" in query:  # also those that are no API
        assert len(answer.text) >= len(ask(client, "gradio_api/info").text)


@pytest.mark.parametrize("path", ["", "config"])
def test_each_has_the_address_by_which_it_asked(client, path) -> None:
    mine, theirs = (ask(client, path, host=f"{name}.example:8000").text for name in ("mine", "theirs"))
    assert "http://mine.example:8000" in mine
    assert "theirs.example" not in mine
    assert mine.replace("mine.example", "theirs.example") == theirs
    behind = ask(client, path, host="inner", x_forwarded_host="outer.example", x_forwarded_proto="https").text
    assert "https://outer.example" in behind
    assert "inner" not in behind


def test_what_is_known_is_not_sent_again_and_all_is_compressed_where_that_is_accepted(client) -> None:
    etag = ask(client).headers["etag"]
    again = ask(client, if_none_match=etag)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert ask(client, if_none_match=etag, host="elsewhere").status_code == 200
    assert ask(client, "?lang=de", if_none_match=etag).status_code == 200
    whole, zipped = ask(client, accept_encoding="identity"), ask(client, accept_encoding="gzip, br")
    assert "content-encoding" not in whole.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert whole.text == zipped.text
    assert int(zipped.headers["content-length"]) < int(whole.headers["content-length"]) / 2


@pytest.mark.parametrize("host", ['a"><script>', "a b", "a\\u0022", "[::1", "user@evil"])
@pytest.mark.parametrize("name", ["host", "x_forwarded_host", "x_gradio_server"])
def test_a_host_that_is_none_is_not_in_the_page(client, name, host) -> None:
    answer = ask(client, **{name: host})
    assert answer.status_code == 400 or host not in answer.text


def test_one_address_gets_so_many_bytes_a_second_and_others_do_not_wait(client, monkeypatch) -> None:
    """The first of its requests waits for its time to pass, and the others for the first."""
    size, slept, may_go_on = len(ask(client, accept_encoding="identity").content), [], threading.Event()

    async def sleep(seconds: float) -> None:
        is_first = not slept
        slept.append(seconds)
        while is_first and not may_go_on.is_set():
            await asyncio.sleep(0.01)

    def statuses(address: str, count: int) -> set[int]:
        http = Client(client.address, address).http
        http.headers["accept-encoding"] = "identity"
        with ThreadPoolExecutor(count) as pool:
            return {answer.status_code for answer in pool.map(http.get, [client.address] * count)}

    monkeypatch.setattr(page_config, "asyncio", SimpleNamespace(sleep=sleep, Lock=asyncio.Lock))
    with ThreadPoolExecutor() as pool:
        flood = pool.submit(statuses, "127.0.0.2", 5)
        until(lambda: slept)
        assert statuses("127.0.0.3", 1) == {200}
        assert (len(slept), flood.done()) == (2, False)
        may_go_on.set()
        assert flood.result() == {200}
    assert slept == [pytest.approx(size / limits.PAGE_BYTES_PER_SECOND)] * 6
