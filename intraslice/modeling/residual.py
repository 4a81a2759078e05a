"""The linear maps of a canonical block that read or write the residual stream, which a change of its basis affects."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from intraslice.core.errors import UserError
from intraslice.core.linalg import add_moment_, principal_axes
from intraslice.core.progress import Pause, no_pause
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import Block, DenseModule, Family, norm_epsilon
from intraslice.modeling.hidden_states import HiddenStates, LayerArguments
from intraslice.modeling.mlp import SlicedMLP

SlicedModule = SlicedAttention | SlicedMLP


def residual_branches(block: Block) -> list[tuple[SlicedModule, ...]]:
    """The modules between two residual adds, in order: attention, then MLP; both together if they are parallel."""
    return [(block.attention, block.mlp)] if block.parallel else [(block.attention,), (block.mlp,)]


def reader_of(module: SlicedModule) -> nn.Linear:
    """The linear map that reads the normed residual stream."""
    if isinstance(module, SlicedAttention):
        return module.qkv_proj
    return module.gate_up_proj if module.gated else module.up_proj


def writer_of(module: SlicedModule) -> nn.Linear:
    """The linear map that writes to the residual stream."""
    return module.o_proj if isinstance(module, SlicedAttention) else module.down_proj


def norm_of(block: Block, module: SlicedModule) -> nn.Module:
    """The norm before the module."""
    return block.attention_norm if module is block.attention else block.mlp_norm


def centre(states: Float[Tensor, "*tokens hidden"], norm: nn.Module) -> Float[Tensor, "*tokens hidden"]:
    """The states minus their mean over the channels if `norm` is a LayerNorm, else the states unchanged."""
    return states - states.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else states


def principal_axes_of(hidden_states: HiddenStates, pause: Pause = no_pause) -> Float[Tensor, "hidden hidden"]:
    """Principal axes, as columns, of the uncentred second moment of all hidden states, in float64."""
    width = hidden_states.hidden[0].shape[-1]
    moment = torch.zeros(width, width, dtype=torch.float64, device=hidden_states.hidden[0].device)
    for hidden in hidden_states.hidden:
        add_moment_(moment, hidden)
        pause()
    return principal_axes(moment)[1]


def output_of(module: SlicedModule, normed: Float[Tensor, "batch tokens width"], arguments: LayerArguments) -> Tensor:
    """The module's output (batch, tokens, hidden), before the norm that some families have after it."""
    return module(normed, **arguments[module.layer_idx])[0] if isinstance(module, SlicedAttention) else module(normed)


def require_no_output_norms(layers: Sequence[Block], name: str) -> None:
    """Raise UserError where a norm is between a module's output and the residual stream: it needs all channels."""
    if any(block.attention_output_norm or block.mlp_output_norm for block in layers):
        raise UserError(
            f"{name} changes the basis of the residual stream, which this model's norms after attention and MLP do not "
            "allow: they act on the channels of the dense basis; use a method that slices inside the modules"
        )


class BasisNorm(nn.Module):
    """`h / sqrt(sum h^2 / D + eps)` with the dense D at any width of `h`. Its weights are fused into the next maps."""

    def __init__(self, norm: DenseModule) -> None:
        """Replaces a dense LayerNorm or RMSNorm."""
        super().__init__()
        self.dense_width, self.epsilon = len(norm.weight), norm_epsilon(norm)

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
