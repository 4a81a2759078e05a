"""Which heads, query and key channels, and neurons of a layer a plan keeps: the choices by which layers are sliced.

They need no moments, only the scores of the units, which are small enough to store. So a chart can show a slice before
it is made, and before a model is calibrated.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from intraslice.calibration.stats import LayerStats
from intraslice.core.config import Order
from intraslice.core.kept_channels import kept_channels
from intraslice.core.linalg import damped_diagonal
from intraslice.modeling.families import Block
from intraslice.planning.kept_heads import HeadTable
from intraslice.planning.sizes import LayerPlan
from intraslice.slicing.mlp import best_first, neuron_scores, output_energies


@dataclass(frozen=True)
class LayerUnits:
    """Scores of the units of one dense layer, and the layout of its heads (as in `AttentionWeights`), on the CPU."""

    energies: Float[Tensor, "heads d"]  # of the heads' principal axes, as in `HeadTable`
    channels: Float[Tensor, "heads d"]  # of queries and keys: sensitivity of the loss
    neurons: Float[Tensor, " neurons"]
    kv_head: Int[Tensor, " heads"]
    frequency: Int[Tensor, "kv_heads pairs"]
    norms: bool | None = None  # True where queries and keys are normalised


@torch.no_grad()
def layer_units(block: Block, stats: LayerStats, tokens: int, table: HeadTable) -> LayerUnits:
    """The scores of a dense layer from its calibration on `tokens` tokens, whose head table is `table`."""
    attention, mlp = block.attention.weights(), block.mlp.weights()
    diagonal, mean = stats.mlp_moment.diagonal(), stats.mlp_sum / tokens
    if mlp.down_bias is not None:  # as in `fitted_moment`
        diagonal = diagonal - tokens * (mean * mean)
    assert table.energies is not None  # it comes from a calibration
    return LayerUnits(
        energies=table.energies.cpu(),
        channels=stats.query_fisher.cpu(),
        neurons=neuron_scores(output_energies(mlp.down, damped_diagonal(diagonal)), stats.mlp_fisher).cpu(),
        kv_head=attention.kv_head.cpu(),
        frequency=attention.frequency.cpu(),
        norms=None if attention.norms is None else True,
    )


def kept_units(
    units: LayerUnits, plan: LayerPlan, order: Order = "one-shot"
) -> tuple[Bool[Tensor, "kv_heads d"], Bool[Tensor, " neurons"] | None]:
    """The query/key channels and the neurons that a slice of `plan`, in the given order, keeps of a layer.

    Neurons are None in the sequential order, which ranks them while it slices.
    """
    channels = kept_channels(units.channels, units, plan.heads, plan.dim)
    neurons = None
    if order == "one-shot" or plan.neurons in (0, len(units.neurons)):
        neurons = torch.zeros(len(units.neurons), dtype=torch.bool)
        neurons[best_first(units.neurons)[: plan.neurons]] = True
    return channels, neurons
