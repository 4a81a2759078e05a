"""The last step of IntraSlice+: the output maps of a sliced model are trained for a moment to speak like the dense one.

Fits layer by layer each answer for their own output; what counts is the distribution of the next token. A few steps of
Adam on the divergence between both models' distributions, on the calibration tokens alone, see all layers together.
Sizes and all other weights stay.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.errors import NumericalError
from intraslice.modeling.families import blocks
from intraslice.modeling.logits import logits_in_chunks
from intraslice.progress import Progress

STEP = 0.003  # of a map's root mean square, at the first step; falls to nought in a straight line
WARM_UP = 4  # steps
TOKENS_A_STEP = 2048


def distil(
    dense: PreTrainedModel, sliced: PreTrainedModel, tokens: Int[Tensor, "sequences length"], epochs: int
) -> Generator[Progress, None, PreTrainedModel]:
    """Train the output maps of `sliced`, in place, towards the dense model's next-token distributions; yields progress.

    Modules that the two models share are left alone. Takes about three times `epochs` dense passes. There is no early
    stop: the fits before have seen every sequence, so none is left that could judge fairly. Raises NumericalError where
    a step leads to weights that are not finite; `sliced` is spoilt then.
    """
    tokens = tokens.to(sliced.device)
    maps = _output_maps(dense, sliced)
    if not maps or epochs == 0:
        return sliced
    dense_hidden = []
    for sequence in tokens:
        with torch.no_grad():
            dense_hidden.append(_last_hidden(dense, sequence).cpu())
        yield Progress("dense states", len(dense_hidden), len(tokens))
    batch = max(1, TOKENS_A_STEP // tokens.shape[1])
    steps = epochs * -(-len(tokens) // batch)
    masters = [weight.detach().float().clone() for weight in maps]  # bfloat16 would round small steps away
    optimiser = torch.optim.Adam([{"params": [m], "rms": m.square().mean().sqrt().item()} for m in masters])
    order, done = torch.Generator().manual_seed(0), 0
    for _ in range(epochs):
        shuffled = torch.randperm(len(tokens), generator=order).tolist()
        for start in range(0, len(shuffled), batch):
            _gradients(sliced, maps, tokens, dense_hidden, shuffled[start : start + batch])
            for group in optimiser.param_groups:
                group["lr"] = STEP * group["rms"] * min(1.0, (done + 1) / WARM_UP) * (1 - done / steps)
            for master, weight in zip(masters, maps, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
            optimiser.step()
            _write_(maps, masters)
            done += 1
            yield Progress("distil", done, steps)
    if not all(torch.isfinite(master).all() for master in masters):
        raise NumericalError("distillation went astray; slice with method intraslice, or calibrate on other text")
    return sliced


def _output_maps(dense: PreTrainedModel, sliced: PreTrainedModel) -> list[nn.Parameter]:
    """Weights of the sliced model's output maps, without those that it shares with the dense model."""
    dense_maps, sliced_maps = (
        [linear for block in blocks(model) for linear in (block.attention.o_proj, block.mlp.down_proj)]
        for model in (dense, sliced)
    )
    return [
        linear.weight
        for linear, shared in zip(sliced_maps, dense_maps, strict=True)
        if linear is not shared and linear.in_features
    ]


@torch.no_grad()
def _write_(maps: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(maps, values, strict=True):
        weight.copy_(value)


def _last_hidden(model: PreTrainedModel, sequence: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
    """What the head reads of every token."""
    return model.model(input_ids=sequence[None], use_cache=False).last_hidden_state[0]


def _gradients(
    model: PreTrainedModel,
    maps: list[nn.Parameter],
    tokens: Int[Tensor, "sequences length"],
    dense_hidden: list[Float[Tensor, "length hidden"]],
    indices: list[int],
) -> None:
    """Leave in the maps the gradient of the mean divergence, in nats a token, over the sequences of these indices."""
    for weight in maps:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            for index in indices:
                hidden = _last_hidden(model, tokens[index])
                leaf = hidden.detach().requires_grad_()
                scale = 1 / (len(indices) * len(leaf))
                for logits, target_hidden in logits_in_chunks(model, leaf, dense_hidden[index].to(leaf.device)):
                    with torch.no_grad():
                        target = model.lm_head(target_hidden).float().log_softmax(-1)
                    divergence = functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="sum")
                    (scale * divergence).backward()
                hidden.backward(leaf.grad)
    finally:
        for weight in maps:
            weight.requires_grad_(False)
