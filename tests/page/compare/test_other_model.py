"""Another model beside the sliced one: any that loads and has the same tokens, with its answer and its costs."""

from functools import reduce
from operator import or_

import pytest
import torch
from calling import inputs_of
from tiny_page import SOMEBODY, answer_text, in_job

from components.compare import panel
from components.compare.models import Columns
from components.compare.views import Question
from components.ui.handlers import spread_settings
from intraslice.checkpoints import format as checkpoints
from intraslice.core.errors import UserError
from intraslice.evaluation.generation import generate_text
from intraslice.evaluation.perplexity import DenseStates, measure_losses
from intraslice.loading import load_model

PROMPT = "w10 w20 w30"


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
    named = spread_settings(panel.name_other, Columns(session), refuse=panel.refuse_other)
    assert "isx-error" not in named(*inputs_of(tiny.settings, other, ""), None)["answer"]
    assert named(*inputs_of(tiny.settings, " ", ""), None) == {"answer": "", "cost": ""}
    monkeypatch.setenv("INTRASLICE_HOSTED", "1")
    default = tiny.settings._replace(model="default", text="default", upload=None)
    assert "Model must be one of default, " in named(*inputs_of(default, other, ""), None)["answer"]
    answer = spread_settings(panel.answer, Columns(session))
    with pytest.raises(UserError, match="Model must be one of default, "):
        list(answer(*inputs_of(default, PROMPT, 4, 0.0, 0, True, "", other), None))
