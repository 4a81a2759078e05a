"""Errors of handlers as messages."""

import gradio as gr

from components.gradio_compat.blocks import PatchedBlocks


def make_page(kind: type[gr.Blocks]) -> gr.Blocks:
    def refuse(value: float) -> float:
        raise ValueError(f"{value:g} is too much; lower it")

    def fail(value: float) -> float:
        raise RuntimeError("of no interest to callers")

    with kind() as page:
        gr.api(refuse, api_name="refuse")
        gr.api(fail, api_name="fail")
    return page


def test_plain_gradio_answers_errors_without_a_text_and_prints_a_traceback(launch, capfd) -> None:
    assert launch(make_page(gr.Blocks)).ask("refuse", 7) == ("error", {"error": None})
    assert "Traceback" in capfd.readouterr().err


def test_ours_come_back_as_messages_and_only_the_pages_own_are_logged(launch, capfd, caplog) -> None:
    client = launch(make_page(PatchedBlocks))
    kind, answer = client.ask("refuse", 7)
    assert (kind, answer["error"]) == ("error", "7 is too much; lower it")
    assert "Traceback" not in "".join(capfd.readouterr())
    assert not caplog.text
    kind, answer = client.ask("fail", 7)
    assert kind == "error"
    assert "RuntimeError" in answer["error"]
    assert "of no interest" not in answer["error"]
    assert "of no interest" in caplog.text
