"""The global ratio estimator (paper §4): importances and a sparsity in, a plan for every layer out. Pure and fast.

A `Profile` is everything the estimator reads of a calibration; `make_plan` answers a slider from it in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from intraslice.core.config import ModuleKind, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.profile import Profile
from intraslice.planning.runtime_sizes import runtime_sizes
from intraslice.planning.sizes import Parameters
from intraslice.planning.widths import MULTIPLE, neurons_kept

SEARCH_STEPS = 24
CONTEXT = 512  # tokens that a token attends to, itself included, where floating-point operations are counted


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gives: the estimated ratios, and the sizes that follow from them."""

    attention_ratio: float
    mlp_ratio: float
    heads: tuple[int, ...]
    kv_heads: int
    dim: int
    neurons: int


@dataclass(frozen=True)
class Reasons:
    """Why the ratios are what they are: thresholds on the importances, and layers held back by the cap."""

    nominal_sparsity: float  # what the budget was computed with, so that the removed parameters come out as asked
    bias: float  # given or found: the share of neurons that goes, before cap and locks, over the nominal sparsity
    attention_threshold: float | None
    mlp_threshold: float | None
    capped_attention: tuple[int, ...]
    capped_mlp: tuple[int, ...]


@dataclass(frozen=True)
class SlicePlan:
    """A ratio for every layer and module, the sizes they lead to, what that removes, and why."""

    config: SliceConfig
    layers: tuple[LayerPlan, ...]
    parameters: Parameters
    kv_bytes_per_token: tuple[int, int]  # dense, sliced
    reasons: Reasons

    @property
    def removed_fraction(self) -> float:
        return self.parameters.removed_fraction

    @property
    def recovery(self) -> str:
        """The recovery that follows slicing, or "none"."""
        return self.config.recovery

    @property
    def epochs(self) -> int:
        """Epochs of the recovery."""
        return self.config.epochs


def cap_ratios(ratios: Sequence[float], weights: Sequence[int], cap: float) -> list[float]:
    """Bound every ratio by `cap`; what is over goes to the other layers in proportion to their ratio.

    `weights` are the layers' sizes: the weighted total is unchanged unless every layer is at the cap.
    """
    capped = list(ratios)
    for _ in range(len(capped)):
        excess = sum(w * max(r - cap, 0.0) for r, w in zip(capped, weights, strict=True))
        capped = [min(r, cap) for r in capped]
        room = [w if r < cap else 0.0 for r, w in zip(capped, weights, strict=True)]
        if excess <= 1e-12 or not any(room):
            break
        shared = sum(w * r for w, r in zip(room, capped, strict=True))
        if shared > 0:
            capped = [r * (1 + excess / shared) if w else r for r, w in zip(capped, room, strict=True)]
        else:  # no proportions to follow: the rest shares alike
            capped = [r + excess / sum(room) if w else r for r, w in zip(capped, room, strict=True)]
    return [min(r, cap) for r in capped]


@dataclass(frozen=True)
class _Draft:
    attention: list[float]
    mlp: list[float]
    shapes: list[tuple[int, int, int]]
    neurons: list[int]
    parameters: int
    reasons: Reasons

    @property
    def sizes(self) -> tuple[list[tuple[int, int, int]], list[int]]:
        return self.shapes, self.neurons


def _draft(profile: Profile, config: SliceConfig, nominal: float) -> _Draft:
    """Ratios and sizes when the budget is computed with the sparsity `nominal`."""
    sizes = [layer.sizes for layer in profile.layers]
    channels, neurons = [s.channels for s in sizes], [s.neurons for s in sizes]
    neurons_removed = _neuron_share(profile, config, nominal)
    mlp, mlp_threshold = _spread(profile, config, "mlp", neurons_removed)
    mlp_capped = _with_locks(cap_ratios(mlp, neurons, config.cap), "mlp", config)
    removed_by_mlp = sum(r * s.neurons * s.neuron_cost for r, s in zip(mlp_capped, sizes, strict=True))
    left_to_attention = nominal * profile.dense_decoder - removed_by_mlp
    fraction = left_to_attention / sum(s.channels * s.channel_cost for s in sizes)
    attention, attention_threshold = _spread(profile, config, "attention", fraction)
    attention_capped = _with_locks(cap_ratios(attention, channels, config.cap), "attention", config)

    shapes = [
        layer.shapes[round(layer.sizes.channels * (1 - ratio))] if ratio < 1 else (0, 0, layer.sizes.dim)
        for layer, ratio in zip(profile.layers, attention_capped, strict=True)
    ]
    widths = [neurons_kept(s.neurons, ratio) for s, ratio in zip(sizes, mlp_capped, strict=True)]
    return _Draft(
        attention_capped,
        mlp_capped,
        shapes,
        widths,
        sum(s.parameters(*shape, width) for s, shape, width in zip(sizes, shapes, widths, strict=True)),
        Reasons(
            nominal,
            neurons_removed / nominal if nominal else config.bias or 1.0,
            attention_threshold,
            mlp_threshold,
            tuple(i for i, r in enumerate(attention) if r > config.cap),
            tuple(i for i, r in enumerate(mlp) if r > config.cap),
        ),
    )


def _neuron_share(profile: Profile, config: SliceConfig, nominal: float) -> float:
    """The share of all neurons that goes when the budget is computed with the sparsity `nominal`."""
    if config.bias is None and _looks_at_importances(config):
        return profile.neurons_among(config.estimator, nominal * profile.dense_decoder)
    return nominal * (config.bias or 1.0)


def _with_locks(ratios: list[float], module: ModuleKind, config: SliceConfig) -> list[float]:
    given = {layer: ratio for layer, locked, ratio in config.locked if locked == module}
    return [given.get(index, ratio) for index, ratio in enumerate(ratios)]


def _looks_at_importances(config: SliceConfig) -> bool:
    return ESTIMATORS[config.estimator].importance is not None


def _spread(
    profile: Profile, config: SliceConfig, module: ModuleKind, fraction: float
) -> tuple[list[float], float | None]:
    """Ratios of one kind of unit, uncapped, whose total is `fraction` of the units, and the threshold that cut them."""
    fraction = min(max(fraction, 0.0), 1.0)
    if not _looks_at_importances(config):
        return [fraction] * len(profile.layers), None
    return profile.ranking(config.estimator, module).ratios(fraction)


def make_plan(profile: Profile, config: SliceConfig) -> SlicePlan:
    """Ratios and sizes that remove `config.sparsity` of the decoder layers' parameters (paper §4).

    Neurons kept are `L * I * (1 - sparsity * bias)`; heads take the parameters that remain. Without a bias the
    importances share the budget out: the least important parameters go, be they heads' or neurons' (with uniform ratios
    the bias is then 1). Key/value heads go with their whole group and sizes are rounded, so the budget is searched for
    until what goes is what was asked. Locked ratios stay, and the search gives the rest what they leave. Raises
    UserError when cap, bias and locks leave too little to remove or remove too much, or when a locked layer is absent.
    """
    units = (profile.head_fraction, profile.gradient_group)
    if units != (config.head_fraction, config.gradient_group):
        raise ValueError(
            f"the profile has units and gradient groups {units}; take the one of stats.profile_for(config)"
        )
    absent = [layer for layer, _, _ in config.locked if layer >= len(profile.layers)]
    if absent:
        raise UserError(f"layer {absent[0]} is locked; expected one from 0 to {len(profile.layers) - 1}")
    layers, reasons = (_runtime_layers if config.shapes == "runtime" else _free_layers)(profile, config)
    decoder = sum(
        layer.sizes.parameters(len(own.heads), own.kv_heads, own.dim, own.neurons)
        for layer, own in zip(profile.layers, layers, strict=True)
    )
    dense, other = profile.dense_decoder, profile.other_parameters
    parameters = Parameters(dense + other, decoder + other, dense, decoder)
    if reasons.nominal_sparsity == 1 and config.sparsity - parameters.removed_fraction > 0.01:
        raise UserError(
            f"sparsity {config.sparsity:g} cannot be reached with cap {config.cap:g}"
            f"{'' if config.bias is None else f' and bias {config.bias:g}'}"
            f"{' beside the locked ratios' if config.locked else ''}: at most "
            f"{parameters.removed_fraction:.3f} of the decoder layers' parameters goes; raise the cap or ask for less"
        )
    locks_alone = config.locked and reasons.nominal_sparsity in (0, 1)
    if locks_alone and parameters.removed_fraction - config.sparsity > 0.01:
        raise UserError(
            f"the locked ratios remove {parameters.removed_fraction:.3f} of the decoder layers' parameters by "
            f"themselves, more than the sparsity of {config.sparsity:g}; unlock some or ask for more"
        )
    dense_cache = sum(2 * layer.sizes.kv_heads * layer.sizes.dim for layer in profile.layers)
    sliced_cache = sum(2 * layer.kv_heads * layer.dim for layer in layers)
    width = profile.bytes_per_value
    return SlicePlan(config, tuple(layers), parameters, (dense_cache * width, sliced_cache * width), reasons)


def _free_layers(profile: Profile, config: SliceConfig) -> tuple[list[LayerPlan], Reasons]:
    best = _nearest(profile, config, (1 - config.sparsity) * profile.dense_decoder)
    layers = []
    for layer, attention, mlp, (count, kv_heads, dim), neurons in zip(
        profile.layers, best.attention, best.mlp, best.shapes, best.neurons, strict=True
    ):
        keep = round(layer.sizes.channels * (1 - attention))
        heads = layer.table.alive[keep].nonzero().flatten().tolist() if count else ()
        layers.append(LayerPlan(attention, mlp, tuple(heads), kv_heads, dim, neurons))
    return layers, best.reasons


def _runtime_layers(profile: Profile, config: SliceConfig) -> tuple[list[LayerPlan], Reasons]:
    """Ratios, but for locked ones, and the bias are those of the sizes."""
    found = runtime_sizes(profile, config)
    sizes = [layer.sizes for layer in profile.layers]
    heads_gone = [1 - len(own.heads) / size.heads for own, size in zip(found.heads, sizes, strict=True)]
    neurons_gone = [1 - own / size.neurons for own, size in zip(found.neurons, sizes, strict=True)]
    layers = [
        LayerPlan(attention, mlp, own.heads, own.kv_heads, size.dim, neurons)
        for size, own, neurons, attention, mlp in zip(
            sizes,
            found.heads,
            found.neurons,
            _with_locks(heads_gone, "attention", config),
            _with_locks(neurons_gone, "mlp", config),
            strict=True,
        )
    ]
    share_gone = 1 - sum(found.neurons) / sum(size.neurons for size in sizes)
    bias = share_gone / config.sparsity if config.sparsity else config.bias or 1.0
    thresholds: tuple[float | None, float | None] = (None, None)
    if _looks_at_importances(config):
        unit = sizes[0].channels / len(profile.importances(config.estimator, "attention")[0])
        thresholds = (
            found.attention_importance * unit * sizes[0].channel_cost,
            found.mlp_importance * sizes[0].neuron_cost,
        )
    return layers, Reasons(found.nominal_sparsity, bias, *thresholds, found.capped_attention, found.capped_mlp)


def _nearest(profile: Profile, config: SliceConfig, wanted: float) -> _Draft:
    """The draft whose parameters are nearest to `wanted`: regula falsi (Pegasus) on the nominal sparsity.

    Widths go in steps, so half a step of one layer is near enough and ends the search.
    """
    near = MULTIPLE / 2 * min(layer.sizes.neuron_cost for layer in profile.layers)

    def over(draft: _Draft) -> float:
        return draft.parameters - wanted

    low, high = (_draft(profile, config, nominal) for nominal in (0.0, 1.0))
    best = min(high, low, key=lambda draft: abs(over(draft)))
    above, below = over(low), over(high)
    for _ in range(SEARCH_STEPS):
        if above <= 0 or below >= 0 or abs(over(best)) <= near or low.sizes == high.sizes:
            break
        start, end = low.reasons.nominal_sparsity, high.reasons.nominal_sparsity
        draft = _draft(profile, config, start + above / (above - below) * (end - start))
        best = min(best, draft, key=lambda draft: abs(over(draft)))
        now = over(draft)
        if now > 0:
            low, above, below = draft, now, below * above / (above + now)
        else:
            high, above, below = draft, above * below / (below + now), now
    return best


def flops_per_token(profile: Profile, plan: SlicePlan, head_weights: int, context: int = CONTEXT) -> tuple[int, int]:
    """Floating-point operations that one more token costs (dense, sliced): a multiplication and an addition a weight.

    Counted are the weights of every matrix multiplication, with `head_weights` of the output head (lm_head), and the
    attention to `context` tokens: scores and weighted values. Norms, biases, rotations and activations are left out,
    well below 1 % of it.
    """
    dense = [(size.heads, size.kv_heads, size.dim, size.neurons) for size in (layer.sizes for layer in profile.layers)]
    sliced = [(len(layer.heads), layer.kv_heads, layer.dim, layer.neurons) for layer in plan.layers]
    return _flops(profile, dense, head_weights, context), _flops(profile, sliced, head_weights, context)


def _flops(profile: Profile, shapes: Sequence[tuple[int, int, int, int]], head_weights: int, context: int) -> int:
    weights, attended = head_weights, 0
    for layer, (heads, kv_heads, dim, neurons) in zip(profile.layers, shapes, strict=True):
        sizes = layer.sizes
        weights += sizes.hidden * (2 * dim * (heads + kv_heads) + neurons * (2 + sizes.gated))
        attended += 2 * heads * dim * context
    return 2 * (weights + attended)
