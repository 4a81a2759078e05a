"""Statistics of a calibration: sums and mask gradients of every layer, the hooks that collect them, and the profile."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from intraslice.core.config import SliceConfig, Targets
from intraslice.core.fit_config import FitConfig
from intraslice.core.linalg import BLOCK, add_lower_moment_, mirror_
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, ignore_progress, progress_callback
from intraslice.core.registry import ESTIMATORS
from intraslice.core.weights import UNROTATED
from intraslice.modeling.families import Block
from intraslice.planning.estimators import LayerCalibration
from intraslice.planning.estimators.estimator import group_gradients
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.sizes import LayerSizes

MOMENTS = ("residual_moment", "direction_moment", "middle_moment", "attention_moment", "mlp_moment")
InputHook = Callable[[nn.Module, tuple[Tensor]], None]  # a forward pre-hook


@dataclass
class LayerStats:
    """Sums over the calibration tokens of one dense layer. C = heads * dim channels, I neurons, B sequences.

    A few massive tokens dominate the residual moment. The direction moment is that of states scaled to unit length, in
    which all tokens have the same weight, as after the norms. A moment that is not collected has no rows.
    """

    residual_moment: Float[Tensor, "hidden hidden"]  # of the layer's input, before any norm
    direction_moment: Float[Tensor, "hidden hidden"]
    # Of the input of the MLP's norm; empty if attention and MLP share a norm.
    middle_moment: Float[Tensor, "middle middle"]
    attention_moment: Float[Tensor, "attention attention"]  # C x C: X^T X of the input of o_proj
    attention_sum: Float[Tensor, " C"]
    channel_products: Float[Tensor, "heads dim"]  # sum of |q_j k_j| after the rotary embedding
    query_energy: Float[Tensor, "heads dim"]  # sum of q_j^2 after the rotary embedding
    key_energy: Float[Tensor, "kv_heads dim"]
    value_moment: Float[Tensor, "kv_heads value_dim value_dim"]  # of each head's values, uncentred
    query_fisher: Float[Tensor, "heads dim"]  # sum over tokens, as in `query_fisher`
    mlp_moment: Float[Tensor, "mlp mlp"]  # I x I: A^T A of the input of down_proj
    mlp_sum: Float[Tensor, " I"]
    attention_gradients: Float[Tensor, "B C"]
    mlp_gradients: Float[Tensor, "B I"]
    mlp_fisher: Float[Tensor, " I"]  # sum over tokens of (a_tj dL/da_tj)^2
    influence: Float[Tensor, ""]  # sum over tokens of 1 - cos(layer input, layer output)

    def mirror_(self) -> None:
        """Complete the moments, whose lower triangles alone are summed during calibration.

        They are then exactly symmetric, on every device, so that one triangle is enough to store them.
        """
        for moment in (getattr(self, name) for name in MOMENTS):
            mirror_(moment)
            for start in range(0, len(moment), BLOCK):
                block = moment[start : start + BLOCK, start : start + BLOCK]
                block.copy_(block.tril() + block.tril(-1).T)

    def channel_scores(self, config: FitConfig) -> Float[Tensor, "heads dim"]:
        """Return the scores by which query and key channels are kept: Fisher information, or products (paper §3)."""
        return self.query_fisher if config.sensitive_scores else self.channel_products

    def profile(
        self,
        sizes: LayerSizes,
        output_map: Tensor,
        kv_head: Sequence[int],
        frequency: Int[Tensor, "kv_heads pairs"],
        config: SliceConfig,
        index: int,
        estimators: Iterable[str],
    ) -> LayerProfile:
        """Inputs of plans: the layer's kept heads by budget, and its importances by each of the `estimators`.

        `config` says the fraction of a head, the gradient group and how heads are scored.
        """
        layer = LayerCalibration(
            sizes,
            group_gradients(self.attention_gradients, config.gradient_group),
            group_gradients(self.mlp_gradients, config.gradient_group),
            self.attention_moment,
            self.mlp_moment,
            self.query_fisher,
            output_map,
            torch.tensor(kv_head, device=self.query_fisher.device),
            frequency.to(self.query_fisher.device),
            config.head_fraction,
            index,
            config.fit.sensitive_scores,
        )
        functions = {name: ESTIMATORS[name].importance for name in estimators}
        importances = {name: importance(layer) for name, importance in functions.items() if importance}
        return LayerProfile(sizes, layer.table, tuple(kv_head), importances)

    def packed(self, name: str) -> numpy.ndarray:
        """An array to store; of the moments the lower triangle, row by row."""
        array = getattr(self, name).numpy(force=True)
        rows = [row[:end] for end, row in enumerate(array, 1)] if name in MOMENTS else []
        return numpy.concatenate(rows) if rows else array

    @property
    def packed_bytes(self) -> int:
        """Bytes of all packed arrays."""
        return sum(
            (len(value) * (len(value) + 1) // 2 if name in MOMENTS else value.numel()) * value.itemsize
            for name, value in vars(self).items()
        )

    @classmethod
    def unpacked(cls, arrays: Mapping[str, numpy.ndarray], device: torch.device) -> LayerStats:
        """The inverse of `packed`, except that `mirror_` must complete the moments."""
        values = dict(arrays)
        for name in MOMENTS:
            size = (math.isqrt(8 * len(arrays[name]) + 1) - 1) // 2
            values[name] = numpy.zeros((size, size), arrays[name].dtype)
            starts = numpy.arange(size).cumsum()
            for end, (row, start) in enumerate(zip(values[name], starts, strict=True), 1):
                row[:end] = arrays[name][start : start + end]
        return cls(**{name: torch.from_numpy(value).to(device) for name, value in values.items()})

    @contextmanager
    def collecting_moments(self, block: Block) -> Iterator[None]:
        """While open, add the layer's moments, in place, in the forward pass.

        Only lower triangles are added; `mirror_` completes them at the end.
        """
        attention, angles = block.attention, []
        stream: dict[str, Tensor] = {}  # the layer's input, and its sum with the module outputs so far

        def at_output_map(moment: Tensor, total: Tensor) -> InputHook:
            def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
                rows = inputs[0].detach()
                add_lower_moment_(moment, rows)
                total.add_(rows.flatten(0, 1).float().sum(0))

            return hook

        def at_residual_stream(_: nn.Module, inputs: tuple[Tensor]) -> None:
            states = inputs[0].detach().float()
            add_lower_moment_(self.residual_moment, states)
            add_lower_moment_(self.direction_moment, nn.functional.normalize(states, dim=-1))
            stream["before"] = stream["after"] = states

        def at_middle(_: nn.Module, inputs: tuple[Tensor]) -> None:
            add_lower_moment_(self.middle_moment, inputs[0].detach())

        def at_attention(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            angles.append(keywords["position_embeddings"])

        def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            query, key, value = attention.split_and_rotate(output.detach(), angles.pop())
            self.channel_products.add_(channel_products(query, key, attention.kv_head))
            for energy, states in ((self.query_energy, query), (self.key_energy, key)):
                energy.add_(states.float().square().sum((0, 2)))
            self.value_moment.add_(torch.einsum("bktp,bktq->kpq", value.float(), value.float()))

        def at_output(module: nn.Module, _: tuple[Any, ...], output: Tensor | tuple[Tensor, None]) -> None:
            stream["after"] = stream["after"] + (output[0] if isinstance(output, tuple) else output).detach()
            if module is outputs[-1]:  # the last module of the layer
                cosines = nn.functional.cosine_similarity(stream.pop("before"), stream.pop("after"), dim=-1)
                self.influence.add_((1 - cosines).sum())

        outputs = (block.attention_output_norm or attention, block.mlp_output_norm or block.mlp)
        handles = [
            block.attention_norm.register_forward_pre_hook(at_residual_stream),
            attention.register_forward_pre_hook(at_attention, with_kwargs=True),
            attention.qkv_proj.register_forward_hook(at_queries),
            attention.o_proj.register_forward_pre_hook(at_output_map(self.attention_moment, self.attention_sum)),
            block.mlp.down_proj.register_forward_pre_hook(at_output_map(self.mlp_moment, self.mlp_sum)),
            *(module.register_forward_hook(at_output) for module in outputs),
        ]
        if not block.parallel:
            handles.append(block.mlp_norm.register_forward_pre_hook(at_middle))
        with ExitStack() as hooks:
            for handle in handles:
                hooks.enter_context(handle)
            yield

    @contextmanager
    def collecting_gradients(self, block: Block, sequences: slice) -> Iterator[None]:
        """While open, collect mask gradients, in place, in the backward pass.

        The gradient of a mask of ones on the input of an output map is the sum over tokens of activation times
        gradient. Those of attention and MLP are written to the rows `sequences`. The token-wise Fisher information of
        queries and neurons is added.
        """
        attention = block.attention
        rotated = (attention.frequency != UNROTATED)[attention.kv_head]

        def at_queries(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            values = output.detach()[..., : attention.heads * attention.dim]

            def add(gradient: Tensor) -> None:
                attribution = (values * gradient[..., : values.shape[-1]]).float().unflatten(-1, (attention.heads, -1))
                self.query_fisher.add_(query_fisher(attribution, rotated))

            output.register_hook(add)

        def at_output_map(gradients: Tensor, fisher: Tensor | None = None) -> InputHook:
            def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
                values = inputs[0].detach()

                def add(gradient: Tensor) -> None:
                    attribution = (values * gradient).float()
                    gradients[sequences] = attribution.sum(1)
                    if fisher is not None:
                        fisher.add_(attribution.flatten(0, 1).square_().sum(0))

                inputs[0].register_hook(add)

            return hook

        handles = [
            attention.o_proj.register_forward_pre_hook(at_output_map(self.attention_gradients)),
            block.mlp.down_proj.register_forward_pre_hook(at_output_map(self.mlp_gradients, self.mlp_fisher)),
            attention.qkv_proj.register_forward_hook(at_queries),
        ]
        with ExitStack() as hooks:
            for handle in handles:
                hooks.enter_context(handle)
            yield


def empty_stats(block: Block, sequences: int, device: torch.device, moments: Collection[str] = MOMENTS) -> LayerStats:
    """Zeros, for a calibration on `sequences` sequences. Moments that are not among `moments` have no rows."""
    attention, mlp = block.attention, block.mlp
    channels, hidden = attention.heads * attention.value_dim, attention.o_proj.out_features
    middle = 0 if block.parallel else hidden

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float32, device=device)

    widths = dict(zip(MOMENTS, (hidden, hidden, middle, channels, mlp.neurons), strict=True))
    return LayerStats(
        **{name: zeros(width, width) if name in moments else zeros(0, 0) for name, width in widths.items()},
        attention_sum=zeros(channels),
        channel_products=zeros(attention.heads, attention.dim),
        query_energy=zeros(attention.heads, attention.dim),
        key_energy=zeros(attention.kv_heads, attention.dim),
        value_moment=zeros(attention.kv_heads, attention.value_dim, attention.value_dim),
        query_fisher=zeros(attention.heads, attention.dim),
        mlp_sum=zeros(mlp.neurons),
        attention_gradients=zeros(sequences, channels),
        mlp_gradients=zeros(sequences, mlp.neurons),
        mlp_fisher=zeros(mlp.neurons),
        influence=zeros(),
    )


@dataclass
class CalibrationStats:
    """Results of one calibration on `tokens` tokens, with gradients of the loss on `targets`."""

    layers: list[LayerStats]
    tokens: int
    targets: Targets
    sizes: tuple[LayerSizes, ...]
    output_maps: list[Float[Tensor, "hidden heads dim"]]  # of the dense attention modules, without copies
    kv_heads: list[tuple[int, ...]]
    frequencies: list[Int[Tensor, "kv_heads pairs"]]  # as in `AttentionWeights`
    other_parameters: int
    bytes_per_value: int
    # Principal axes at each read of the residual stream, found on first use: the first columns are the basis for any
    # width.
    residual_axes: dict[int, Float[Tensor, "hidden hidden"]] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def profile(self) -> Profile:
        """Inputs of plans, with the estimators' default units."""
        return self._profile(SliceConfig(), ignore_progress)

    def profile_for(self, config: SliceConfig) -> Profile:
        """Inputs of plans, with the units, gradient groups and scores of heads of `config`."""
        is_default = profile_settings(config) == profile_settings(SliceConfig())
        return self.profile if is_default else self._profile(config, ignore_progress)

    def make_profile(self, *, progress: ProgressOption = True) -> Profile:
        """`profile`, with progress by layer if it is not computed yet."""
        if "profile" not in vars(self):
            self.profile = self._profile(SliceConfig(), progress_callback(progress))
        return self.profile

    def _profile(self, config: SliceConfig, progress: ProgressCallback) -> Profile:
        layers: list[LayerProfile] = []
        neurons = tuple(sizes.neurons for sizes in self.sizes)
        estimators = [name for name, estimator in ESTIMATORS.items() if estimator.neurons in (None, neurons)]
        layer_data = zip(self.layers, self.sizes, self.output_maps, self.kv_heads, self.frequencies, strict=True)
        for index, (stats, sizes, output_map, kv_head, frequency) in enumerate(layer_data):
            layers.append(stats.profile(sizes, output_map, kv_head, frequency, config, index, estimators))
            progress(Progress("profile", len(layers), len(self.layers)))
        return Profile(tuple(layers), self.other_parameters, self.bytes_per_value, *profile_settings(config))


class ProfileSettings(NamedTuple):
    """The settings of a config on which a profile depends, as in `SliceConfig` and `FitConfig`."""

    head_fraction: float | None
    gradient_group: int
    sensitive_scores: bool


def profile_settings(config: SliceConfig) -> ProfileSettings:
    """Return the settings of `config` on which a profile depends, in the order of the fields of `Profile`."""
    return ProfileSettings(config.head_fraction, config.gradient_group, config.fit.sensitive_scores)


def layer_sizes(block: Block) -> LayerSizes:
    """Sizes of one layer, from its tensors."""
    attention, mlp = block.attention, block.mlp
    norms = {block.attention_norm, block.mlp_norm, block.attention_output_norm, block.mlp_output_norm, attention.norms}
    norm_parameters = sum(p.numel() for norm in norms if norm is not None for p in norm.parameters())
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
        fixed=norm_parameters + sum(b.numel() for b in output_biases),
        whole_queries=attention.norms is not None,  # as `choose_channels` keeps them
    )


def channel_products(
    query: Float[Tensor, "batch heads tokens dim"],
    key: Float[Tensor, "batch kv_heads tokens dim"],
    kv_head: Int[Tensor, " heads"],
) -> Float[Tensor, "heads dim"]:
    """Sum over tokens of `|q_j k_j|`, each query head against the key head it reads."""
    return torch.einsum("bhtd,bhtd->hd", query.float().abs(), key.float().abs()[:, kv_head])


def query_fisher(
    attribution: Float[Tensor, "batch tokens heads dim"], rotated: Bool[Tensor, "heads pairs"]
) -> Float[Tensor, "heads dim"]:
    """Empirical Fisher (diagonal) of masks on query channels, summed over tokens, from `attribution` `q_j dL/dq_j`.

    The two channels of a rotated pair have one mask, `(q_j dL/dq_j + q_j' dL/dq_j')^2`, and half of its value each; it
    is the same before and after the rotation.
    """
    first, second = attribution.flatten(0, 1).chunk(2, dim=-1)
    shared = (first + second).square().sum(0) / 2
    return torch.cat([torch.where(rotated, shared, single.square().sum(0)) for single in (first, second)], dim=-1)
