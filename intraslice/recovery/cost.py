"""What a recovery costs, in forward passes of the dense model over the calibration tokens ("dense passes")."""

from __future__ import annotations

from typing import NamedTuple

from transformers import PreTrainedModel

from intraslice.modeling.counts import decoder_parameters


class RecoveryCost(NamedTuple):
    """Dense passes of a recovery, by multiplications with weights; attention scores are not counted.

    `training` is what each slice costs. `sampling` is spent once per model and text, and kept on disk: the dense
    model's own samples, and its hidden states of all training tokens.
    """

    training: float
    sampling: float


def recovery_cost(
    dense: PreTrainedModel, sliced: PreTrainedModel, text: int, samples: int, epochs: int, calibration: int
) -> RecoveryCost:
    """The cost of training on `text` + `samples` tokens, where a dense pass has `calibration` tokens.

    A step runs the sliced layers forward, and backward for inputs and weights; and the head three times: on the dense
    states, forward, and backward for inputs alone.
    """
    head, tokens = dense.lm_head.weight.numel(), text + samples
    layers, sliced_layers = decoder_parameters(dense), decoder_parameters(sliced)
    dense_pass = calibration * (layers + head)
    training = epochs * tokens * 3 * (sliced_layers + head)
    sampling = samples * (layers + head) + tokens * layers
    return RecoveryCost(training / dense_pass, sampling / dense_pass)
