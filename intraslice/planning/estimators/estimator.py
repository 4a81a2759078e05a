"""Ratio estimators: functions from the calibration of one layer to the importance of its units. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.config import GRADIENT_GROUP
from intraslice.core.errors import UserError
from intraslice.planning.kept_heads import HeadTable, channel_scores, head_energies, head_table
from intraslice.planning.sizes import LayerSizes


@dataclass(frozen=True)
class LayerCalibration:
    """Calibration statistics of one layer, over all calibration tokens.

    Gradients are those of the loss with respect to masks of ones, summed over the tokens of a group of sequences.
    Second moments are uncentred sums over tokens.
    """

    sizes: LayerSizes
    attention_gradients: Float[Tensor, "groups channels"]  # of masks on the input of o_proj
    mlp_gradients: Float[Tensor, "groups neurons"]  # of masks on the input of down_proj
    attention_moment: Float[Tensor, "channels channels"]  # of the input of o_proj
    mlp_moment: Float[Tensor, "neurons neurons"]  # of the input of down_proj
    query_fisher: Float[Tensor, "heads dim"]  # as in `LayerStats`
    output_map: Float[Tensor, "hidden heads dim"]  # weights of o_proj, in the model's precision
    kv_head: Int[Tensor, " heads"]  # the key/value head of every query head
    # Rotary frequency of each pair of query and key channels, or UNROTATED, as in `AttentionWeights`.
    frequency: Int[Tensor, "kv_heads pairs"]
    head_fraction: float | None = None  # as in SliceConfig
    index: int = 0  # of the layer
    sensitive_scores: bool = True  # as in FitConfig

    @property
    def norms(self) -> object | None:
        """Something other than None where queries and keys keep their width, as `choose_channels` asks."""
        return True if self.sizes.whole_queries else None

    @cached_property
    def output_energies(self) -> Float[Tensor, "heads dim"]:
        """Squared norms of the columns of o_proj."""
        return self.output_map.float().square().sum(0)

    @cached_property
    def table(self) -> HeadTable:
        """The kept heads and their width for every budget of channels.

        Scores for choosing heads are, as for neurons, energy (the paper's score) times the sensitivity of the loss.
        Without `sensitive_scores` they are the energy alone.
        """
        energies = channel_scores(self.attention_moment, self.output_energies)
        if not self.sensitive_scores:
            return head_table(head_energies(self.attention_moment, energies), energies)
        fisher = self.attention_gradients.square().sum(0).view_as(energies).sum(-1, keepdim=True)
        scores = energies * (fisher / fisher.mean() if fisher.any() else 1.0)
        return head_table(head_energies(self.attention_moment, scores), scores)

    @property
    def unit_channels(self) -> int | None:
        """Channels per unit of attention, None without a `head_fraction`. Raises UserError if none divides a head."""
        return None if self.head_fraction is None else unit_channels(self.sizes.dim, self.head_fraction)


@dataclass(frozen=True)
class Importances:
    """Expected increase of the loss when each unit of a layer is removed, on any positive scale that all layers share.

    Units of attention are equal parts of its channels in their order, from single channels to whole heads. Without a
    bias in the config, attention units and neurons share one ranking by importance per parameter that the unit's mask
    accounts for (see `masked_parameters`).
    """

    attention: Float[Tensor, " units"]
    mlp: Float[Tensor, " neurons"]


@dataclass(frozen=True)
class Estimator:
    """One way to distribute the sparsity over layers.

    `units` names its units of attention on charts. Without `importance` all layers have the same ratio. `neurons` are
    those of the layers of the only model that it is for, if any.
    """

    name: str
    label: str
    explanation: str
    importance: Callable[[LayerCalibration], Importances] | None
    units: str = ""
    neurons: tuple[int, ...] | None = None


def group_gradients(
    gradients: Float[Tensor, "sequences channels"], group: int = GRADIENT_GROUP
) -> Float[Tensor, "groups channels"]:
    """Sum the mask gradients of every `group` sequences."""
    return torch.stack([part.sum(0) for part in gradients.split(group)])


def unit_channels(dim: int, fraction: float) -> int:
    """Channels of a unit that is a fraction of a head. Raises UserError if a head is not a multiple of such units."""
    unit = round(fraction * dim)
    if unit < 1 or dim % unit:
        allowed = ", ".join(f"{size / dim:.4g}" for size in range(1, dim + 1) if dim % size == 0)
        message = "head_fraction must be one of {allowed} for heads of {dim} channels, got {value}"
        raise UserError(message, allowed=allowed, dim=dim, value=fraction)
    return unit


def neuron_importance(gradients: Float[Tensor, "groups neurons"]) -> Float[Tensor, " neurons"]:
    """Importance of each MLP neuron: its squared mask gradient, summed over the calibration groups."""
    return gradients.square().sum(0)
