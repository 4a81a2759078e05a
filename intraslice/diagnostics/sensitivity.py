"""Measured sensitivity: the damage of slicing single modules, as KL divergence from the dense model or as loss.

*Alone*: one module is sliced, the rest stays dense. *In context*: one module of a sliced model is replaced by the dense
one, and its damage is the improvement. `compare_ranks` compares it with the estimators' predictions. Each forward
starts at the replaced layer. Finished modules are cached, so that an interrupted run continues where it stopped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas
import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.cache import cache_path, read_record, write_record
from intraslice.core.config import MODULE_KINDS, ModuleKind, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, ProgressOption, progress_callback
from intraslice.evaluation.perplexity import Estimate, head_losses, mean_over_windows
from intraslice.loading import LoadedModel, fingerprint
from intraslice.modeling.hidden_states import Windows, embed, last_states
from intraslice.modeling.surgery import replace_modules
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.planning.sizes import LayerPlan, neurons_kept
from intraslice.slicing.driver import slice_model

FORMAT = "7"
PARTS: dict[ModuleKind, str] = {"attention": "self_attn", "mlp": "mlp"}  # of a canonical layer
Measure = Literal["kl", "loss"]


@dataclass(frozen=True)
class ModuleDamage:
    """The damage of slicing one module, by window of the text, in nats per token."""

    layer: int
    module: ModuleKind
    ratio: float  # of the module that is sliced
    removed: int  # parameters
    divergences: tuple[float, ...]  # of KL from the dense model; in context it may be negative
    increases: tuple[float, ...]  # of the loss; negative where the sliced model is better

    def by_window(self, measure: Measure) -> tuple[float, ...]:
        """The damage in each window."""
        return self.divergences if measure == "kl" else self.increases

    def damage(self, measure: Measure) -> Estimate:
        """The mean over windows, with its standard error."""
        return mean_over_windows(self.by_window(measure))


@dataclass(frozen=True)
class Sensitivity:
    """Damages of all modules, layer by layer, attention first."""

    ratio: float | None  # of the sliced module; None in context, where ratios differ
    base_loss: float  # mean loss of the unchanged model (dense, or sliced in context), in nats per token
    tokens: int  # scored
    modules: tuple[ModuleDamage, ...]
    context: Estimate | None = None  # in context: KL of the sliced model from the dense one


def cut_alone(dense: LayerPlan, profile: LayerProfile, module: ModuleKind, ratio: float) -> LayerPlan:
    """The layer's plan with one module pruned by `ratio` and the other one dense."""
    if module == "mlp":
        return replace(dense, mlp_ratio=ratio, neurons=neurons_kept(profile.sizes.neurons, ratio))
    keep = round(profile.sizes.channels * (1 - ratio))
    _, kv_heads, dim = profile.shapes[keep]
    return replace(dense, attention_ratio=ratio, heads=profile.heads(keep), kv_heads=kv_heads, dim=dim)


def slice_alone(
    model: PreTrainedModel, stats: CalibrationStats, layer: int, module: ModuleKind, ratio: float
) -> nn.Module:
    """The layer with one module sliced in one shot; no other layer is sliced."""
    plan = make_plan(stats.profile, SliceConfig(0.0, order="one-shot"))
    layers = list(plan.layers)
    layers[layer] = cut_alone(layers[layer], stats.profile.layers[layer], module, ratio)
    return slice_model(model, replace(plan, layers=tuple(layers)), stats, progress=False).model.layers[layer]


def measure_sensitivity(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Windows, ratio: float, *, progress: ProgressOption = True
) -> Sensitivity:
    """Slice each module alone at `ratio`, in one shot, and measure the damage on `tokens`; `progress` counts modules.

    Finished modules are cached by model, calibration, tokens and ratio. Raises UserError for a ratio that is not above
    0 and at most 0.95.
    """
    require_ratio(ratio)
    model, path = loaded.model, _path(loaded, stats, tokens, float(ratio))
    changed = partial(slice_alone, model, stats, ratio=ratio)
    measurements = _measure(model, model, changed, tokens, path, "sensitivity", progress)
    return _sensitivity(model, measurements, tokens, [ratio] * (len(measurements) - 1), 1)


def cached_sensitivity(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Windows, ratio: float
) -> Sensitivity | None:
    """The cached result of `measure_sensitivity` if all modules are measured, else None."""
    require_ratio(ratio)
    measurements, modules = _read(_path(loaded, stats, tokens, float(ratio))), 2 * len(stats.layers)
    if len(measurements) != 1 + modules:
        return None
    return _sensitivity(loaded.model, measurements, tokens, [ratio] * modules, 1)


def measure_in_context(
    loaded: LoadedModel,
    stats: CalibrationStats,
    sliced: PreTrainedModel,
    plan: SlicePlan,
    tokens: Windows,
    method: str = "intraslice",
    *,
    progress: ProgressOption = True,
) -> Sensitivity:
    """Replace each module of a sliced model by the dense one, and measure the improvement on `tokens`.

    `sliced` is the model of `plan` by `method`; finished modules are cached by its weights. `progress` counts modules.
    """

    def changed(layer: int, module: ModuleKind) -> nn.Module:
        old, new = sliced.model.layers[layer], loaded.model.model.layers[layer]
        return replace_modules(old, {getattr(old, PARTS[module]): getattr(new, PARTS[module])})

    path = _path(loaded, stats, tokens, "in context", method, plan.layers, fingerprint(sliced))
    measurements = _measure(loaded.model, sliced, changed, tokens, path, "sensitivity in context", progress)
    ratios = [ratio for layer in plan.layers for ratio in (layer.attention_ratio, layer.mlp_ratio)]
    sensitivity = _sensitivity(sliced, measurements, tokens, ratios, -1)
    return replace(sensitivity, ratio=None, context=mean_over_windows(measurements[0]["divergences"]))


def modules_of(model: PreTrainedModel) -> list[tuple[int, ModuleKind]]:
    """All modules, layer by layer, attention first."""
    return [(layer, module) for layer in range(len(model.model.layers)) for module in MODULE_KINDS]


def _path(loaded: LoadedModel, stats: CalibrationStats, tokens: Tensor, *what: object) -> Path:
    """Cache path for measurements of this model, calibration and text; `what` distinguishes them."""
    inputs = stats.tokens, stats.targets, stats.layers[-1].attention_sum, tokens, *what
    return cache_path("sensitivity", ".json", FORMAT, loaded.fingerprint, loaded.model.dtype, *inputs)


def require_ratio(ratio: float) -> None:
    """Raise UserError unless the ratio of a single module is in range."""
    if not 0 < ratio <= 0.95:
        raise UserError(f"ratio must be above 0 and at most 0.95, got {ratio!r}")


# One model on windows of equal length, as JSON: its `divergences` (KL, dense to this model) and `losses`, means over
# each window's scored tokens, in nats, and the `parameters` of the replaced layer.
_Measurement = dict[str, Any]


def _read(path: Path) -> list[_Measurement]:
    """The cached measurements of the unchanged model, and with each module replaced; empty if there are none."""
    record = read_record(path)
    return [record["base"], *record["changed"]] if record else []


@torch.no_grad()
def _measure(
    dense: PreTrainedModel,
    base: PreTrainedModel,
    changed: Callable[[int, ModuleKind], nn.Module],
    tokens: Windows,
    path: Path,
    stage: str,
    progress: ProgressOption,
) -> list[_Measurement]:
    """Measure `base`, and `base` with each layer replaced by `changed(layer, module)`, for both of its modules.

    Costs about half a forward per module, and memory for two hidden states per token. Finished modules are kept in the
    file `path`. `progress` is also called after each layer of each batch, and after each chunk of logits.
    """
    report, modules, layers = progress_callback(progress), modules_of(base), base.model.layers
    measurements = _read(path)

    def pause() -> None:
        report(Progress(stage, max(0, len(measurements) - 1), len(modules)))

    pause()
    if len(measurements) > len(modules):
        return measurements
    targets, hidden_states = tokens[:, 1:].flatten(), embed(base, tokens)
    dense_states = last_states(dense, dense.model.layers, hidden_states, pause)

    def measure(states: Tensor, parameters: int = 0) -> None:
        losses, divergences = head_losses(base, states, targets, (dense, dense_states), pause)
        assert divergences is not None  # `dense_states` are given
        kl, nll = (values.view(len(tokens), -1).mean(1).tolist() for values in (divergences, losses))
        measurements.append({"divergences": kl, "losses": nll, "parameters": parameters})

    if not measurements:
        measure(dense_states if base is dense else last_states(base, layers, hidden_states, pause))
    next_layer = 0
    for layer, module in modules[len(measurements) - 1 :]:
        for before in layers[next_layer:layer]:
            hidden_states.pass_through_(before, pause)
        next_layer = layer
        new_layer = changed(layer, module)
        pause()
        states = last_states(base, [new_layer, *layers[layer + 1 :]], hidden_states, pause)
        measure(states, sum(parameter.numel() for parameter in new_layer.parameters()))
        unchanged, *others = measurements
        write_record(path, {"base": unchanged, "changed": others}, "the measurements of changed modules")
        pause()
    return measurements


def _sensitivity(
    base: PreTrainedModel, measurements: Sequence[_Measurement], tokens: Tensor, ratios: Sequence[float], sign: int
) -> Sensitivity:
    """The change of divergence and loss with each module replaced, multiplied by `sign`."""
    unchanged, *others = measurements

    def difference(changed: _Measurement, name: str) -> tuple[float, ...]:
        return tuple(sign * (after - before) for after, before in zip(changed[name], unchanged[name], strict=True))

    damages = []
    for (layer, module), changed, ratio in zip(modules_of(base), others, ratios, strict=True):
        parameters = sum(parameter.numel() for parameter in base.model.layers[layer].parameters())
        removed = sign * (parameters - changed["parameters"])
        changes = difference(changed, "divergences"), difference(changed, "losses")
        damages.append(ModuleDamage(layer, module, ratio, removed, *changes))
    loss = mean_over_windows(unchanged["losses"]).value
    return Sensitivity(ratios[0], loss, tokens[:, 1:].numel(), tuple(damages))


# Check of the ratio estimators: predicted against measured damage of each module, by rank. Pure.

NOISE_ERRORS = 2.0  # standard errors that count as noise
RESAMPLES = 1000  # random splits of the windows; the mean rho is then exact to 0.01


@dataclass(frozen=True)
class Misjudged:
    """A module whose measured rank among its kind is far from the predicted one, beyond noise. Rank 1: most damage."""

    estimator: str
    layer: int
    module: ModuleKind
    measured: int
    predicted: int
    of: int

    def __str__(self) -> str:
        way = "more" if self.measured < self.predicted else "less"
        return (
            f"layer {self.layer} {self.module} does {way} damage than {self.estimator} predicts: "
            f"measured rank {self.measured} of {self.of}, predicted rank {self.predicted}"
        )


@dataclass(frozen=True)
class RankAgreement:
    """`modules` has one row per module; `rho[estimator]` is Spearman's rho for "attention", "mlp" and "all" modules.

    The estimators are those with importances. `ceiling` is the expected rho of a perfect estimator, given the sampling
    noise of the evaluation tokens. A number is None where it is undefined, such as the rho of a single layer.
    `misjudged` is sorted, the largest difference of ranks first.
    """

    modules: pandas.DataFrame
    rho: dict[str, dict[str, float | None]]
    ceiling: dict[str, float | None]
    misjudged: tuple[Misjudged, ...]


def removed_importance(importance: Float[Tensor, " units"], ratio: float) -> float:
    """Sum of the `ratio` least important units, the last one in part: the loss increase that an estimator predicts."""
    ordered = importance.double().sort().values
    cut = ratio * len(ordered)
    whole = int(cut)
    rest = (cut - whole) * ordered[whole].item() if whole < len(ordered) else 0.0
    return ordered[:whole].sum().item() + rest


def noise_ceiling(damages: Float[Tensor, "modules windows"]) -> float | None:
    """Expected Spearman's rho between measured and true damages, which a perfect estimator would reach.

    Compares many random halves of the windows with the other half. With their mean rho r, `2r / (1 + r)` is the
    reliability of all windows (Spearman-Brown), and its root the correlation with the true damages. A bootstrap would
    overestimate it: its resamples agree even with pure noise. None for fewer than two windows or modules, or if all
    modules have the same damage.
    """
    modules, windows = damages.shape
    if min(modules, windows) < 2 or not (damages.mean(1).var() > 0):
        return None
    generator = torch.Generator().manual_seed(0)
    in_first = torch.rand(RESAMPLES, windows, generator=generator).argsort(1) < windows // 2
    first_weights = in_first.double() / (windows // 2)
    second_weights = (~in_first).double() / (windows - windows // 2)
    ranks = [
        (weights @ damages.double().T).argsort(1).argsort(1).double() for weights in (first_weights, second_weights)
    ]
    first, second = (rank - rank.mean(1, keepdim=True) for rank in ranks)
    rho = (first * second).sum(1).mean().item() / first[0].square().sum().item()
    return max(0.0, 2 * rho / (1 + rho)) ** 0.5 if rho > 0 else 0.0


def compare_ranks(sensitivity: Sensitivity, profile: Profile, measure: Measure = "kl") -> RankAgreement:
    """Compare measured damages, as KL or as loss, with the predictions of each estimator, by rank.

    Attention and MLPs are ranked separately, as by the estimators. A module is misjudged if its rank differs by more
    than a third of the layers even with a damage two standard errors nearer to the prediction.
    """
    rows = []
    for damage in sensitivity.modules:
        value, error = damage.damage(measure)  # in nats per token; an unknown error is None
        row = {name: getattr(damage, name) for name in ("layer", "module", "ratio", "removed")}
        rows.append(row | {"damage": value, "standard_error": error})
    modules = pandas.DataFrame(rows)
    damages = torch.tensor([damage.by_window(measure) for damage in sensitivity.modules], dtype=torch.float64)
    kinds = {kind: modules["module"] == kind for kind in MODULE_KINDS} | {"all": modules["module"] != ""}
    modules["place"] = _ranks(modules, "damage")
    for estimator in profile.estimators:
        importances = [layer.importances[estimator] for layer in profile.layers]
        modules[estimator] = [  # in the estimator's own unit: only the order is meaningful
            removed_importance(getattr(importances[damage.layer], damage.module), damage.ratio)
            for damage in sensitivity.modules
        ]
        modules[f"place_{estimator}"] = _ranks(modules, estimator)
    misjudged = [module for kind in MODULE_KINDS for module in _misjudged(modules[kinds[kind]], profile.estimators)]
    return RankAgreement(
        modules,
        {
            name: {kind: _spearman(modules[of_kind], name) for kind, of_kind in kinds.items()}
            for name in profile.estimators
        },
        {kind: noise_ceiling(damages[torch.tensor(of_kind.tolist())]) for kind, of_kind in kinds.items()},
        tuple(sorted(misjudged, key=lambda module: -abs(module.measured - module.predicted))),
    )


def _ranks(modules: pandas.DataFrame, column: str) -> pandas.Series:
    return modules.groupby("module")[column].rank(ascending=False, method="first").astype(int)


def _misjudged(modules: pandas.DataFrame, estimators: tuple[str, ...]) -> list[Misjudged]:
    """The misjudged modules among those of one kind."""
    misjudged, count = [], len(modules)
    for index, row in modules.iterrows():
        others = modules["damage"].drop(index)
        noise = NOISE_ERRORS * (row["standard_error"] or 0.0)
        best = 1 + int((others > row["damage"] + noise).sum())
        worst = 1 + int((others > row["damage"] - noise).sum())
        for estimator in estimators:
            predicted = row[f"place_{estimator}"]
            if max(best - predicted, predicted - worst) > count / 3:
                place = row["layer"], row["module"], row["place"]
                misjudged.append(Misjudged(estimator, *place, predicted, count))
    return misjudged


def _spearman(modules: pandas.DataFrame, estimator: str) -> float | None:
    rho = modules[["damage", estimator]].corr(method="spearman").iloc[0, 1]
    return None if pandas.isna(rho) else float(rho)
