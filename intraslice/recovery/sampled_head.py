"""The LM head on a sample of the vocabulary: a loss on all logits costs a third of a small model's training.

After Jean et al. (arXiv 1412.2007), but the tokens that the dense model expects in a sequence are always in the sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

DRAWN_PER_LIKELY = 0.5  # tokens drawn from the rest of the vocabulary


@dataclass(frozen=True)
class SampledHead:
    """Logits of some tokens whose softmax estimates, on these tokens, that of all.

    The likely tokens stand for themselves. Each of the others, drawn uniformly from the rest of the vocabulary, stands
    for several: the logarithm of their number is added to its logit. The sum of the exponentials is unbiased; of its
    logarithm, the bias is small where the likely tokens have most of the probability. Where two models agree, the
    gradient of their divergence is 0 on every sample.
    """

    likely: Int[Tensor, " likely"]  # ascending; the first tokens of the sample
    weight: Float[Tensor, "sampled hidden"]
    bias: Float[Tensor, " sampled"]

    def __call__(self, hidden: Float[Tensor, "tokens hidden"]) -> Float[Tensor, "tokens sampled"]:
        """Float32 logits of the sample."""
        return linear(hidden, self.weight).float() + self.bias

    def positions(self, tokens: Int[Tensor, " tokens"]) -> Int[Tensor, " tokens"]:
        """The columns of likely tokens."""
        return torch.searchsorted(self.likely, tokens)


def sampled_head(head: nn.Linear, likely: Int[Tensor, " likely"], generator: torch.Generator) -> SampledHead:
    """The rows of `head` for the likely tokens (ascending, on the CPU), and for others that are drawn."""
    likely = likely.long()
    drawn_size, others = sampled_size(head, len(likely)) - len(likely), head.out_features - len(likely)
    keys = torch.rand(head.out_features, generator=generator)
    keys[likely] = -1.0
    drawn = keys.topk(drawn_size).indices
    tokens = torch.cat([likely, drawn]).to(head.weight.device)
    stands_for = others / drawn_size if drawn_size else 1.0
    bias = torch.cat([torch.zeros(len(likely)), torch.full((drawn_size,), math.log(stands_for))]).to(tokens.device)
    if head.bias is not None:
        bias = bias + head.bias[tokens]
    return SampledHead(tokens[: len(likely)], head.weight[tokens], bias)


def sampled_size(head: nn.Linear, likely: int) -> int:
    """The size of the sample for so many likely tokens."""
    return min(likely + round(DRAWN_PER_LIKELY * likely), head.out_features)
