"""The page's HTML and configuration: made once for each language, with the address of whoever asks."""

import time
from concurrent.futures import ThreadPoolExecutor

import gradio as gr
import httpx
import pytest
from starlette.middleware import Middleware

from components.gradio_compat.http import cached_page
from components.gradio_compat.http.cached_page import CachedPage
from components.i18n.language import LANGUAGES
from components.server.language import LanguageMiddleware


@pytest.fixture(scope="module", params=["plain", "ours"])
def client(request, launch_once):
    made = []

    class Page(gr.Blocks):
        @property
        def config(self):
            made.append(1)
            return vars(self)["config"]

        @config.setter
        def config(self, config):
            vars(self)["config"] = config

    with Page() as page:
        gr.Textbox(label="words")
    ours = [Middleware(CachedPage), Middleware(LanguageMiddleware)]
    client = launch_once(page, app_kwargs={"middleware": ours if request.param == "ours" else []})
    client.is_plain, client.made = request.param == "plain", made
    return client


def ask(client, path: str = "", **headers: str):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return client.http.get(f"{client.address}{path}", headers=named)


def test_plain_gradio_makes_the_page_anew_for_everybody_and_ours_once_for_each_language(client) -> None:
    for code in LANGUAGES:
        ask(client, f"?lang={code}")
    before = len(client.made)
    for code in LANGUAGES:
        assert ask(client, f"?lang={code}&deep_link=none").status_code == 200
    assert (len(client.made) > before) is client.is_plain


@pytest.mark.parametrize("query", ["", "?serialize=False", "?all_endpoints=True", "?all_endpoints=1&page=nowhere"])
def test_what_programs_read_of_the_endpoints_is_gradios(client, query) -> None:
    answer = ask(client, f"gradio_api/info{query}")
    assert answer.json().keys() == {"named_endpoints", "unnamed_endpoints"}
    assert ("etag" in answer.headers) is not client.is_plain
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


def test_what_is_known_is_not_sent_again(client) -> None:
    first = ask(client)
    if client.is_plain:
        assert "etag" not in first.headers
        return
    again = ask(client, if_none_match=first.headers["etag"])
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert ask(client, if_none_match=first.headers["etag"], host="elsewhere").status_code == 200
    assert ask(client, "?lang=de", if_none_match=first.headers["etag"]).status_code == 200


def test_it_is_compressed_where_that_is_accepted(client) -> None:
    if client.is_plain:
        return
    whole, zipped = ask(client, accept_encoding="identity"), ask(client, accept_encoding="gzip, br")
    assert "content-encoding" not in whole.headers
    assert zipped.headers["content-encoding"] == "gzip"
    assert whole.text == zipped.text
    assert int(zipped.headers["content-length"]) < int(whole.headers["content-length"]) / 2


@pytest.mark.parametrize("host", ['a"><script>', "a b", "a\\u0022", "[::1", "user@evil"])
@pytest.mark.parametrize("name", ["host", "x_forwarded_host", "x_gradio_server"])
def test_a_host_that_is_none_is_not_in_the_page(client, name, host) -> None:
    if not client.is_plain:
        answer = ask(client, **{name: host})
        assert answer.status_code == 400 or host not in answer.text


def test_one_address_gets_so_many_bytes_a_second_and_others_do_not_wait(client, monkeypatch) -> None:
    size = len(ask(client, accept_encoding="identity").content)
    monkeypatch.setattr(cached_page, "RATE", 8 * size)

    def seconds(address: str, count: int) -> float:
        transport = httpx.HTTPTransport(local_address=address)
        with httpx.Client(transport=transport, headers={"accept-encoding": "identity"}) as http:
            start = time.monotonic()
            with ThreadPoolExecutor(count) as pool:
                assert all(r.status_code == 200 for r in pool.map(lambda _: http.get(client.address), range(count)))
            return time.monotonic() - start

    with ThreadPoolExecutor() as pool:
        flood = pool.submit(seconds, "127.0.0.2", 20)
        seconds("127.0.0.3", 1)
        was_first = not flood.done()
    assert (flood.result() > 2) is not client.is_plain
    assert was_first or client.is_plain
