"""Beside the answers: what either model would say next, what slicing costs each token of a passage, a long wait."""

import re
from html import escape, unescape

import pytest
from tiny_page import SOMEBODY, in_job

from components.compare import html as compare_words
from components.compare import panel, passage_panel
from components.compare.models import Columns
from components.device import wllama
from components.i18n.language import number, use_language
from components.jobs.status import Status
from components.jobs.waiting import Waiting
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.evaluation import generation

PROMPT = "w10 w20 w30"


@pytest.fixture(scope="module")
def columns(session) -> Columns:
    return Columns(session)


def test_candidates_are_the_librarys(columns, session, tiny) -> None:
    *_, shown, _ = passage_panel.next_tokens(columns, tiny, PROMPT, False, SOMEBODY)
    loaded = session.calibrated(tiny).loaded
    expected = compare_next_tokens(loaded.model, in_job(session, session.slice, tiny), loaded.tokenizer, PROMPT, 8)
    row = '<tr><th scope="row"><code>(.*?)</code></th>.*?<b>(.*?)</b>.*?<b>(.*?)</b>'
    percentage = compare_words.percentage
    assert re.findall(row, shown["candidates"]) == [
        (escape(one.text), percentage(one.dense), percentage(one.sliced)) for one in expected
    ]


def test_stop_also_ends_the_reading_of_a_long_prompt(columns, tiny, monkeypatch) -> None:
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 1)
    read = []
    for answer in passage_panel.next_tokens(columns, tiny, "w10 " * 400, False, SOMEBODY):
        read.append("candidates" in answer)
        if "Reading the prompt" in str(answer):
            columns.session.jobs.halt(SOMEBODY, "next tokens")
    assert len(read) > 1
    assert not any(read)


def test_the_passage_carries_the_librarys_scores(columns, session, tiny) -> None:
    text = "w10 w20 w30 w40 w50 w60"
    *_, shown, _ = passage_panel.passage(columns, tiny, text, SOMEBODY)
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
    *_, last = passage_panel.passage(columns, tiny, "w10 " * count, SOMEBODY)
    assert last.keys() == {"status", "scored"}
    assert all(f"must have 2 to 512 tokens, got {count}." in html for html in last.values())
    assert "<progress" not in last["status"]


def test_next_tokens_and_passage_follow_a_slice_that_is_there(columns, tiny) -> None:
    asked = PROMPT, False, "w10 w20", SOMEBODY
    assert list(passage_panel.after_slice(columns, tiny.with_settings(sparsity=33), *asked)) == []
    shown: dict[str, str] = {}
    for answer in passage_panel.after_slice(columns, tiny, *asked):
        shown |= answer
    assert "isx-next" in shown["candidates"]
    assert "isx-passage" in shown["scored"]


LONG, SHORT = Waiting("Waiting; jobs ahead: 4", seconds_left=30), Waiting("Waiting; jobs ahead: 1", seconds_left=5)


@pytest.fixture
def told(session, tiny, monkeypatch):
    """The status of an answer whose job emits this one."""

    def status(event: Status, is_fetched: bool = True) -> str:
        monkeypatch.setattr(wllama, "is_fetched", lambda: is_fetched)
        monkeypatch.setattr(session.jobs, "run", lambda *_, **__: iter([event]))
        question = "w10", 4, 0.0, 0, False, None, ""
        return list(panel.answer(Columns(session), tiny, *question, SOMEBODY))[1]["status"]

    return status


def test_a_long_wait_offers_the_device_and_a_short_one_or_a_server_without_the_files_nothing(told) -> None:
    assert "Waiting; jobs ahead: 4, about 30 s left. Choose “Run on: This device”" in told(LONG)
    with use_language("de"):
        assert "Waiting; jobs ahead: 4, noch etwa 30 s. Wer nicht auf den Server warten möchte" in told(LONG)
    for status in (told(SHORT), told(Status("Slicing", seconds_left=30)), told(LONG, is_fetched=False)):
        assert "Run on" not in status
