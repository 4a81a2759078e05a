"""What either model would say next, and what slicing costs each token of a passage, through the tab's handlers."""

import re
from html import escape, unescape

import pytest
from tiny_page import SOMEBODY

from components.compare import html as compare_words
from components.compare.handlers import CompareHandlers
from components.compare.models import Columns
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.progress import finish

PROMPT = "w10 w20 w30"


@pytest.fixture(scope="module")
def columns(session) -> Columns:
    return Columns(session)


@pytest.fixture
def handlers(columns) -> CompareHandlers:
    return CompareHandlers(columns)


def test_candidates_are_the_librarys(handlers, session, tiny) -> None:
    shown = [html for _, html in handlers.next_tokens(tiny, PROMPT, False, SOMEBODY) if isinstance(html, str)]
    loaded = session.calibrated(tiny).loaded
    expected = compare_next_tokens(loaded.model, finish(session.slice(tiny)), loaded.tokenizer, PROMPT, 8)
    rows = re.findall('<tr><th scope="row"><code>(.*?)</code></th>.*?<b>(.*?)</b>.*?<b>(.*?)</b>', shown[-1])
    share = compare_words.share
    assert rows == [(escape(one.text), share(one.dense), share(one.sliced)) for one in expected]


def test_the_passage_carries_the_librarys_scores(handlers, session, tiny) -> None:
    text = "w10 w20 w30 w40 w50 w60"
    *_, html = (html for _, html in handlers.passage(tiny, text, SOMEBODY) if isinstance(html, str))
    loaded = session.calibrated(tiny).loaded
    expected = score_passage(loaded.model, finish(session.slice(tiny)), loaded.tokenizer, text, 3)
    said = [unescape(one) for one in re.findall('data-said="(.*?)"', html)]
    assert len(said) == 5
    for line, one in zip(said, expected.tokens, strict=True):
        assert line.startswith(one.text)
        assert f"{one.extra_loss:+.2f} nats" in line
    assert f"{expected.agreement:.0%} of the places" in html
    assert html.count('tabindex="0"') == 2  # the first token, and the table


@pytest.mark.parametrize(("text", "words"), [("w10", "1 tokens; wanted 2"), ("w10 " * 600, "600 tokens; wanted 2 to")])
def test_a_passage_too_short_or_too_long_is_refused_where_it_would_stand(handlers, tiny, text, words) -> None:
    *_, (_, html) = handlers.passage(tiny, text, SOMEBODY)
    assert words in html


def test_nothing_follows_a_slice_that_is_not_there_or_not_looked_at(handlers, tiny) -> None:
    unknown = tiny._replace(sparsity=33)
    assert len(list(handlers.after_slice(unknown, PROMPT, False, "w10 w20", "compare", SOMEBODY))) == 1
    assert len(list(handlers.after_slice(tiny, PROMPT, False, "w10 w20", "ratios", SOMEBODY))) == 1
    found = list(handlers.after_slice(tiny, PROMPT, False, "w10 w20", "compare", SOMEBODY))
    assert any(isinstance(one, str) and "isx-next" in one for _, one, _ in found)
    assert any(isinstance(one, str) and "isx-passage" in one for _, _, one in found)
