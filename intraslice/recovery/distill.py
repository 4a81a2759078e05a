"""Distillation: the weights of a sliced model are trained for a short time towards the dense model's distributions.

Slicing fits each layer to its own output, but the next token's distribution is what counts. Here some steps of Adam
train all layers together, on more text than the slicing used. The loss is the KL divergence from the dense model's
distributions plus, with less weight, the cross-entropy of the text's next tokens (Hinton et al., arXiv 1503.02531).
No size changes, and no tensor that the two models share.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress, ProgressCallback, progress_callback
from intraslice.core.registry import RECOVERIES
from intraslice.modeling.logits import logits_in_chunks
from intraslice.pretrained.memory import available_bytes
from intraslice.recovery.registry import Recovery

IGNORE_INDEX = -100  # label of the last token, which none follows
BYTES_PER_WEIGHT = 16  # of its float32 master, Adam's two means and the gradient


@dataclass(frozen=True)
class Distillation(Recovery):
    """Adam on all matrices of the sliced layers, towards the dense model's distributions and the text's labels."""

    name = "distill"
    label = "Distillation"
    explanation = "all weights of the sliced layers trained towards the dense model and the text's next tokens"

    learning_rate: float = 0.001  # of a matrix's root mean square, after the warm-up; falls linearly to 0
    warm_up: int = 6  # steps
    ce_weight: float = 0.5  # of the cross-entropy, beside the KL divergence
    tokens_per_step: int = 1024

    def recover(
        self,
        dense: PreTrainedModel,
        sliced: PreTrainedModel,
        tokens: Int[Tensor, "sequences length"],
        epochs: int,
        *,
        progress: ProgressCallback | bool = True,
    ) -> PreTrainedModel:
        """Train the matrices of `sliced`, in place.

        Costs one dense forward over `tokens`, and a forward and a backward of the sliced model for each epoch. There is
        no early stop: in one epoch every step is taken on text that is new to it.

        Raises:
            UserError: the training does not fit into memory.
            NumericalError: a step leads to weights that are not finite.
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
        try:
            self._train_(sliced, matrices, tokens, dense_hidden, epochs, report)
        finally:
            for weight in matrices:
                weight.grad = None
        return sliced

    def _train_(
        self,
        model: PreTrainedModel,
        matrices: list[nn.Parameter],
        tokens: Int[Tensor, "sequences length"],
        dense_hidden: list[Float[Tensor, "length hidden"]],
        epochs: int,
        progress: ProgressCallback,
    ) -> None:
        batch = max(1, self.tokens_per_step // tokens.shape[1])
        steps = epochs * -(-len(tokens) // batch)
        masters = [weight.detach().float().clone() for weight in matrices]  # bfloat16 would round small steps away
        optimiser = torch.optim.Adam([{"params": [m], "rms": m.square().mean().sqrt().item()} for m in masters])
        order, done = torch.Generator().manual_seed(0), 0
        for _ in range(epochs):
            shuffled = torch.randperm(len(tokens), generator=order).tolist()
            for start in range(0, len(shuffled), batch):
                indices = shuffled[start : start + batch]
                for index in indices:
                    self._add_gradients_(model, matrices, tokens[index], dense_hidden[index], 1 / len(indices))
                    progress(Progress("distill", done, steps))
                factor = min(1.0, (done + 1) / self.warm_up) * (1 - done / steps)
                for group in optimiser.param_groups:
                    group["lr"] = self.learning_rate * group["rms"] * factor
                for master, weight in zip(masters, matrices, strict=True):
                    if weight.grad is not None:
                        master.grad, weight.grad = weight.grad.float(), None
                optimiser.step()
                _write_(matrices, masters)
                done += 1
                progress(Progress("distill", done, steps))
        if not all(torch.isfinite(master).all() for master in masters):
            raise NumericalError("distillation diverged; leave the recovery out, or calibrate on other text")

    def _add_gradients_(
        self,
        model: PreTrainedModel,
        matrices: list[nn.Parameter],
        sequence: Int[Tensor, " length"],
        dense_hidden: Float[Tensor, "length hidden"],
        scale: float,
    ) -> None:
        """Add to the matrices' gradients `scale` times that of the sequence's mean loss, in nats per token."""
        for weight in matrices:
            weight.requires_grad_(True)
        try:
            with torch.enable_grad():
                hidden = _last_hidden(model, sequence)
                leaf = hidden.detach().requires_grad_()
                labels = functional.pad(sequence[1:], (0, 1), value=IGNORE_INDEX)
                chunks = logits_in_chunks(model, leaf, dense_hidden.to(leaf.device), labels)
                for logits, chunk_dense_hidden, chunk_labels in chunks:
                    with torch.no_grad():
                        target = model.lm_head(chunk_dense_hidden).float().log_softmax(-1)
                    log_probs = logits.log_softmax(-1)
                    loss = functional.kl_div(log_probs, target, log_target=True, reduction="sum")
                    nll = functional.nll_loss(log_probs, chunk_labels, ignore_index=IGNORE_INDEX, reduction="sum")
                    loss = loss + self.ce_weight * nll
                    (scale / len(leaf) * loss).backward()
                hidden.backward(leaf.grad)
        finally:
            for weight in matrices:
                weight.requires_grad_(False)


def _own_matrices(dense: PreTrainedModel, sliced: PreTrainedModel) -> list[nn.Parameter]:
    """Weights of the sliced model's layers, without those that it shares with the dense model, and without biases."""
    shared = {id(parameter) for parameter in dense.parameters()}
    parameters = sliced.model.layers.parameters()
    return [weight for weight in parameters if weight.ndim == 2 and weight.numel() and id(weight) not in shared]


def _require_memory(matrices: list[nn.Parameter], device: torch.device) -> None:
    needed, free = BYTES_PER_WEIGHT * sum(weight.numel() for weight in matrices), available_bytes(str(device))
    if needed > free:
        raise UserError(
            f"distilling this model needs {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free on {device}; "
            "leave the recovery out"
        )


@torch.no_grad()
def _write_(matrices: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(matrices, values, strict=True):
        weight.copy_(value)


def _last_hidden(model: PreTrainedModel, sequence: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
    """The states that the head reads, of every token."""
    return model.model(input_ids=sequence[None], use_cache=False).last_hidden_state[0]


RECOVERIES.register(Distillation())
