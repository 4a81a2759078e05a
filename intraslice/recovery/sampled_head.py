"""The LM head on a sample of the vocabulary: what a loss on all logits costs, for a small part of them.

After Jean et al. (arXiv 1412.2007), with the tokens that matter for a sequence always in the sample.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear

OTHERS = 0.5  # tokens drawn from the rest of the vocabulary, per likely token


@dataclass(frozen=True)
class SampledHead:
    """Logits of some tokens whose softmax estimates, on these tokens, that of all.

    The likely tokens stand for themselves. Each of the others, drawn uniformly from the rest of the vocabulary, stands
    for several: the logarithm of their number is added to its logit.
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
    """The rows of `head` for the likely tokens (ascending), and for others that are drawn."""
    is_other = torch.ones(head.out_features, dtype=torch.bool)
    is_other[likely] = False
    others = is_other.nonzero().flatten()
    drawn = others[torch.randperm(len(others), generator=generator)[: sampled_size(head, len(likely)) - len(likely)]]
    tokens, device = torch.cat([likely.long(), drawn]), head.weight.device
    bias = torch.zeros(len(tokens))
    if len(drawn):
        bias[len(likely) :] = torch.tensor(len(others) / len(drawn)).log()
    bias, tokens = bias.to(device), tokens.to(device)
    if head.bias is not None:
        bias = bias + head.bias[tokens]
    return SampledHead(tokens[: len(likely)], head.weight[tokens], bias)


def sampled_size(head: nn.Linear, likely: int) -> int:
    """The size of the sample for so many likely tokens."""
    return min(likely + round(OTHERS * likely), head.out_features)
