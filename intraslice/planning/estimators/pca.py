"""PCA-aware importance (the paper's I_i): the squared gradient of each principal channel of each head. Pure."""

import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.linalg import diagonal_blocks, principal_axes
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators.estimator import Estimator, Importances, LayerCalibration, neuron_importance


def pca_importance(
    gradients: Float[Tensor, "groups channels"], moment: Float[Tensor, "channels channels"], heads: int, unit: int = 1
) -> Float[Tensor, " units"]:
    """Importance of every `unit` consecutive principal channels of each head: `sum_B ((g Q)_k)^2` (the paper's I_i).

    Channels are squared one by one, so the arbitrary signs of eigenvectors do not matter. Larger units depend less on
    the rotation: summed over a whole head it cancels.
    """
    _, axes = principal_axes(diagonal_blocks(moment, heads))
    rotated = torch.einsum("bhd,hdk->bhk", gradients.unflatten(-1, (heads, -1)), axes)
    return rotated.square().sum(0).view(-1, unit).sum(-1)


def importances(layer: LayerCalibration) -> Importances:
    """Importances of principal channels, or of the config's fraction of a head, and of neurons."""
    unit = layer.unit_channels or 1
    channels = pca_importance(layer.attention_gradients, layer.attention_moment, layer.sizes.heads, unit)
    return Importances(channels, neuron_importance(layer.mlp_gradients))


ESTIMATORS.register(
    Estimator(
        "pca", "PCA-aware", "squared gradient of each principal channel of each head", importances, "principal channels"
    )
)
