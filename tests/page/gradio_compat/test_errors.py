"""Errors of handlers as messages."""

import gradio as gr
import httpx
import pytest
from gradio_pages import Client

from components.gradio_compat.blocks import PatchedBlocks
from components.gradio_compat.errors import translate_errors
from components.i18n.language import use_language


class Panic(BaseException):
    """As tokenizers raise it; its real name is `pyo3_runtime.PanicException`."""


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


def choose_unpaired_surrogate(client: Client) -> httpx.Response:
    """Ask for a choice that gradio quotes in its error, and that no answer in UTF-8 can contain."""
    json = {"content": r'{"data": ["\ud800"]}', "headers": {"content-type": "application/json"}}
    return client.http.post(f"{client.api}/run/choose", **json)


def test_plain_gradio_fails_to_send_an_error_that_quotes_an_unpaired_surrogate(launch) -> None:
    answer = choose_unpaired_surrogate(launch(make_page(gr.Blocks)))
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_ours_sends_it_escaped(launch) -> None:
    answer = choose_unpaired_surrogate(launch(make_page(PatchedBlocks)))
    assert r"\ud800" in answer.json()["error"]


def test_plain_gradio_answers_errors_without_a_text_and_prints_a_traceback(launch, capfd) -> None:
    assert launch(make_page(gr.Blocks)).ask("refuse", 7) == ("error", {"error": None})
    assert "Traceback" in capfd.readouterr().err


def test_ours_come_back_as_messages_and_only_the_pages_own_are_logged(launch, capfd, caplog) -> None:
    client = launch(make_page(PatchedBlocks))
    kind, answer = client.ask("refuse", 7)
    assert (kind, answer["error"]) == ("error", "7 is too much; lower it.")
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not caplog.text
    kind, answer = client.ask("fail", 7)
    assert kind == "error"
    assert "RuntimeError" in answer["error"]
    assert "of no interest" not in answer["error"]
    assert "of no interest" in caplog.text
    for code, name in ((1, "SystemExit"), (0, "Panic"), (0, "Panic")):
        kind, answer = client.ask("panic", code)
        assert (kind, f"({name})" in answer["error"]) == ("error", True)


@pytest.mark.parametrize("problem", [ValueError("too much"), RuntimeError("a mistake"), gr.Error("too much")])
def test_the_title_of_a_message_is_translated(problem) -> None:
    with use_language("de"), pytest.raises(gr.Error) as shown, translate_errors():
        raise problem
    assert shown.value.title == "Fehler"
