"""Check of the ratio estimators: predicted against measured damage of each module, by rank. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import pandas
import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.diagnostics.sensitivity import Measure, Sensitivity
from intraslice.planning.profile import Profile

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
    first, second = (_centred_ranks(weights @ damages.double().T) for weights in (first_weights, second_weights))
    rho = (first * second).sum(1).mean().item() / first[0].square().sum().item()
    return max(0.0, 2 * rho / (1 + rho)) ** 0.5 if rho > 0 else 0.0


def _centred_ranks(values: Float[Tensor, "splits modules"]) -> Float[Tensor, "splits modules"]:
    ranks = values.argsort(1).argsort(1).double()
    return ranks - ranks.mean(1, keepdim=True)


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
