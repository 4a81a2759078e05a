"""Scores, next tokens and divergences against plain forwards and by hand."""

import copy

import pandas
import pytest
from tiny_models import divergences_at_once, losses_at_once

from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage

TEXT = " ".join(f"w{index}" for index in (7, 8, 200, 31, 7, 99, 42, 4, 4, 17))


@pytest.fixture
def pair(family_case):
    return family_case.loaded, family_case.sliced()


@pytest.mark.parametrize("chunk", [2, 512])
def test_scores_are_the_models_own(pair, chunk, monkeypatch):
    loaded, sliced = pair
    monkeypatch.setattr("intraslice.modeling.hidden_states.LOGIT_TOKENS", chunk)
    passage = score_passage(loaded.model, sliced, loaded.tokenizer, TEXT)
    ids = loaded.tokenizer(TEXT, return_tensors="pt").input_ids
    frame = pandas.DataFrame(map(vars, passage.tokens))
    for name, model in (("dense", loaded.model), ("sliced", sliced)):
        assert frame[name].tolist() == pytest.approx((-losses_at_once(model, ids)[0]).tolist(), abs=1e-5)
    divergences = divergences_at_once(loaded.model, sliced, ids)[0]
    assert frame["divergence"].tolist() == pytest.approx(divergences.tolist(), abs=1e-5, rel=1e-4)
    best = [model(ids).logits[0, :-1].argmax(-1) for model in (loaded.model, sliced)]
    assert frame["agree"].tolist() == (best[0] == best[1]).tolist()
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
