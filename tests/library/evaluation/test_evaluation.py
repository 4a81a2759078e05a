"""Perplexity against transformers' own loss, and sizes against the tensors."""

import math

import pytest
import torch
from tiny_models import divergences_at_once, losses_at_once
from torch.testing import assert_close

from intraslice.core.progress import Progress
from intraslice.evaluation import perplexity as perplexity_module
from intraslice.evaluation.perplexity import (
    DenseStates,
    Losses,
    divergences,
    measure_half_window,
    measure_losses,
    perplexity,
)


def test_perplexity_is_transformers_own_loss(family_case):
    losses = [family_case.original(row[None], labels=row[None]).loss.item() for row in family_case.tokens]
    found = perplexity(family_case.dense, family_case.tokens, progress=False)
    assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_estimates_and_divergences_against_numbers_worked_out_by_hand():
    assert math.isnan(Losses(done=0, total=2, sizes=(3, 4)).perplexity().value)
    dense = Losses(2, 2, sums=((2.0, 6.0), (4.0, 4.0)), sizes=(2, 4))
    sliced = Losses(1, 2, sums=((4.0, 6.0),), sizes=(2, 4))
    # Mean loss 16 / 12; block means 1, 1.5, 2, 1 have the standard deviation sqrt(0.6875 / 3).
    value, error = dense.perplexity()
    assert value == pytest.approx(math.exp(4 / 3))
    assert error == pytest.approx(math.exp(4 / 3) * math.sqrt(0.6875 / 3) / 2)
    # The first window alone is paired: 2 nats more over its 6 tokens, by blocks 1 and 0.
    ratio, error = sliced.ratio(dense)
    assert ratio == pytest.approx(math.exp(1 / 3))
    assert error == pytest.approx(math.exp(1 / 3) * math.sqrt(0.5) / math.sqrt(2))
    assert Losses(1, 1, sums=((3.0,),), sizes=(3,)).perplexity() == (pytest.approx(math.e), None)
    dense = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 1e-30]]).log() + 7  # logits, up to a constant
    other = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]]).log() - 3
    expected = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0, math.log(2)]
    assert divergences(dense, other).tolist() == pytest.approx(expected, abs=1e-5)


def test_losses_grow_by_the_window_and_end_at_the_perplexity_of_all(case, monkeypatch):
    monkeypatch.setattr(perplexity_module, "TOKENS_PER_BATCH", 1)
    monkeypatch.setattr(perplexity_module, "BLOCK", 7)
    events: list[Progress] = []
    losses = measure_losses(case.dense, case.tokens, progress=events.append)
    known = [event.partial() for event in events]
    assert sorted({len(part.sums) for part in known}) == [*range(len(case.tokens) + 1)]
    assert [event.done for event in events] == [part.done for part in known] == sorted(len(part.sums) for part in known)
    assert known[-1] == losses
    for part in known[:: len(known) // 3]:
        assert measure_losses(case.dense, case.tokens, so_far=part, progress=False) == losses
    assert sum(losses.sizes) == case.tokens.shape[1] - 1
    assert {(event.stage, event.total) for event in events} == {("evaluate", len(case.tokens))}
    by_token = losses_at_once(case.original, case.tokens)
    sums = torch.stack([block.sum(1) for block in by_token.split(losses.sizes, 1)], 1)
    assert_close(torch.tensor(losses.sums), sums, atol=1e-4, rtol=1e-4)
    assert losses.perplexity().value == pytest.approx(by_token.mean().exp().item(), rel=1e-5)
    half = losses_at_once(case.dense, case.tokens[:8])
    middle = next(part for part in known if part.done == 8)
    assert middle.perplexity().value == pytest.approx(half.mean().exp().item(), rel=1e-5)
    assert losses.ratio(losses) == (1.0, 0.0)


def test_half_a_window_has_the_first_blocks_of_the_first(case, monkeypatch):
    monkeypatch.setattr(perplexity_module, "BLOCK", 7)
    model = case.sliced()
    half, whole = measure_half_window(model, case.tokens, progress=False), measure_losses(model, case.tokens)
    blocks = len(whole.sizes) // 2
    assert half.sizes == whole.sizes[:blocks]
    assert half.sums == (pytest.approx(whole.sums[0][:blocks], rel=1e-5),)
    assert (half.done, half.windows, half.total) == (0, 0.5, len(case.tokens))
    dense = measure_losses(case.dense, case.tokens)
    pairs = zip(half.sums[0], dense.sums[0][:blocks], strict=True)
    expected = math.exp(sum(this - other for this, other in pairs) / sum(half.sizes))
    assert half.ratio(dense).value == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="expected windows with the same blocks"):
        half.ratio(measure_losses(case.dense, case.tokens[:, 16:]))


def test_a_hopeless_model_has_infinite_perplexity(tiny_llama_gqa):
    model = tiny_llama_gqa()
    model.lm_head.weight.data *= 1e5
    assert perplexity(model, torch.arange(3, 23).view(2, 10), progress=False) == math.inf


def test_divergence_is_measured_in_the_same_pass(family_case, monkeypatch):
    monkeypatch.setattr(perplexity_module, "TOKENS_PER_BATCH", 5 * family_case.tokens.shape[1])
    monkeypatch.setattr("intraslice.modeling.hidden_states.LOGIT_TOKENS", 17)
    dense, cut = family_case.dense, family_case.sliced()
    states, passes = DenseStates(dense), []
    hook = dense.model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    own = measure_losses(dense, family_case.tokens, dense=states, progress=False)
    count = len(passes)
    losses = measure_losses(cut, family_case.tokens, dense=states, progress=False)
    hook.remove()
    assert len(passes) == count  # the dense layers have run once
    expected = divergences_at_once(dense, cut, family_case.tokens).mean(1)
    value, error = losses.divergence()
    assert value == pytest.approx(expected.mean().item(), rel=1e-3)
    assert error == pytest.approx((expected.std() / len(expected) ** 0.5).item(), rel=1e-2)
    assert own.divergence() == (0.0, 0.0)
    assert losses.sums == measure_losses(cut, family_case.tokens, progress=False).sums
    assert measure_losses(cut, family_case.tokens, progress=False).divergence() is None
