"""Importance from the error that slicing leaves in attention's output, weighted by the gradient of the loss. Pure.

A second-order estimate of the damage when one attention module alone is sliced: the mean square of the gradient of the
loss times the change of the module's output, with gradient and change taken as independent, as in K-FAC (Martens and
Grosse, arXiv 1503.05671). The change is what remains after the refit of the output map; dropped query and key channels
are added by their Fisher information. All terms are in the unit of squared mask gradients, the importances of neurons.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from intraslice.core.fit_config import INTRASLICE_FIT
from intraslice.core.kept_channels import HeadLayout, kept_channels
from intraslice.core.linalg import cholesky, damp, output_fit, value_axes
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators.estimator import Estimator, Importances, LayerCalibration, neuron_importance

RATIOS = (0.15, 0.3, 0.5, 0.75, 1.0)  # of attention, at which the damage is computed; between them it is interpolated
# Beside other cuts an error of attention does more damage than alone. Of 1, 1.5, 2 and 2.5: on Wikipedia and news.
IN_CONTEXT = 2.0


def attention_damages(layer: LayerCalibration, ratios: Iterable[float]) -> list[float]:
    """The damage of slicing the layer's attention alone at each of the ratios, with the heads of its table.

    At ratio 1 the module has no output. Raises NumericalError where the moment is not finite or singular.
    """
    weight = squared_gradient(layer)
    output_map = layer.output_map.float()
    cross = layer.attention_moment @ output_map.flatten(1).T  # X^T Y, of the module's inputs X and outputs Y
    energy = (cross.T * output_map.flatten(1)).sum()
    dim, damages = layer.sizes.dim, []
    for ratio in ratios:
        if ratio == 1:
            damages.append(weight * energy.item())
            continue
        keep = round(layer.sizes.channels * (1 - ratio))
        heads, width = layer.table.alive[keep].nonzero().flatten(), int(layer.table.dim[keep])
        owner = layer.kv_head[heads].unique(return_inverse=True)[1]
        kept = (heads[:, None] * dim + torch.arange(dim, device=heads.device)).flatten()
        moment = layer.attention_moment.index_select(0, kept).index_select(1, kept)
        error = energy - explained_energy(moment, cross.index_select(0, kept), output_map[:, heads], owner, width)
        damages.append(max(0.0, weight * error.item()) + dropped_fisher(layer.query_fisher, layer, heads, width))
    return damages


def squared_gradient(layer: LayerCalibration) -> float:
    """Mean square of the gradient of the loss with respect to a channel of attention's output.

    The squared gradient of the mask on an input channel of o_proj is about the energy of this channel times the squared
    norm of its column times this number. Returns the median of the channels' estimates.
    """
    energies = layer.attention_moment.diagonal() * layer.output_energies.flatten()
    estimates = layer.attention_gradients.square().sum(0) / energies
    estimates = estimates[estimates.isfinite()]
    return estimates.median().item() if len(estimates) else 0.0


def explained_energy(
    moment: Float[Tensor, "kept kept"],
    cross: Float[Tensor, "kept hidden"],
    kept_output: Float[Tensor, "hidden heads d"],
    owner: Int[Tensor, " heads"],
    width: int,
) -> Float[Tensor, ""]:
    """Energy of the output that the refitted output map reproduces from `width` axes of each kept head.

    The ridge penalty on the map's change counts as not reproduced. The arguments are those of `output_fit`; `owner` has
    each head's key/value head, from 0: heads with the same one share their axes.
    """
    axes = value_axes(moment, kept_output, owner, width)[owner]
    fit = output_fit(moment, cross, axes, kept_output)
    by_dense_map = (fit.before * (fit.cross + fit.missing)).sum()
    factor = cholesky(damp(fit.moment, INTRASLICE_FIT.attention_ridge))
    by_change = torch.linalg.solve_triangular(factor, fit.missing, upper=False).square().sum()
    return by_dense_map + by_change


def dropped_fisher(
    query_fisher: Float[Tensor, "heads dim"], layout: HeadLayout, heads: Int[Tensor, " kept"], width: int
) -> float:
    """Fisher information of the channels that slicing drops from the kept `heads`, to `width` channels each.

    The slicing chooses by the same function: rotated channels in pairs, unrotated ones singly, none where queries and
    keys keep their width.
    """
    kept = kept_channels(query_fisher, layout, heads.tolist(), width)[layout.kv_head[heads]]
    return query_fisher[heads].masked_fill(kept, 0.0).sum().item()


def unit_importances(ratios: Sequence[float], damages: Sequence[float], units: int) -> Float[Tensor, " units"]:
    """Importances of equal units, the least important first, whose sums follow the damages at these ratios.

    Damage grows about with the square of the ratio, so its root is interpolated linearly. Where a later unit would be
    less important than an earlier one, as after the removal of a head, both get their mean: a ranking cannot remove the
    later one alone.
    """
    roots = np.interp(np.linspace(0, 1, units + 1), (0.0, *ratios), np.maximum.accumulate(np.sqrt((0.0, *damages))))
    pools: list[tuple[float, int]] = []  # means of neighbouring units, and their number
    for mean in np.diff(roots**2).tolist():
        count = 1
        while pools and pools[-1][0] > mean:
            earlier, size = pools.pop()
            mean, count = (size * earlier + count * mean) / (size + count), size + count
        pools.append((mean, count))
    return torch.tensor([mean for mean, count in pools for _ in range(count)])


def importances(layer: LayerCalibration) -> Importances:
    """Importances of channels of attention, or of the config's fraction of a head; those of neurons as by `pca`."""
    units = layer.sizes.channels // (layer.unit_channels or 1)
    attention = IN_CONTEXT * unit_importances(RATIOS, attention_damages(layer, RATIOS), units)
    return Importances(attention.to(layer.mlp_gradients.device), neuron_importance(layer.mlp_gradients))


ESTIMATORS.register(
    Estimator(
        "output-error",
        "Output error",
        "error of attention's output after slicing, times the squared gradient of the loss there",
        importances,
        "channels",
    )
)
