"""What a calibration leaves behind: every layer's sums and mask gradients, and the profile that plans are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import GRADIENT_GROUP, SliceConfig, Targets
from intraslice.core.linalg import BLOCK, OrderedFactor, mirror_
from intraslice.core.progress import Progress, ProgressCallback, ignore_progress, progress_callback
from intraslice.core.registry import ESTIMATORS
from intraslice.modeling.families import Block
from intraslice.planning.estimators import LayerCalibration
from intraslice.planning.estimators.estimator import group_gradients
from intraslice.planning.head_table import channel_scores, head_energies, head_table
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.sizes import LayerSizes

MOMENTS = ("residual_moment", "direction_moment", "middle_moment", "attention_moment", "mlp_moment")


@dataclass
class LayerStats:
    """Sums over the calibration tokens of one dense layer. C = heads * dim channels, I neurons, B sequences.

    A handful of massive tokens own most of the residual moment; in the direction moment, of states scaled to unit
    length, every token counts alike, as it does to the norms that read the stream.
    """

    residual_moment: Float[Tensor, "hidden hidden"]  # of the layer's input, before any norm
    direction_moment: Float[Tensor, "hidden hidden"]
    middle_moment: Float[Tensor, "middle middle"]  # of what enters the MLP's norm; empty where both read one norm
    attention_moment: Float[Tensor, "C C"]  # X^T X of what enters o_proj
    attention_sum: Float[Tensor, " C"]
    channel_products: Float[Tensor, "heads dim"]  # sum of |q_j k_j| after the rotary embedding
    query_energy: Float[Tensor, "heads dim"]  # sum of q_j^2 after the rotary embedding
    key_energy: Float[Tensor, "kv_heads dim"]
    value_moment: Float[Tensor, "kv_heads value_dim value_dim"]  # of each head's values, uncentred
    query_fisher: Float[Tensor, "heads dim"]  # token by token, as `calibration.query_fisher` has it
    mlp_moment: Float[Tensor, "I I"]  # A^T A of what enters down_proj
    mlp_sum: Float[Tensor, " I"]
    attention_gradients: Float[Tensor, "B C"]
    mlp_gradients: Float[Tensor, "B I"]
    mlp_fisher: Float[Tensor, " I"]  # token by token: sum over them of (a_tj dL/da_tj)^2
    influence: Float[Tensor, ""]  # sum of 1 - cos(what enters the layer, what leaves it)

    def mirror_(self) -> None:
        """Complete the moments, of which only what lies below the diagonal adds up while tokens pass.

        They are then symmetric to the last bit, wherever they were multiplied: a triangle of them is all of them.
        """
        for moment in (getattr(self, name) for name in MOMENTS):
            mirror_(moment)
            for start in range(0, len(moment), BLOCK):
                block = moment[start : start + BLOCK, start : start + BLOCK]
                block.copy_(block.tril() + block.tril(-1).T)

    def packed(self) -> Iterator[tuple[str, numpy.ndarray]]:
        """What is worth keeping, by name: of the moments the lower triangle, row by row."""
        for name, value in vars(self).items():
            array = value.numpy(force=True)
            if name in MOMENTS:
                array = numpy.concatenate([row[:end] for end, row in enumerate(array, 1)] or [array])
            yield name, array

    @property
    def packed_bytes(self) -> int:
        """Bytes of `packed`."""
        return sum(
            (len(value) * (len(value) + 1) // 2 if name in MOMENTS else value.numel()) * value.itemsize
            for name, value in vars(self).items()
        )

    @classmethod
    def unpacked(cls, arrays: Mapping[str, numpy.ndarray], device: torch.device) -> LayerStats:
        """From what `packed` gave. The moments want `mirror_`."""
        values = dict(arrays)
        for name in MOMENTS:
            size = (math.isqrt(8 * len(arrays[name]) + 1) - 1) // 2
            values[name] = numpy.zeros((size, size), arrays[name].dtype)
            starts = numpy.arange(size).cumsum()
            for end, (row, start) in enumerate(zip(values[name], starts, strict=True), 1):
                row[:end] = arrays[name][start : start + end]
        return cls(**{name: torch.from_numpy(value).to(device) for name, value in values.items()})


def empty_stats(block: Block, sequences: int, device: torch.device) -> LayerStats:
    """Zeros, for a calibration on so many sequences."""
    attention, mlp = block.attention, block.mlp
    channels, hidden = attention.heads * attention.value_dim, attention.o_proj.out_features
    middle = 0 if block.parallel else hidden

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=device)

    return LayerStats(
        residual_moment=zeros(hidden, hidden),
        direction_moment=zeros(hidden, hidden),
        middle_moment=zeros(middle, middle),
        attention_moment=zeros(channels, channels),
        attention_sum=zeros(channels),
        channel_products=zeros(attention.heads, attention.dim),
        query_energy=zeros(attention.heads, attention.dim),
        key_energy=zeros(attention.kv_heads, attention.dim),
        value_moment=zeros(attention.kv_heads, attention.value_dim, attention.value_dim),
        query_fisher=zeros(attention.heads, attention.dim),
        mlp_moment=zeros(mlp.neurons, mlp.neurons),
        mlp_sum=zeros(mlp.neurons),
        attention_gradients=zeros(sequences, channels),
        mlp_gradients=zeros(sequences, mlp.neurons),
        mlp_fisher=zeros(mlp.neurons),
        influence=zeros(),
    )


@dataclass
class CalibrationStats:
    """What one calibration leaves behind. `tokens` is how many it saw, `targets` what its gradients were taken on."""

    layers: list[LayerStats]
    tokens: int
    targets: Targets
    sizes: tuple[LayerSizes, ...]
    output_energies: list[Float[Tensor, "heads dim"]]  # squared norms of the columns of the dense output maps
    kv_heads: list[tuple[int, ...]]
    other_parameters: int
    bytes_per_value: int
    # What follows is found when it is first needed, and of other layers' sums is another.
    # Of what each read of the residual stream sees: whatever the width, their first columns are the basis.
    residual_axes: dict[int, Float[Tensor, "hidden hidden"]] = field(default_factory=dict, init=False, repr=False)
    # Of every layer's neurons, best first: whatever the width, the first ones stay. As large as the MLPs' moments, so
    # kept only by whoever slices often and puts a dictionary here.
    ranked_neurons: dict[int, OrderedFactor] | None = field(default=None, init=False, repr=False)
    # Of what attention and MLP read, layer by layer: `calibration.inputs`.
    input_moments: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False)

    @cached_property
    def profile(self) -> Profile:
        """What plans are made of, with the estimators' usual units."""
        return self._profile(None, GRADIENT_GROUP, ignore_progress)

    def profile_for(self, config: SliceConfig) -> Profile:
        """What plans are made of, with the units and gradient groups of `config`."""
        usual = (config.head_fraction, config.gradient_group) == (None, GRADIENT_GROUP)
        return self.profile if usual else self._profile(config.head_fraction, config.gradient_group, ignore_progress)

    def make_profile(self, *, progress: ProgressCallback | bool = True) -> Profile:
        """`profile`, with progress by layer where it is not known yet."""
        if "profile" not in vars(self):
            self.profile = self._profile(None, GRADIENT_GROUP, progress_callback(progress))
        return self.profile

    def _profile(self, head_fraction: float | None, gradient_group: int, progress: ProgressCallback) -> Profile:
        layers: list[LayerProfile] = []
        parts = zip(self.layers, self.sizes, self.output_energies, self.kv_heads, strict=True)
        for index, (stats, sizes, energies, kv_head) in enumerate(parts):
            layer = LayerCalibration(
                sizes,
                group_gradients(stats.attention_gradients, gradient_group),
                group_gradients(stats.mlp_gradients, gradient_group),
                stats.attention_moment,
                stats.mlp_moment,
                energies,
                head_fraction,
                index,
            )
            scores = _channel_scores(layer)
            table = head_table(head_energies(stats.attention_moment, scores), scores)
            importances = {
                name: estimator.importance(layer) for name, estimator in ESTIMATORS.items() if estimator.importance
            }
            layers.append(LayerProfile(sizes, table, kv_head, importances))
            progress(Progress("profile", len(layers), len(self.layers)))
        return Profile(tuple(layers), self.other_parameters, self.bytes_per_value, head_fraction, gradient_group)


def _channel_scores(layer: LayerCalibration) -> Float[Tensor, "heads dim"]:
    """By what heads stay: as with neurons, what they carry (the paper's) times what the loss feels of them."""
    carried = channel_scores(layer.attention_moment, layer.output_energies)
    fisher = layer.attention_gradients.square().sum(0).view_as(carried).sum(-1, keepdim=True)
    return carried * (fisher / fisher.mean() if fisher.any() else 1.0)


def layer_sizes(block: Block) -> LayerSizes:
    """Sizes of one layer, read off its tensors."""
    attention, mlp = block.attention, block.mlp
    norms = {block.attention_norm, block.mlp_norm}
    output_biases = [b for b in (attention.o_proj.bias, mlp.down_proj.bias) if b is not None]
    return LayerSizes(
        hidden=attention.o_proj.out_features,
        heads=attention.heads,
        kv_heads=attention.kv_heads,
        dim=attention.dim,
        neurons=mlp.neurons,
        gated=mlp.gated,
        attention_bias=attention.qkv_proj.bias is not None,
        mlp_bias=(mlp.gate_up_proj if mlp.gated else mlp.up_proj).bias is not None,
        fixed=sum(p.numel() for norm in norms for p in norm.parameters()) + sum(b.numel() for b in output_biases),
    )
