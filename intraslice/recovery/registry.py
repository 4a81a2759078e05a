"""The base class of recoveries, and `recover`, which runs one by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from transformers import PreTrainedModel

from intraslice.core.checks import integer
from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressOption
from intraslice.core.registry import RECOVERIES
from intraslice.modeling.counts import decoder_parameters
from intraslice.modeling.hidden_states import Tokens, require_model, require_windows
from intraslice.modeling.offload import is_offloaded


class RecoveryCost(NamedTuple):
    """Dense passes of a recovery, by multiplications with weights; attention scores are not counted.

    `training` is what each slice costs. `sampling` is spent once per model and text, and kept on disk: the dense
    model's own samples, and its hidden states and likely tokens in all training sequences.
    """

    training: float
    sampling: float


class Recovery(ABC):
    """One way to train a model after slicing. An instance of each subclass is registered in `RECOVERIES`."""

    name: ClassVar[str]  # one word
    label: ClassVar[str]  # on charts and buttons
    explanation: ClassVar[str]  # one line of help

    @property
    def settings(self) -> str:
        """All that a trained model depends on besides the arguments of `recover`: a part of cache keys."""
        return self.name

    @abstractmethod
    def recover(
        self, dense: PreTrainedModel, sliced: PreTrainedModel, tokens: Tokens, epochs: int, *, progress: ProgressOption
    ) -> PreTrainedModel:
        """Train `sliced` in place on `tokens`, and return it. Must not change tensors that it shares with `dense`."""

    def training_bytes(self, dense: PreTrainedModel, weights: int, length: int) -> int:
        """Memory to train a slice with so many weights in its layers on sequences of `length`, besides the models."""
        return 0

    def token_products(self, dense: PreTrainedModel, sliced: PreTrainedModel, length: int) -> int:
        """Multiplications with weights per token of training sequences of this length.

        By default all weights of the layers are trained, and all logits of both models are computed.
        """
        return 3 * (decoder_parameters(sliced) + dense.lm_head.weight.numel())

    def products(
        self, dense: PreTrainedModel, sliced: PreTrainedModel, sequences: int, length: int, epochs: int
    ) -> int:
        """Multiplications with weights of a training on so many sequences, sampled ones included."""
        return epochs * sequences * length * self.token_products(dense, sliced, length)

    def sampled_sequences(self, sequences: int) -> int:
        """The number of sequences that the dense model writes, besides `sequences` of the text: none by default."""
        return 0


def recover(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    tokens: Tokens,
    recovery: str = "distill",
    epochs: int = 1,
    *,
    progress: ProgressOption = True,
) -> PreTrainedModel:
    """Train a sliced model to match the dense one, in place, and return it. Works after every slicing method.

    Trains in `epochs` passes over `tokens`, such as the calibration tokens and more of the text. With 0 epochs, or the
    recovery "none", `sliced` is returned as it is. The dense model is not changed. Raises UserError where the name is
    unknown, `epochs` is negative, `tokens` are no windows within the model's context, weights are offloaded or
    quantised, or memory does not suffice, and NumericalError where the training diverges. `sliced` is as before then,
    and where `progress` raises.
    """
    if recovery == NO_RECOVERY:
        return sliced
    for model in (dense, sliced):
        require_model(model)
        require_trainable(model)
    entry: Recovery = RECOVERIES.require(recovery)
    epochs = integer("epochs", epochs, 0)
    require_windows(tokens, dense.config)
    return entry.recover(dense, sliced, tokens, epochs, progress=progress)


def settings_of(recovery: str) -> str:
    """The settings of a recovery by its name, for cache keys; empty for "none"."""
    return "" if recovery == NO_RECOVERY else RECOVERIES.require(recovery).settings


def training_bytes(recovery: str, dense: PreTrainedModel, weights: int, length: int) -> int:
    """Memory that `recover` takes for a slice of `dense` whose layers have so many weights; 0 for "none"."""
    entry: Recovery | None = None if recovery == NO_RECOVERY else RECOVERIES.require(recovery)
    return entry.training_bytes(dense, weights, length) if entry else 0


def cost_of(
    dense: PreTrainedModel, sliced: PreTrainedModel, tokens: Tokens, recovery: str, epochs: int, calibration_tokens: int
) -> RecoveryCost | None:
    """The cost of `recover` in dense forward passes over `calibration_tokens` tokens; None where nothing is trained."""
    if recovery == NO_RECOVERY or epochs == 0:
        return None
    entry: Recovery = RECOVERIES.require(recovery)
    text, length, samples = len(tokens), tokens.shape[1], entry.sampled_sequences(len(tokens))
    token_pass = decoder_parameters(dense) + dense.lm_head.weight.numel()
    dense_pass = calibration_tokens * token_pass
    training = entry.products(dense, sliced, text + samples, length, epochs)
    return RecoveryCost(training / dense_pass, (text + 2 * samples) * length * token_pass / dense_pass)


def require_trainable(model: PreTrainedModel) -> None:
    """Raise UserError unless all weights of the layers are in memory, as floating-point numbers."""
    if is_offloaded(model):
        raise UserError("recovery requires all layers in memory; load the model without a device map")
    if not all(weight.is_floating_point() for weight in model.model.layers.parameters()):
        raise UserError("recovery requires floating-point weights; load the model unquantised")
