"""Distillation: trains the weights of a sliced model for a short time towards the dense model's distributions.

Slicing fits each layer to its own output; this trains all layers together, with Adam, for the next-token distribution,
on more text. The loss is the KL divergence from the dense model's distributions plus, with less weight, the
cross-entropy of the text's next tokens (Hinton et al., arXiv 1503.02531). Sizes, and tensors that the two models share,
do not change.
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

IGNORE_INDEX = -100  # label of the last token
BYTES_PER_WEIGHT = 16  # float32 master weight, gradient and two moments of Adam


@dataclass(frozen=True)
class Distillation(Recovery):
    """Trains all matrices of the sliced layers with Adam, on the dense model's distributions and the text's labels."""

    name = "distill"
    label = "Distillation"
    explanation = (
        "trains all weights of the sliced layers on the dense model's distributions and the text's next tokens"
    )

    learning_rate: float = 0.001  # relative to a matrix's root mean square, after the warm-up; decays linearly to 0
    warm_up: int = 6  # steps
    ce_weight: float = 0.5  # weight of the cross-entropy; that of the KL divergence is 1
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

        Costs one dense forward over `tokens`, and a forward and a backward of the sliced model per epoch. There is no
        early stopping, since in the first epoch every step sees new text.

        Raises:
            UserError: the training does not fit into memory.
            NumericalError: the weights are not finite after training.
        """
        report, tokens = progress_callback(progress), tokens.to(sliced.device)
        matrices = _unshared_matrices(dense, sliced)
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
        masters = [weight.detach().float().clone() for weight in matrices]  # small steps would be lost in bfloat16
        optimiser = torch.optim.Adam([{"params": [m], "rms": m.square().mean().sqrt().item()} for m in masters])
        rng, done = torch.Generator().manual_seed(0), 0
        for _ in range(epochs):
            shuffled = torch.randperm(len(tokens), generator=rng).tolist()
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
            raise NumericalError("distillation diverged; slice without recovery, or calibrate on other text")

    def _add_gradients_(
        self,
        model: PreTrainedModel,
        matrices: list[nn.Parameter],
        sequence: Int[Tensor, " length"],
        dense_hidden: Float[Tensor, "length hidden"],
        scale: float,
    ) -> None:
        """Add `scale` times the gradient of the sequence's mean loss, in nats per token, to the matrices' gradients."""
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


def _unshared_matrices(dense: PreTrainedModel, sliced: PreTrainedModel) -> list[nn.Parameter]:
    """Matrices of the sliced model's layers that are not shared with the dense model."""
    shared = {id(parameter) for parameter in dense.parameters()}
    parameters = sliced.model.layers.parameters()
    return [weight for weight in parameters if weight.ndim == 2 and weight.numel() and id(weight) not in shared]


def _require_memory(matrices: list[nn.Parameter], device: torch.device) -> None:
    required, free = BYTES_PER_WEIGHT * sum(weight.numel() for weight in matrices), available_bytes(str(device))
    if required > free:
        raise UserError(
            f"distillation requires {required / 2**30:.1f} GiB, but only {free / 2**30:.1f} GiB is free on {device}; "
            "slice without recovery"
        )


@torch.no_grad()
def _write_(matrices: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(matrices, values, strict=True):
        weight.copy_(value)


def _last_hidden(model: PreTrainedModel, sequence: Int[Tensor, " length"]) -> Float[Tensor, "length hidden"]:
    """Final hidden states, the input of the head."""
    return model.model(input_ids=sequence[None], use_cache=False).last_hidden_state[0]


RECOVERIES.register(Distillation())
