"""The MLP module, dense or sliced, gated or plain, at any width. It replaces `mlp` of the transformers layer."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN

from intraslice.core.weights import MLPWeights
from intraslice.modeling.surgery import concatenated, frozen_linear


class SlicedMLP(nn.Module):
    """The MLP at any width. Replaces `mlp` of a transformers decoder layer."""

    def __init__(self, weights: MLPWeights) -> None:
        super().__init__()
        self.gated = weights.gate is not None
        self.neurons = weights.up.shape[0]
        self.activation = weights.activation
        self.activate: Callable[[Tensor], Tensor] = ACT2FN[weights.activation]
        if weights.gate is not None:
            self.gate_up_proj = frozen_linear(
                torch.cat([weights.gate, weights.up]), concatenated([weights.gate_bias, weights.up_bias])
            )
        else:
            self.up_proj = frozen_linear(weights.up, weights.up_bias)
        self.down_proj = frozen_linear(weights.down, weights.down_bias)

    def weights(self) -> MLPWeights:
        """The canonical weights, as views of this module's parameters."""
        if self.gated:
            gate, up = self.gate_up_proj.weight.chunk(2)
            bias = self.gate_up_proj.bias
            gate_bias, up_bias = (None, None) if bias is None else bias.chunk(2)
        else:
            gate, gate_bias, up, up_bias = None, None, self.up_proj.weight, self.up_proj.bias
        down = self.down_proj
        return MLPWeights(gate, up, down.weight, gate_bias, up_bias, down.bias, self.activation)

    def inner(self, hidden: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens neurons"]:
        """The input of `down_proj`."""
        if not self.gated:
            return self.activate(self.up_proj(hidden))
        gate, up = self.gate_up_proj(hidden).chunk(2, dim=-1)
        return self.activate(gate) * up

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.down_proj(self.inner(hidden_states))
