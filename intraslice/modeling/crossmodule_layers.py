"""The modules of a cross-module sliced model: a residual stream that changes its basis at every module (SliceGPT).

Between two modules the stream has its own basis `Q (D, width)`, so every residual add needs a shortcut matrix
`Q_l^T Q_{l+1}`. Sizes come from the tensors; the model config keeps the dense hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import DenseModule, Family, norm_epsilon
from intraslice.modeling.mlp import SlicedMLP


class BasisNorm(nn.Module):
    """`h / sqrt(sum h^2 / D + eps)` with the dense D at any width of `h`. Its weights are fused into the next maps."""

    def __init__(self, dense_width: int, epsilon: float) -> None:
        super().__init__()
        self.dense_width, self.epsilon = dense_width, epsilon

    @classmethod
    def of(cls, norm: DenseModule) -> BasisNorm:
        """The norm without weights that replaces a dense LayerNorm or RMSNorm."""
        return cls(len(norm.weight), norm_epsilon(norm))

    def forward(self, hidden: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens width"]:
        states = hidden.float()
        energy = states.square().sum(-1, keepdim=True) / self.dense_width
        return (states * torch.rsqrt(energy + self.epsilon)).to(hidden.dtype)


class BasisEmbedding(nn.Embedding):
    """The dense embedding table, which a tied head shares, followed by the first basis as a separate matrix."""

    def __init__(
        self, weight: nn.Parameter, basis: Float[Tensor, "hidden width"], padding_idx: int | None = None
    ) -> None:
        rows, columns = weight.shape
        super().__init__(rows, columns, padding_idx, _weight=weight, _freeze=True)
        self.weight = weight  # the same parameter object, so that it stays tied
        self.basis = nn.Parameter(basis, requires_grad=False)

    def forward(self, token_ids: Tensor) -> Tensor:
        return super().forward(token_ids) @ self.basis


class CrossModuleLayer(nn.Module):
    """A decoder layer whose residual stream changes its basis at every module. Takes the same call as transformers'.

    It has two shortcuts when attention and MLP are sequential, one when they are parallel. `bases` are the axes before
    each shortcut and after the last one: `x @ bases[i].T` maps a state back to the dense basis. The forward does not
    use them, so they are neither counted nor saved: together they are larger than the shortcuts.
    """

    def __init__(
        self,
        family: Family,
        attention: SlicedAttention,
        mlp: SlicedMLP,
        norms: list[BasisNorm],
        shortcuts: list[Tensor],
        bases: list[Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.self_attn, self.mlp = attention, mlp
        self.norm_names = (family.attention_norm, family.mlp_norm)
        for name, norm in zip(self.norm_names, norms, strict=True):  # parallel modules have one norm
            setattr(self, name, norm)
        self.shortcuts = nn.ParameterList(nn.Parameter(matrix, requires_grad=False) for matrix in shortcuts)
        self.basis_count = len(bases or [])
        for index, basis in enumerate(bases or []):
            self.register_buffer(f"basis_{index}", basis, persistent=False)

    @property
    def bases(self) -> list[Float[Tensor, "hidden width"]]:
        """The axes, as columns, before each shortcut and after the last one; empty if the layer was built without."""
        return [getattr(self, f"basis_{index}") for index in range(self.basis_count)]

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        attention_norm, mlp_norm = (getattr(self, name) for name in self.norm_names)
        normed = attention_norm(hidden_states)
        attention_output = self.self_attn(normed, **arguments)[0]
        hidden_states = hidden_states @ self.shortcuts[0] + attention_output
        if len(self.shortcuts) == 1:
            return hidden_states + self.mlp(normed)
        return hidden_states @ self.shortcuts[1] + self.mlp(mlp_norm(hidden_states))
