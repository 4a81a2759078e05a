"""Beside the answers: what either model would say next, what slicing costs each token of a passage, a long wait."""

import re
from functools import reduce
from html import escape, unescape
from operator import or_

import pytest
import torch
from tiny_page import SOMEBODY, in_job

from components.compare import html as compare_words
from components.compare import panel, passage_panel
from components.compare.models import Columns
from components.compare.views import Question
from components.device import wllama
from components.i18n.language import number, use_language
from components.jobs.status import Status
from components.jobs.waiting import Waiting
from intraslice.diagnostics.token_scores import compare_next_tokens
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


def test_the_passage_carries_the_scores_of_plain_forwards(columns, session, tiny) -> None:
    tiny = tiny.with_settings(sparsity=60, dtype="float32")
    sliced, loaded = in_job(session, session.slice, tiny), session.calibrated(tiny).loaded
    ids = loaded.tokenizer("w10 w20 w30", return_tensors="pt").input_ids
    for step in range(24):  # where the models' guesses differ, the dense model's follows
        guess, other = (int(model(ids).logits[0, -1].argmax()) for model in (loaded.model, sliced))
        ids = torch.cat([ids, torch.tensor([[guess if guess != other and guess > 3 else 4 + 7 * step]])], 1)
    *_, shown, _ = passage_panel.passage(columns, tiny, loaded.tokenizer.decode(ids[0]), SOMEBODY)
    tokens = re.findall('<span class="isx-token.*?</span>', shown["scored"])
    with torch.no_grad():
        tables = dense, cut = [model(ids).logits[0, :-1].log_softmax(-1) for model in (loaded.model, sliced)]
    losses = [table.gather(1, ids[0, 1:, None])[:, 0] for table in tables]
    divergences = (dense.exp() * (dense - cut)).sum(-1).tolist()
    lost = (dense.argmax(-1) == ids[0, 1:]) & (cut.argmax(-1) != ids[0, 1:])
    assert 0 < lost.sum() < len(lost) == len(tokens)
    for index, token in enumerate(tokens):
        said, kl, *guesses = (re.search(f'data-{name}="(.*?)"', token)[1] for name in ("said", "kl", "dense", "sliced"))
        word = loaded.tokenizer.decode([ids[0, index + 1]])
        assert unescape(said).startswith(f"{word} ")
        assert f"{number((losses[0] - losses[1])[index].item(), '+.2f')} nats" in said
        assert float(kl) == pytest.approx(divergences[index], rel=1e-3, abs=1e-6)
        assert (" data-lost " in token) == bool(lost[index])
        for line, table in zip(guesses, tables, strict=True):
            best = table[index].exp().topk(3)
            words = [loaded.tokenizer.decode([one]) for one in best.indices]
            shares = [compare_words.percentage(one) for one in best.values.tolist()]
            assert unescape(line) == " · ".join(map(" ".join, zip(words, shares, strict=True)))
    agreement = (dense.argmax(-1) == cut.argmax(-1)).float().mean().item()
    assert f"{agreement:.0%} of the positions" in shown["scored"]
    assert f"wrong ({lost.sum()})" in shown["scored"]
    assert shown["scored"].count('tabindex="0"') == 1  # the first token


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
    shown = reduce(or_, passage_panel.after_slice(columns, tiny, *asked))
    assert "isx-next" in shown["candidates"]
    assert "isx-passage" in shown["scored"]


LONG, SHORT = Waiting("Waiting; jobs ahead: 4", seconds_left=30), Waiting("Waiting; jobs ahead: 1", seconds_left=5)


def test_a_long_wait_offers_the_device_and_a_short_one_or_a_server_without_the_files_nothing(
    columns, session, tiny, monkeypatch
) -> None:
    def told(event: Status, is_fetched: bool = True) -> str:
        """The status of an answer whose job emits this one."""
        monkeypatch.setattr(wllama, "is_fetched", lambda: is_fetched)
        monkeypatch.setattr(session.jobs, "run", lambda *_, **__: iter([event]))
        return list(panel.answer(columns, tiny, Question("w10", 4), None, "", SOMEBODY))[1]["status"]

    assert "Waiting; jobs ahead: 4, about 30 s left. Choose “Run on: This device”" in told(LONG)
    with use_language("de"):
        assert "Waiting; jobs ahead: 4, noch etwa 30 s. Wer nicht auf den Server warten möchte" in told(LONG)
    for status in (told(SHORT), told(Status("Slicing", seconds_left=30)), told(LONG, is_fetched=False)):
        assert "Run on" not in status
