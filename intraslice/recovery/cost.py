"""What a recovery costs, in forward passes of the dense model over the calibration tokens ("dense passes")."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from intraslice.modeling.counts import decoder_parameters


class RecoveryCost(NamedTuple):
    """Dense passes of a recovery, by multiplications with weights; attention scores are not counted.

    `training` is what each slice costs. `sampling` is spent once per model and text, and kept on disk: the dense
    model's own samples, and its hidden states and likely tokens in all training sequences.
    """

    training: float
    sampling: float


def recovery_cost(
    dense: PreTrainedModel, token_products: int, text: int, samples: int, epochs: int, calibration: int
) -> RecoveryCost:
    """The cost of training on `text` + `samples` tokens, where a dense pass has `calibration` tokens.

    A training token costs `token_products` multiplications with weights.
    """
    token_pass = decoder_parameters(dense) + dense.lm_head.weight.numel()
    dense_pass = calibration * token_pass
    training = epochs * (text + samples) * token_products
    sampling = (text + 2 * samples) * token_pass
    return RecoveryCost(training / dense_pass, sampling / dense_pass)
