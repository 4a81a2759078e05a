"""What a ratio estimator is: a function from one layer's calibration to the importance of its units. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import GRADIENT_GROUP
from intraslice.core.errors import UserError
from intraslice.planning.sizes import LayerSizes


@dataclass(frozen=True)
class LayerCalibration:
    """What an estimator may read of one layer, over all calibration tokens.

    Gradients are those of the loss with respect to masks of ones, summed over the tokens of a group of sequences.
    Second moments are uncentred sums over tokens.
    """

    sizes: LayerSizes
    attention_gradients: Float[Tensor, "groups channels"]  # masks on what enters o_proj
    mlp_gradients: Float[Tensor, "groups neurons"]  # masks on what enters down_proj
    attention_moment: Float[Tensor, "channels channels"]  # of what enters o_proj
    mlp_moment: Float[Tensor, "neurons neurons"]  # of what enters down_proj
    output_energies: Float[Tensor, "heads dim"]  # squared norms of the columns of o_proj
    head_fraction: float | None = None  # as in SliceConfig
    index: int = 0  # of the layer

    @property
    def unit_channels(self) -> int | None:
        """Channels of one unit of attention, where the config asks for a fraction of a head. Raises UserError."""
        return None if self.head_fraction is None else unit_channels(self.sizes.dim, self.head_fraction)


@dataclass(frozen=True)
class Importances:
    """What the loss is expected to suffer without each unit of one layer; any positive scale, the same in all layers.

    Units of attention are equal parts of its channels in their order, from single channels to whole heads. Where no
    bias is given, attention's units and neurons are ranked against each other, by importance a parameter.
    """

    attention: Float[Tensor, " units"]
    mlp: Float[Tensor, " neurons"]


@dataclass(frozen=True)
class Estimator:
    """One way to share the sparsity out over layers.

    `units` is what its units of attention are called on charts. Without `importance` every layer gives alike.
    """

    name: str
    label: str
    explanation: str
    importance: Callable[[LayerCalibration], Importances] | None
    units: str = ""


def group_gradients(
    gradients: Float[Tensor, "sequences channels"], group: int = GRADIENT_GROUP
) -> Float[Tensor, "groups channels"]:
    """Sum the mask gradients of every `group` sequences."""
    return torch.stack([part.sum(0) for part in gradients.split(group)])


def unit_channels(dim: int, fraction: float) -> int:
    """Channels of a unit that is a fraction of a head. Raises UserError when such units do not fill the head."""
    unit = round(fraction * dim)
    if unit < 1 or dim % unit:
        fitting = ", ".join(f"{size / dim:.4g}" for size in range(1, dim + 1) if dim % size == 0)
        raise UserError(f"head_fraction is {fraction!r}; for heads of {dim} channels wanted one of {fitting}")
    return unit


def neuron_importance(gradients: Float[Tensor, "groups neurons"]) -> Float[Tensor, " neurons"]:
    """Importance of each MLP neuron: its squared mask gradient, summed over the calibration."""
    return gradients.square().sum(0)
