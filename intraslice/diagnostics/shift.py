"""Activation shift: how far a sliced model's activations are from the dense model's.

All states are mapped to the dense basis first. From the middle layers on, a few *massive* tokens carry most of the
residual stream's energy, so they are separated from the ordinary tokens, and values are medians over tokens. With
LayerNorm the states are centred, since the norm removes their mean.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy
import pandas
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.core.errors import UserError
from intraslice.core.progress import Pause, Progress, ProgressOption, progress_callback
from intraslice.modeling.families import blocks
from intraslice.modeling.hidden_states import Windows, embed
from intraslice.modeling.residual import centre

BINS = 120
TAIL = 0.001  # fraction of the first values below the lowest edge, and above the highest
SAMPLE = 1_000_000


@dataclass(frozen=True)
class Distribution:
    """Statistics of a set of values. The end bins include values outside the edges, so the density integrates to 1."""

    mean: float
    spread: float  # standard deviation
    kurtosis: float  # excess: 0 for a Gaussian
    edges: Float[Tensor, " edges"]
    density: Float[Tensor, " bins"]


def histogram_edges(values: Float[Tensor, "*any"], bins: int = BINS) -> Float[Tensor, " edges"]:
    """Equal bins between outer quantiles of the values: with a few outliers, most values would share one bin."""
    sample = values.flatten()
    sample = sample[:: max(1, len(sample) // SAMPLE)].double().cpu()
    low, high = numpy.quantile(sample.numpy(), [TAIL, 1 - TAIL]).tolist()  # torch's sorts all values: four times slower
    if not high > low:  # all values are equal
        low, high = low - 0.5, high + 0.5
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


class Moments:
    """Power sums and bin counts of the values seen so far, centred on the first values' mean to avoid cancellation."""

    def __init__(self, edges: Float[Tensor, " edges"]) -> None:
        self.edges, self.count, self.origin = edges, 0, 0.0
        self.sums, self.bins = (torch.zeros(size, dtype=torch.float64) for size in (4, len(edges) - 1))

    def add(self, values: Float[Tensor, "*any"]) -> None:
        """Add values."""
        low, high = self.edges[0].item(), self.edges[-1].item()
        self.bins += values.float().clamp(low, high).histc(len(self.bins), low, high).double().cpu()
        if self.count == 0:
            self.origin = values.mean(dtype=torch.float64).item()
        centred = values.flatten().double() - self.origin
        square = centred.square()
        powers = (centred.sum(), centred @ centred, square @ centred, square @ square)
        self.sums += torch.stack(powers).cpu()
        self.count += values.numel()

    def distribution(self) -> Distribution:
        """Statistics of the values seen so far."""
        first, second, third, fourth = (self.sums / self.count).tolist()
        variance = max(second - first**2, 0.0)
        fourth_central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        kurtosis = fourth_central / variance**2 - 3 if variance > 0 else 0.0
        density = self.bins / (self.bins.sum() * (self.edges[1] - self.edges[0]))
        return Distribution(self.origin + first, variance**0.5, kurtosis, self.edges, density)


def distance(first: Distribution, second: Distribution) -> float:
    """1-Wasserstein distance of two histograms on the same edges: the area between their cumulative distributions.

    In the unit of the values. Values outside the edges count in the end bins, so this is at most the distance of the
    values themselves.
    """
    step = first.edges[1] - first.edges[0]
    return ((first.density - second.density).cumsum(0).abs().sum() * step * step).item()


Place = Literal["residual", "attention", "mlp"]  # the residual stream after a block, and the outputs of its modules
PLACES: tuple[Place, ...] = get_args(Place)
MASSIVE = 10.0  # times the norm of the median token of its window, after any block but the last

Hidden = Float[Tensor, "tokens hidden"]
States = dict[tuple[int, Place], Hidden]
Key = tuple[str, int, Place]  # method, layer and place


@dataclass(frozen=True)
class Shift:
    """One method compared with the dense model at one layer and place. Token-wise values are medians over tokens."""

    method: str
    layer: int
    place: Place
    error: float  # |x' - x| / |x|, ordinary tokens
    massive_error: float  # nan if no token is massive
    pooled_error: float  # as `error`, from sums of squares over ordinary tokens, which weights large tokens more
    cosine: float
    massive_cosine: float
    mean_shift: float  # of all values of ordinary tokens, in dense standard deviations
    spread_shift: float  # relative: 0.1 is a standard deviation 10 % larger than the dense one
    kurtosis: float  # excess; that of the dense model is in `distributions`
    distance: float  # 1-Wasserstein between the histograms, in dense standard deviations


@dataclass(frozen=True)
class ShiftReport:
    """All shifts; `distributions` are by (method, layer, place), including the method "dense"."""

    shifts: tuple[Shift, ...]
    distributions: dict[Key, Distribution]
    tokens: int
    massive: int  # number of massive tokens

    def frame(self) -> pandas.DataFrame:
        """One row per method, layer and place."""
        return pandas.DataFrame([vars(shift) for shift in self.shifts])


@dataclass
class _Tally:
    """Running statistics of one method at one layer and place."""

    values: Moments
    errors: list[Tensor] = field(default_factory=list)
    cosines: list[Tensor] = field(default_factory=list)
    squared: list[float] = field(default_factory=lambda: [0.0, 0.0])  # of the difference, of the dense states

    def compare(self, states: Hidden, dense: Hidden, ordinary: Bool[Tensor, " tokens"]) -> None:
        difference, norm = (states - dense).norm(dim=-1), dense.norm(dim=-1)
        self.errors.append((difference / norm.clamp_min(torch.finfo(norm.dtype).tiny)).cpu())
        self.cosines.append(nn.functional.cosine_similarity(states, dense, dim=-1).cpu())
        for index, lengths in enumerate((difference, norm)):
            self.squared[index] += lengths[ordinary].double().square().sum().item()


Tallies = dict[Key, _Tally]


@torch.no_grad()
def measure_shift(
    dense: PreTrainedModel, methods: Mapping[str, PreTrainedModel], tokens: Windows, *, progress: ProgressOption = True
) -> ShiftReport:
    """Compare each method's activations with the dense model's, window by window.

    One pass through every model; only one window's activations are in memory. `tokens` should be held-out. `progress`
    counts windows and is called after each layer. Raises UserError for a method named "dense", or a cross-module model
    without its bases (one loaded from a folder).
    """
    if "dense" in methods:
        raise UserError("a method is named 'dense', the name of the reference model; expected another name")
    report, models = progress_callback(progress), {"dense": dense, **methods}
    tallies: Tallies = {}
    ordinary_tokens: list[Tensor] = []
    report(Progress("shift", 0, len(tokens)))
    for done, window in enumerate(tokens):
        pause = partial(report, Progress("shift", done, len(tokens)))
        ordinary_tokens.append(_compare_(tallies, models, window, pause))
        report(Progress("shift", done + 1, len(tokens)))
    ordinary = torch.cat(ordinary_tokens)
    distributions = {key: tally.values.distribution() for key, tally in tallies.items()}
    shifts = tuple(_shift(key, tally, distributions, ordinary) for key, tally in tallies.items() if key[0] != "dense")
    return ShiftReport(shifts, distributions, tokens.numel(), int((~ordinary).sum()))


def _compare_(
    tallies: Tallies, models: Mapping[str, PreTrainedModel], window: Int[Tensor, " window"], pause: Pause
) -> Bool[Tensor, " window"]:
    """Add one window to the tallies, in place, and return its ordinary tokens; `pause` is called after each layer."""
    dense = models["dense"]
    reference = _states(dense, window, dense, pause)
    ordinary = ~massive_tokens(reference)
    if not tallies:
        edges = {}
        for key, values in reference.items():
            edges[key] = histogram_edges(values[ordinary])
            pause()
        tallies |= {(name, *key): _Tally(Moments(edges[key])) for name in models for key in reference}
    for name, model in models.items():
        states = reference if model is dense else _states(model, window, dense, pause)
        for key in reference:
            tally = tallies[(name, *key)]
            tally.values.add(states[key][ordinary])
            if name != "dense":
                tally.compare(states[key], reference[key], ordinary)
            pause()
    return ordinary.cpu()


def massive_tokens(states: States) -> Bool[Tensor, " tokens"]:
    """Tokens whose residual stream, after any block but the last, has over `MASSIVE` times the window's median norm.

    All layers use the same set, so that values of different layers refer to the same tokens.
    """
    by_layer = [value.norm(dim=-1) for (_, place), value in states.items() if place == "residual"]
    norms = torch.stack(by_layer[:-1] or by_layer)
    return (norms > MASSIVE * norms.median(-1, keepdim=True).values).any(0)


def _shift(key: Key, tally: _Tally, distributions: Mapping[Key, Distribution], ordinary: Tensor) -> Shift:
    sliced, dense = distributions[key], distributions["dense", key[1], key[2]]
    errors, cosines = torch.cat(tally.errors), torch.cat(tally.cosines)
    spread = max(dense.spread, torch.finfo(torch.float64).tiny)
    return Shift(
        *key,
        error=_median(errors[ordinary]),
        massive_error=_median(errors[~ordinary]),
        pooled_error=(tally.squared[0] / max(tally.squared[1], torch.finfo(torch.float64).tiny)) ** 0.5,
        cosine=_median(cosines[ordinary]),
        massive_cosine=_median(cosines[~ordinary]),
        mean_shift=(sliced.mean - dense.mean) / spread,
        spread_shift=sliced.spread / spread - 1,
        kurtosis=sliced.kurtosis,
        distance=distance(sliced, dense) / spread,
    )


def _median(values: Tensor) -> float:
    return values.median().item() if len(values) else float("nan")


def _states(model: PreTrainedModel, window: Int[Tensor, " window"], dense: PreTrainedModel, pause: Pause) -> States:
    """The states of one window at every layer and place, in the dense basis, centred as its dense norms do."""
    states: States = {}
    hidden_states = embed(model, window[None])

    def record(
        index: int, place: Place, basis: Tensor | None, norm: nn.Module, _: nn.Module, inputs: Any, output: Any
    ) -> None:
        values = (output[0] if isinstance(output, tuple) else output).flatten(0, 1).float()
        states[index, place] = centre(values if basis is None else values @ basis.T.float(), norm)

    for index, (layer, block) in enumerate(zip(model.model.layers, blocks(dense), strict=True)):
        places: dict[Place, nn.Module] = {"attention": layer.self_attn, "mlp": layer.mlp, "residual": layer}
        with ExitStack() as hooks:
            for place, module in places.items():
                hook = partial(record, index, place, _basis(layer, place), block.attention_norm)
                hooks.enter_context(module.register_forward_hook(hook))
            hidden_states.pass_through_(layer)
        pause()
    return states


def _basis(layer: nn.Module, place: Place) -> Float[Tensor, "hidden width"] | None:
    """The axes of a layer's states, as columns; None for the dense basis.

    A cross-module layer has `bases`: before it, after its attention unless modules are parallel, and after it. A
    module's output is in the basis after the module.
    """
    bases = getattr(layer, "bases", None)
    if bases is None:
        return None
    if not bases:
        raise UserError(
            "a cross-module model loaded from a folder lacks the bases that map its residual stream back to the dense "
            "model's; slice the dense model again"
        )
    return bases[1] if place == "attention" else bases[-1]
