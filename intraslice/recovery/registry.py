"""Recoveries: what one is, and how one is called by its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.core.progress import ProgressCallback
from intraslice.core.registry import RECOVERIES
from intraslice.modeling.offload import is_offloaded


class Recovery(ABC):
    """One way to train a sliced model after slicing. A subclass is registered as an instance in `RECOVERIES`."""

    name: ClassVar[str]  # one word
    label: ClassVar[str]  # on charts and buttons
    explanation: ClassVar[str]  # one line of help

    @abstractmethod
    def recover(
        self,
        dense: PreTrainedModel,
        sliced: PreTrainedModel,
        tokens: Int[Tensor, "sequences length"],
        epochs: int,
        *,
        progress: ProgressCallback | bool = True,
    ) -> PreTrainedModel:
        """Train `sliced` in place on `tokens`, and return it. Tensors that it shares with `dense` are not changed."""


def recover(
    dense: PreTrainedModel,
    sliced: PreTrainedModel,
    tokens: Int[Tensor, "sequences length"],
    recovery: str = "distill",
    epochs: int = 1,
    *,
    progress: ProgressCallback | bool = True,
) -> PreTrainedModel:
    """Train a sliced model towards the dense one, in place, and return it. Works after every slicing method.

    Args:
        dense: the model that `sliced` was made of; it is not changed.
        tokens: what to train on, such as the calibration's tokens and more of its text.
        recovery: a name in `RECOVERIES`, or "none", which returns `sliced` as it is.
        epochs: passes over `tokens`.

    Raises:
        UserError: there is no such recovery, a model has offloaded or quantised weights, or memory does not suffice.
        NumericalError: the training diverged; `sliced` is not usable then.
    """
    if recovery == NO_RECOVERY:
        return sliced
    for model in (dense, sliced):
        require_trainable(model)
    entry: Recovery = RECOVERIES.require(recovery)
    return entry.recover(dense, sliced, tokens, epochs, progress=progress)


def require_trainable(model: PreTrainedModel) -> None:
    """Raises UserError unless all weights of the layers are in memory, as floating-point numbers."""
    if is_offloaded(model):
        raise UserError("recovery trains all layers together, in memory; load the model without a device map")
    if not all(weight.is_floating_point() for weight in model.model.layers.parameters()):
        raise UserError("recovery trains floating-point weights, and this model has others; load it unquantised")
