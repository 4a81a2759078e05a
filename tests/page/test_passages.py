"""What either model would say next, and what slicing costs each token of a passage, through the tab's handlers."""

import re
from html import escape, unescape

import pytest
from tiny_page import SOMEBODY, in_job

from components.compare import handlers
from components.compare import html as compare_words
from components.compare.models import Columns
from components.i18n.language import number
from components.ui.handlers import only_if_active, unchanged
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.evaluation import generation

PROMPT = "w10 w20 w30"


@pytest.fixture(scope="module")
def columns(session) -> Columns:
    return Columns(session)


def test_candidates_are_the_librarys(columns, session, tiny) -> None:
    shown = [html for _, html in handlers.next_tokens(columns, tiny, PROMPT, False, SOMEBODY) if isinstance(html, str)]
    loaded = session.calibrated(tiny).loaded
    expected = compare_next_tokens(loaded.model, in_job(session, session.slice, tiny), loaded.tokenizer, PROMPT, 8)
    rows = re.findall('<tr><th scope="row"><code>(.*?)</code></th>.*?<b>(.*?)</b>.*?<b>(.*?)</b>', shown[-1])
    percentage = compare_words.percentage
    assert rows == [(escape(one.text), percentage(one.dense), percentage(one.sliced)) for one in expected]


def test_stop_also_ends_the_reading_of_a_long_prompt(columns, tiny, monkeypatch) -> None:
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 1)
    read = []
    for status, candidates in handlers.next_tokens(columns, tiny, "w10 " * 400, False, SOMEBODY):
        read.append(isinstance(candidates, str))
        if "Reading the prompt" in str(status):
            columns.session.jobs.halt(SOMEBODY, "next tokens")
    assert len(read) > 1
    assert not any(read)


def test_the_passage_carries_the_librarys_scores(columns, session, tiny) -> None:
    text = "w10 w20 w30 w40 w50 w60"
    *_, html = (html for _, html in handlers.passage(columns, tiny, text, SOMEBODY) if isinstance(html, str))
    loaded = session.calibrated(tiny).loaded
    expected = score_passage(loaded.model, in_job(session, session.slice, tiny), loaded.tokenizer, text, 3)
    said = [unescape(one) for one in re.findall('data-said="(.*?)"', html)]
    assert len(said) == 5
    for line, one in zip(said, expected.tokens, strict=True):
        assert line.startswith(one.text)
        assert f"{number(one.extra_loss, '+.2f')} nats" in line
    assert f"{expected.agreement:.0%} of the positions" in html
    assert html.count('tabindex="0"') == 2  # the first token, and the table


@pytest.mark.parametrize(
    ("text", "words"),
    [("w10", "must have 2 to 512 tokens, got 1."), ("w10 " * 600, "must have 2 to 512 tokens, got 600.")],
)
def test_a_passage_too_short_or_too_long_is_refused_where_it_would_stand(columns, tiny, text, words) -> None:
    """And in the status line, where the job may have said how far it was."""
    *_, (status, html) = handlers.passage(columns, tiny, text, SOMEBODY)
    assert words in html
    assert words in status
    assert "<progress" not in status


def test_nothing_follows_a_slice_that_is_not_there_or_not_looked_at(columns, tiny) -> None:
    unknown = tiny.with_settings(sparsity=33)
    after_slice = only_if_active("compare", unchanged(handlers.AfterSlice), handlers.after_slice, columns)
    asked = (PROMPT, False, "w10 w20")
    assert list(after_slice(*unknown.settings, *asked, "compare", SOMEBODY)) == [unchanged(handlers.AfterSlice)]
    assert list(after_slice(*tiny.settings, *asked, "ratios", SOMEBODY)) == [unchanged(handlers.AfterSlice)]
    found = list(after_slice(*tiny.settings, *asked, "compare", SOMEBODY))
    assert any(isinstance(one, str) and "isx-next" in one for _, one, _ in found)
    assert any(isinstance(one, str) and "isx-passage" in one for _, _, one in found)
