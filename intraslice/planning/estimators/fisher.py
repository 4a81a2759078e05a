"""Fisher importance: the squared gradient of one mask over each head, and of each neuron's mask. Pure."""

from jaxtyping import Float
from torch import Tensor

from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators.estimator import Estimator, Importances, LayerCalibration, neuron_importance


def fisher_head_importance(
    gradients: Float[Tensor, "groups channels"], heads: int, unit: int | None = None
) -> Float[Tensor, " units"]:
    """Importance of every `unit` consecutive channels of each head, by default of the whole head.

    It is the squared gradient of one mask over the unit, summed over the calibration groups.
    """
    return gradients.unflatten(-1, (-1, unit or gradients.shape[-1] // heads)).sum(-1).square().sum(0)


def importances(layer: LayerCalibration) -> Importances:
    """Importances of heads, or of the config's fraction of a head, and of neurons."""
    heads = fisher_head_importance(layer.attention_gradients, layer.sizes.heads, layer.unit_channels)
    return Importances(heads, neuron_importance(layer.mlp_gradients))


ESTIMATORS.register(
    Estimator("fisher", "Fisher", "squared gradient of each head's and each neuron's mask", importances, "heads")
)
