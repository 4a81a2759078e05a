"""Beside the answers: another model, next tokens, what slicing costs each token of a passage, and a long wait."""

import re
from functools import reduce
from html import escape, unescape
from operator import or_

import pytest
import torch
from calling import inputs_of
from tiny_page import SOMEBODY, answer_text, in_job

from components.compare import html as compare_words
from components.compare import panel, passage_panel
from components.compare.models import Columns
from components.compare.views import Question
from components.device import wllama
from components.i18n.language import number, use_language
from components.jobs.status import Status
from components.jobs.waiting import Waiting
from components.ui.handlers import spread_settings
from intraslice.checkpoints import format as checkpoints
from intraslice.diagnostics.token_scores import compare_next_tokens
from intraslice.evaluation import generation
from intraslice.evaluation.generation import generate_text
from intraslice.evaluation.perplexity import DenseStates, measure_losses
from intraslice.loading import load_model

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
    shown = reduce(or_, passage_panel.after_slice(columns, tiny, *asked))
    assert "isx-next" in shown["candidates"]
    assert 'data-percent="30"' in shown["scored"]
    shown = next(passage_panel.after_slice(columns, tiny.with_settings(sparsity=33), *asked))
    assert "Shown as soon as" in shown["candidates"] == shown["scored"]  # not those of 30 %


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


@pytest.fixture
def other(tmp_path, tiny, word_tokenizer, tiny_llama_gqa) -> str:
    """Another tiny model, with the tokenizer of the page's."""
    torch.manual_seed(7)
    model = tiny_llama_gqa()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "other")
    load_model(tiny.settings.model).tokenizer.save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


def answered(session, tiny, name: str, columns: Columns | None = None) -> dict[str, str]:
    question = Question(PROMPT, 12, raw=True)
    return reduce(or_, panel.answer(columns or Columns(session), tiny, question, None, name, SOMEBODY))


def test_it_answers_and_is_measured_as_the_library_does(session, tiny, other) -> None:
    shown = answered(session, tiny, other)
    loaded = load_model(other, getattr(torch, tiny.calibration.dtype))
    assert f"<h3>{other}" in shown["other"]
    assert answer_text(shown["other"]) == "".join(generate_text(loaded.model, loaded.tokenizer, PROMPT, 12))
    columns = Columns(session)
    *_, costs = panel.costs(columns, tiny, None, other, SOMEBODY)
    windows, dense = session.calibrated(tiny).windows, session.calibrated(tiny).loaded.model
    losses = measure_losses(loaded.model, windows, dense=DenseStates(dense), progress=False)
    cost = columns.cached_costs(tiny, other).columns["other"]
    assert cost.perplexity == pytest.approx(losses.perplexity().value, rel=1e-5)
    assert cost.divergence == pytest.approx(losses.divergence(), rel=1e-4)
    assert cost.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    assert cost.decode
    assert "nats per token" in costs["other"]
    assert panel.name_other(columns, tiny, other, "", SOMEBODY)["cost"] == costs["other"]
    assert panel.cached_costs(columns, tiny, None, other, SOMEBODY) | {"status": costs["status"]} == costs
    without = panel.cached_costs(columns, tiny, None, "", SOMEBODY)
    assert without["other"] == ""
    assert without["dense"] == costs["dense"]  # with its speed
    assert "other" not in columns.cached_costs(tiny).columns


def test_a_saved_slice_answers_as_the_column_of_its_sparsity(session, tiny, tmp_path) -> None:
    sliced = in_job(session, session.slice, tiny)
    checkpoints.save(sliced, session.calibrated(tiny).loaded.tokenizer, tmp_path / "sliced", {})
    shown = answered(session, tiny, str(tmp_path / "sliced"))
    assert answer_text(shown["other"]) == answer_text(shown["intraslice"])
    assert "12 tokens" in shown["other"]


def test_what_cannot_be_compared_says_so_while_the_others_answer(session, tiny, tmp_path, tiny_llama_gqa) -> None:
    short = tiny_llama_gqa()
    short.config.max_position_embeddings = 2
    short.save_pretrained(tmp_path / "short")
    load_model(tiny.settings.model).tokenizer.save_pretrained(tmp_path / "short")
    for name, words in ((tmp_path / "none", "none"), (tmp_path / "short", "3 tokens")):
        shown = answered(session, tiny, str(name))
        assert words in answer_text(shown["other"])
        assert "12 tokens" in shown["intraslice"]
    *_, costs = panel.costs(Columns(session), tiny, None, str(tmp_path / "none"), SOMEBODY)
    assert costs["other"] == ""
    assert "tokens/s" in costs["intraslice"]


def test_foreign_tokens_are_never_shown(session, tiny, tmp_path, tiny_llama_gqa, word_tokenizer):
    """Not even where somebody else has an answer of that model on a page of its own."""
    foreign, columns = str(tmp_path / "foreign"), Columns(session)
    tiny_llama_gqa().save_pretrained(foreign)
    vocabulary = [f"w{index}" for index in range(4, 256)]
    word_tokenizer(vocabulary[::-1]).save_pretrained(foreign)
    assert "12 tokens" in answered(session, tiny.with_settings(model=foreign), "", columns)["dense"]
    assert "another tokenizer" in answer_text(answered(session, tiny, foreign, columns)["other"])


def test_an_answer_stays_under_its_own_name(session, tiny, other) -> None:
    columns = Columns(session)
    shown = answered(session, tiny, other, columns)["other"]
    assert "answer" not in panel.name_other(columns, tiny, other, shown, SOMEBODY)
    assert "<h3>another</h3>" in panel.name_other(columns, tiny, "another", shown, SOMEBODY)["answer"]
    assert panel.name_other(columns, tiny, "", shown, SOMEBODY) == {"answer": "", "cost": ""}
    late = panel.answer(columns, tiny, Question("w40 w50", 12, raw=True), None, other, SOMEBODY)
    assert any("other" in step for step in late)  # the first of its tokens
    panel.name_other(columns, tiny, "another", shown, SOMEBODY)  # while that answer is written
    assert not any("other" in step for step in late)


def test_a_hosted_page_reads_no_folder(session, tiny, other, monkeypatch) -> None:
    named = spread_settings(panel.name_other, Columns(session), refuse=str)
    assert "isx-error" not in named(*inputs_of(tiny.settings, other, ""), None)["answer"]
    assert named(*inputs_of(tiny.settings, " ", ""), None) == {"answer": "", "cost": ""}
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    default = tiny.settings._replace(model="default", text="default", upload=None)
    assert "Model must be one of default, " in named(*inputs_of(default, other, ""), None)
