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
from transformers import PreTrainedModel

from intraslice.errors import NumericalError
from intraslice.modeling.families import blocks
from intraslice.progress import Progress

STEP = 0.003  # of a map's root mean square, at the first step; falls to nought in a straight line
WARM_UP = 4  # steps
TOKENS_A_STEP = 2048
LOGIT_TOKENS = 256


def distil(
    dense: PreTrainedModel, sliced: PreTrainedModel, tokens: Int[Tensor, "sequences length"], epochs: int
) -> Generator[Progress, None, PreTrainedModel]:
    """Train the output maps of `sliced`, in place, towards the dense model's next-token distributions; yields progress.

    Modules that the two models share are left alone. Takes about three times `epochs` dense passes. There is no early
    stop: the fits before have seen every sequence, so none is left that could judge fairly. Raises NumericalError where
    a step leads to weights that are not finite; `sliced` is spoilt then.
    """
    tokens = tokens.to(sliced.device)
    maps = _own_maps(dense, sliced)
    if not maps or epochs == 0:
        return sliced
    wanted = []
    for done, sequence in enumerate(tokens):
        wanted.append(_states(dense, sequence).cpu())
        yield Progress("dense states", done + 1, len(tokens))
    batch = max(1, TOKENS_A_STEP // tokens.shape[1])
    steps = epochs * -(-len(tokens) // batch)
    masters = [weight.detach().float().clone() for weight in maps]  # bfloat16 would round small steps away
    optimiser = torch.optim.Adam([{"params": [m], "rms": m.square().mean().sqrt().item()} for m in masters])
    order, done = torch.Generator().manual_seed(0), 0
    for _ in range(epochs):
        shuffled = torch.randperm(len(tokens), generator=order).tolist()
        for start in range(0, len(shuffled), batch):
            _gradients(sliced, maps, tokens, wanted, shuffled[start : start + batch])
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


def _own_maps(dense: PreTrainedModel, sliced: PreTrainedModel) -> list[nn.Parameter]:
    """Weights of the output maps that are not the dense model's own."""
    maps = []
    for theirs, ours in zip(blocks(dense), blocks(sliced), strict=True):
        pairs = ((theirs.attention.o_proj, ours.attention.o_proj), (theirs.mlp.down_proj, ours.mlp.down_proj))
        maps += [own.weight for shared, own in pairs if own is not shared]
    return maps


@torch.no_grad()
def _write_(maps: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(maps, values, strict=True):
        weight.copy_(value)


@torch.no_grad()
def _states(model: PreTrainedModel, sequence: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
    return model.model(input_ids=sequence[None], use_cache=False).last_hidden_state[0]


def _divergence(
    model: PreTrainedModel, states: Float[Tensor, "rows hidden"], wanted: Float[Tensor, "rows hidden"]
) -> Float[Tensor, ""]:
    """Sum over tokens of the divergence of the distributions behind the states from those behind the wanted ones."""
    with torch.no_grad():
        target = model.lm_head(wanted).float().log_softmax(-1)
    own = model.lm_head(states).float().log_softmax(-1)
    return nn.functional.kl_div(own, target, log_target=True, reduction="sum")


def _gradients(
    model: PreTrainedModel, maps: list[nn.Parameter], tokens: Tensor, wanted: list[Tensor], sequences: list[int]
) -> None:
    """Leave the gradient of the mean divergence a token in the maps; logits exist for a few tokens at a time."""
    for weight in maps:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            for index in sequences:
                states = model.model(input_ids=tokens[index][None], use_cache=False).last_hidden_state[0]
                leaf = states.detach().requires_grad_()
                scale = 1 / (len(sequences) * len(leaf))
                targets = wanted[index].to(leaf.device)
                for own, target in zip(leaf.split(LOGIT_TOKENS), targets.split(LOGIT_TOKENS), strict=True):
                    (scale * _divergence(model, own, target)).backward()
                states.backward(leaf.grad)
    finally:
        for weight in maps:
            weight.requires_grad_(False)
