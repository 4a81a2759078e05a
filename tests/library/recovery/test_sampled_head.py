"""The head on a sample of the vocabulary: logits of likely tokens, and an estimate of the normaliser of all."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from intraslice.recovery.sampled_head import sampled_head


@pytest.fixture(params=[False, True], ids=["no-bias", "bias"])
def head(request) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 500, bias=request.param).requires_grad_(False)


def test_likely_tokens_have_the_logits_of_the_head(head) -> None:
    likely, hidden = torch.tensor([3, 20, 21, 400]), torch.randn(7, 6)
    sampled = sampled_head(head, likely, torch.Generator().manual_seed(1))
    assert_close(sampled(hidden)[:, :4], head(hidden)[:, likely])
    assert sampled(hidden).shape == (7, 6)
    assert sampled.positions(torch.tensor([400, 3, 21])).tolist() == [3, 0, 2]


def test_the_sum_over_all_tokens_is_estimated_without_bias(head) -> None:
    generator, hidden = torch.Generator().manual_seed(2), torch.randn(5, 6)
    likely = head(hidden).exp().sum(0).topk(100).indices.sort().values
    sums = torch.stack([sampled_head(head, likely, generator)(hidden).exp().sum(-1) for _ in range(400)])
    exact = head(hidden).exp().sum(-1)
    assert_close(sums.mean(0), exact, rtol=0.01, atol=0)
    assert (sums.std(0) < 0.1 * exact).all()
    assert (sums.std(0) > 0).all()


def test_with_all_tokens_likely_it_is_the_head(head) -> None:
    hidden = torch.randn(3, 6)
    sampled = sampled_head(head, torch.arange(500), torch.Generator())
    assert_close(sampled(hidden), head(hidden))
