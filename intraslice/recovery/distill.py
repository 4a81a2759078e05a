"""The last step of IntraSlice+: the weights of a sliced model are trained for a moment to speak like the dense one.

Fits layer by layer each answer for their own output; what counts is the distribution of the next token. Some steps of
Adam see all layers together, and text that no fit has seen: towards the dense model's distributions and, with less
weight, towards the tokens that the text really has (Hinton et al., arXiv 1503.02531). Sizes stay, and so does what the
two models share.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.modeling.logits import logits_in_chunks
from intraslice.pretrained.memory import available_bytes

STEP = 0.001  # of a matrix's root mean square, after the warm-up; falls to nought in a straight line
WARM_UP = 6  # steps
HARD = 0.5  # weight of the text's own next tokens beside the dense model's distributions of them
NONE = -100  # no token follows the last
TOKENS_A_STEP = 1024
BYTES_A_WEIGHT = 16  # of its float32 master, Adam's two means and the gradient


def distil(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    tokens: Int[Tensor, "sequences length"],
    epochs: int,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Train the matrices of `sliced`, in place, as this file says.

    Parameters that the two models share are left alone. Takes one dense pass over `tokens`, and three of the sliced
    model an epoch. There is no early stop: in one epoch every step is taken on text that is new to it.

    Raises:
        UserError: training does not fit into memory.
        NumericalError: a step leads to weights that are not finite; `sliced` is spoilt then.
    """
    report, tokens = progress_callback(progress), tokens.to(sliced.device)
    matrices = _own_matrices(dense, sliced)
    if not matrices or epochs == 0:
        return sliced
    _require_memory(matrices, sliced.device)
    dense_hidden = []
    for sequence in tokens:
        with torch.no_grad():
            dense_hidden.append(_last_hidden(dense, sequence).cpu())
        report(Progress("dense states", len(dense_hidden), len(tokens)))
    batch = max(1, TOKENS_A_STEP // tokens.shape[1])
    steps = epochs * -(-len(tokens) // batch)
    masters = [weight.detach().float().clone() for weight in matrices]  # bfloat16 would round small steps away
    optimiser = torch.optim.Adam([{"params": [m], "rms": m.square().mean().sqrt().item()} for m in masters])
    order, done = torch.Generator().manual_seed(0), 0
    for _ in range(epochs):
        shuffled = torch.randperm(len(tokens), generator=order).tolist()
        for start in range(0, len(shuffled), batch):
            indices = shuffled[start : start + batch]
            for index in indices:
                _add_gradients_(sliced, matrices, tokens[index], dense_hidden[index], 1 / len(indices))
                report(Progress("distil", done, steps))
            for group in optimiser.param_groups:
                group["lr"] = STEP * group["rms"] * min(1.0, (done + 1) / WARM_UP) * (1 - done / steps)
            for master, weight in zip(masters, matrices, strict=True):
                master.grad, weight.grad = weight.grad.float(), None
            optimiser.step()
            _write_(matrices, masters)
            done += 1
            report(Progress("distil", done, steps))
    if not all(torch.isfinite(master).all() for master in masters):
        raise NumericalError("distillation went astray; slice with method intraslice, or calibrate on other text")
    return sliced


def _own_matrices(dense: PreTrainedModel, sliced: PreTrainedModel) -> list[nn.Parameter]:
    """Weights of the sliced model's layers, without those that it shares with the dense model, and without biases."""
    shared = {id(parameter) for parameter in dense.parameters()}
    parameters = sliced.model.layers.parameters()
    return [weight for weight in parameters if weight.ndim == 2 and weight.numel() and id(weight) not in shared]


def _require_memory(matrices: list[nn.Parameter], device: torch.device) -> None:
    needed, free = BYTES_A_WEIGHT * sum(weight.numel() for weight in matrices), available_bytes(str(device))
    if needed > free:
        raise UserError(
            f"distilling this slice needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {device}; "
            "take method intraslice"
        )


@torch.no_grad()
def _write_(matrices: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(matrices, values, strict=True):
        weight.copy_(value)


def _last_hidden(model: PreTrainedModel, sequence: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
    """What the head reads of every token."""
    return model.model(input_ids=sequence[None], use_cache=False).last_hidden_state[0]


def _add_gradients_(
    model: PreTrainedModel,
    matrices: list[nn.Parameter],
    sequence: Int[Tensor, " length"],
    dense_hidden: Float[Tensor, "length hidden"],
    share: float,
) -> None:
    """Add to the matrices' gradients a share of that of the sequence's mean loss, in nats a token."""
    for weight in matrices:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            hidden = _last_hidden(model, sequence)
            leaf = hidden.detach().requires_grad_()
            following = functional.pad(sequence[1:], (0, 1), value=NONE)
            for logits, target_hidden, tokens in logits_in_chunks(model, leaf, dense_hidden.to(leaf.device), following):
                with torch.no_grad():
                    target = model.lm_head(target_hidden).float().log_softmax(-1)
                told = logits.log_softmax(-1)
                loss = functional.kl_div(told, target, log_target=True, reduction="sum")
                loss = loss + HARD * functional.nll_loss(told, tokens, ignore_index=NONE, reduction="sum")
                (share / len(leaf) * loss).backward()
            hidden.backward(leaf.grad)
    finally:
        for weight in matrices:
            weight.requires_grad_(False)
