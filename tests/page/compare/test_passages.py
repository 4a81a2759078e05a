"""Beside the answers: what either model would say next, what slicing costs each token of a passage, a long wait."""

import re
from collections.abc import Iterator
from html import escape, unescape

import gradio as gr
import pytest
from tiny_page import SOMEBODY, in_job

from components.compare import html as compare_words
from components.compare.models import Columns
from components.device import wllama
from components.i18n.language import number, use_language
from components.jobs.status import Status
from components.jobs.waiting import Waiting
from components.state.request import Request
from components.ui.handlers import spread_settings
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.evaluation import generation

PROMPT = "w10 w20 w30"


@pytest.fixture(scope="module")
def columns(session) -> Columns:
    return Columns(session)


def next_tokens(columns: Columns, request: Request, prompt: str) -> Iterator[dict[str, str]]:
    return handlers.next_tokens(columns, request, prompt, False, SOMEBODY)


def test_candidates_are_the_librarys(columns, session, tiny) -> None:
    *_, shown = (step["candidates"] for step in next_tokens(columns, tiny, PROMPT) if "candidates" in step)
    loaded = session.calibrated(tiny).loaded
    expected = compare_next_tokens(loaded.model, in_job(session, session.slice, tiny), loaded.tokenizer, PROMPT, 8)
    rows = re.findall('<tr><th scope="row"><code>(.*?)</code></th>.*?<b>(.*?)</b>.*?<b>(.*?)</b>', shown)
    percentage = compare_words.percentage
    assert re.findall(row, shown["candidates"]) == [
        (escape(one.text), percentage(one.dense), percentage(one.sliced)) for one in expected
    ]


def test_stop_also_ends_the_reading_of_a_long_prompt(columns, tiny, monkeypatch) -> None:
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 1)
    read = []
    for step in next_tokens(columns, tiny, "w10 " * 400):
        read.append("candidates" in step)
        if "Reading the prompt" in str(step):
            columns.session.jobs.halt(SOMEBODY, "next tokens")
    assert len(read) > 1
    assert not any(read)


def test_the_passage_carries_the_librarys_scores(columns, session, tiny) -> None:
    text = "w10 w20 w30 w40 w50 w60"
    *_, html = (step["scored"] for step in handlers.passage(columns, tiny, text, SOMEBODY) if "scored" in step)
    loaded = session.calibrated(tiny).loaded
    expected = score_passage(loaded.model, in_job(session, session.slice, tiny), loaded.tokenizer, text, 3)
    said = [unescape(one) for one in re.findall('data-said="(.*?)"', shown["scored"])]
    assert len(said) == 5
    for line, one in zip(said, expected.tokens, strict=True):
        assert line.startswith(one.text)
        assert f"{number(one.extra_loss, '+.2f')} nats" in line
    assert f"{expected.agreement:.0%} of the positions" in shown["scored"]
    assert shown["scored"].count('tabindex="0"') == 2  # the first token, and the table


@pytest.mark.parametrize("count", [1, 600])
def test_a_passage_too_short_or_too_long_is_refused_where_it_would_stand(columns, tiny, count) -> None:
    """And in the status line, where the job may have said how far it was."""
    *_, last = handlers.passage(columns, tiny, text, SOMEBODY)
    assert words in last["scored"]
    assert words in last["status"]
    assert "<progress" not in last["status"]


def test_nothing_follows_a_slice_that_is_not_there_or_not_looked_at(columns, tiny) -> None:
    unknown = tiny.with_settings(sparsity=33)
    outputs = ("status", "candidates", "scored")
    after_slice = spread_settings(handlers.after_slice, columns, outputs=outputs, tab="compare")
    unchanged = (gr.skip(),) * 3
    asked = (PROMPT, False, "w10 w20")
    assert list(after_slice(*unknown.settings, *asked, "compare", SOMEBODY)) == [unchanged]
    assert list(after_slice(*tiny.settings, *asked, "ratios", SOMEBODY)) == [unchanged]
    found = list(after_slice(*tiny.settings, *asked, "compare", SOMEBODY))
    assert any(isinstance(one, str) and "isx-next" in one for _, one, _ in found)
    assert any(isinstance(one, str) and "isx-passage" in one for _, _, one in found)


# A long wait for an answer of the server offers the user's own device, where that can run the models


LONG, SHORT = Waiting("Waiting; jobs ahead: 4", seconds_left=30), Waiting("Waiting; jobs ahead: 1", seconds_left=5)


@pytest.fixture
def told(session, tiny, monkeypatch):
    """The status of an answer whose job emits this one."""

    def status(event: Status, is_fetched: bool = True) -> str:
        monkeypatch.setattr(wllama, "is_fetched", lambda: is_fetched)
        monkeypatch.setattr(session.jobs, "run", lambda *_: iter([event]))
        question = "w10", 4, 0.0, 0, False, None, ""
        return next(handlers.answer(Columns(session), tiny, *question, SOMEBODY))["status"]

    return status


def test_a_long_wait_offers_the_device(told) -> None:
    assert "Waiting; jobs ahead: 4, about 30 s left. Choose “Run on: This device”" in told(LONG)
    with use_language("de"):
        assert "Waiting; jobs ahead: 4, noch etwa 30 s. Wer nicht auf den Server warten möchte" in told(LONG)


def test_a_short_wait_work_and_a_server_without_the_files_offer_nothing(told) -> None:
    for status in (told(SHORT), told(Status("Slicing", seconds_left=30)), told(LONG, is_fetched=False)):
        assert "Run on" not in status
