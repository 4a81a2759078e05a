"""The head on a sample of the vocabulary: logits of likely tokens, and an estimate of the normaliser of all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from intraslice.recovery.distill import sampled_head


@pytest.fixture(params=[False, True], ids=["no-bias", "bias"])
def head(request) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 500, bias=request.param).requires_grad_(False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_likely_tokens_have_the_logits_of_the_head(head) -> None:
    likely, hidden = torch.tensor([3, 20, 21, 400], dtype=torch.int32), torch.randn(7, 6)
    sampled = sampled_head(head, likely, generator())
    assert_close(sampled(hidden)[:, :4], head(hidden)[:, likely])
    assert sampled(hidden).shape == (7, 6)
    assert sampled.positions(torch.tensor([400, 3, 21])).tolist() == [3, 0, 2]


def test_the_sum_over_all_tokens_is_estimated_without_bias(head) -> None:
    draws, hidden = generator(2), torch.randn(5, 6)
    likely = head(hidden).exp().sum(0).topk(100).indices.sort().values
    sums = torch.stack([sampled_head(head, likely, draws)(hidden).exp().sum(-1) for _ in range(400)])
    exact = head(hidden).exp().sum(-1)
    assert_close(sums.mean(0), exact, rtol=0.01, atol=0)
    assert (sums.std(0) < 0.1 * exact).all()
    assert (sums.std(0) > 0).all()


@pytest.mark.parametrize("likely", [500, 400])  # all others are drawn
def test_with_all_tokens_in_the_sample_it_is_the_head(head, likely) -> None:
    hidden = torch.randn(3, 6)
    logits = sampled_head(head, torch.arange(likely), generator())(hidden)
    assert_close(logits.sort().values, head(hidden).sort().values)


def test_a_sample_has_no_token_twice_and_follows_the_generator(head) -> None:
    likely = torch.arange(0, 300, 3)
    first, again, other = (sampled_head(head, likely, generator(seed)) for seed in (0, 0, 1))
    assert len(first.weight.unique(dim=0)) == 150
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_logits_of_bfloat16_weights_are_float32(head) -> None:
    likely, hidden = torch.arange(400), torch.randn(3, 6, dtype=torch.bfloat16)
    logits = sampled_head(head.bfloat16(), likely, generator())(hidden)
    assert logits.dtype == torch.float32
    assert_close(logits[:, :400], head(hidden)[:, :400].float(), atol=0.03, rtol=0.01)
