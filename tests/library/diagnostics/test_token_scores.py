"""Scores, next tokens and divergences against plain forwards and by hand."""

import copy

import pandas
import pytest
import torch
from tiny_models import losses_at_once
from torch.testing import assert_close

from intraslice.core.config import SliceConfig
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.planning.ratios import make_plan
from intraslice.slicing.driver import slice_model

TEXT = " ".join(f"w{index}" for index in (7, 8, 200, 31, 7, 99, 42, 4, 4, 17))


@pytest.fixture
def pair(family_case):
    plan = make_plan(family_case.stats.profile, SliceConfig(0.4, order="one-shot"))
    return family_case.loaded, slice_model(family_case.loaded.model, plan, family_case.stats, progress=False)


@pytest.mark.parametrize("chunk", [2, 512])
def test_scores_are_the_models_own(pair, chunk, monkeypatch):
    loaded, sliced = pair
    monkeypatch.setattr("intraslice.modeling.hidden_states.LOGIT_TOKENS", chunk)
    passage = score_passage(loaded.model, sliced, loaded.tokenizer, TEXT)
    ids = loaded.tokenizer(TEXT, return_tensors="pt").input_ids
    frame = pandas.DataFrame(map(vars, passage.tokens))
    for name, model in (("dense", loaded.model), ("sliced", sliced)):
        assert frame[name].tolist() == pytest.approx((-losses_at_once(model, ids)[0]).tolist(), abs=1e-5)
    tables = [model(ids).logits[0, :-1].log_softmax(-1) for model in (loaded.model, sliced)]
    divergence = torch.nn.functional.kl_div(tables[1], tables[0], log_target=True, reduction="none").sum(-1)
    assert_close(torch.tensor(frame["divergence"].tolist()), divergence, atol=1e-5, rtol=1e-4)
    assert frame["agree"].tolist() == (tables[0].argmax(-1) == tables[1].argmax(-1)).tolist()
    assert frame["token"].tolist() == ids[0, 1:].tolist()
    assert [token.extra_loss for token in passage.tokens] == pytest.approx((frame["dense"] - frame["sliced"]).tolist())
    assert passage.agreement == pytest.approx(frame["agree"].mean())
    assert passage.divergence == pytest.approx(frame["divergence"].mean())
    assert [passage.first, *frame["text"]] == TEXT.split()


def test_next_tokens_are_the_best_of_either_and_candidates_those_of_what_stands_before(pair):
    loaded, sliced = pair
    passage = score_passage(loaded.model, sliced, loaded.tokenizer, TEXT, candidates=3)
    expected = compare_next_tokens(loaded.model, sliced, loaded.tokenizer, " ".join(TEXT.split()[:5]), 3)
    candidates = passage.tokens[4].likeliest
    assert [candidate.token for candidate in candidates] == [candidate.token for candidate in expected]
    for candidate, other in zip(candidates, expected, strict=True):
        assert (candidate.dense, candidate.sliced) == pytest.approx((other.dense, other.sliced), rel=1e-3)
    candidates = compare_next_tokens(loaded.model, sliced, loaded.tokenizer, "w7 w8", 3)
    ids = loaded.tokenizer("w7 w8", return_tensors="pt").input_ids
    tables = [model(ids).logits[0, -1].softmax(-1) for model in (loaded.model, sliced)]
    likeliest = {token for table in tables for token in table.topk(3).indices.tolist()}
    assert {candidate.token for candidate in candidates} == likeliest
    for candidate in candidates:
        assert candidate.dense == pytest.approx(tables[0][candidate.token].item(), rel=1e-4)
        assert candidate.sliced == pytest.approx(tables[1][candidate.token].item(), rel=1e-4)
    in_order = [candidate.dense for candidate in candidates]
    assert in_order == sorted(in_order, reverse=True)


def test_a_model_beside_itself_differs_in_nothing(tiny_case):
    loaded = tiny_case("phi").loaded
    passage = score_passage(loaded.model, copy.deepcopy(loaded.model), loaded.tokenizer, TEXT)
    assert passage.agreement == 1
    assert passage.divergence == 0
    assert not any(token.extra_loss for token in passage.tokens)
