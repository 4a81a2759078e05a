"""Was the ratio estimator right? What importances foretell of each module, against what slicing it alone did. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas
import torch
from jaxtyping import Float
from torch import Tensor

from intraslice.core.config import MODULE_KINDS, ModuleKind
from intraslice.diagnostics.sensitivity import Measure, ModuleDamage, Sensitivity
from intraslice.planning.profile import Profile

SURE = 2.0  # standard errors
SPLITS = 1000  # of the windows in two halves; their mean rho is then known to 0.01 or better


@dataclass(frozen=True)
class Misjudged:
    """A module whose place among its kind is far from the foretold one, noise allowed for. Place 1 hurts most."""

    estimator: str
    layer: int
    module: ModuleKind
    measured: int
    predicted: int
    of: int

    def __str__(self) -> str:
        way = "more" if self.measured < self.predicted else "less"
        return (
            f"layer {self.layer} {self.module} hurts {way} than {self.estimator} foretells: "
            f"number {self.measured} of {self.of} as measured, number {self.predicted} as foretold"
        )


@dataclass(frozen=True)
class RankAgreement:
    """`modules` has a row a module; `rho[estimator]` Spearman's rho among "attention", "mlp" and "all" modules.

    The estimators are those that look at importances. `ceiling` is the rho that a perfect estimator would be expected
    to read, the noise of the evaluation tokens being what it is. A number is None where it does not exist, as the rho
    of a single layer. `misjudged` comes worst first.
    """

    modules: pandas.DataFrame
    rho: dict[str, dict[str, float | None]]
    ceiling: dict[str, float | None]
    misjudged: tuple[Misjudged, ...]


def fallen_importance(importance: Float[Tensor, " units"], ratio: float) -> float:
    """The sum over the `ratio` least important units, the last one in part: the loss that an estimator expects."""
    ordered = importance.double().sort().values
    cut = ratio * len(ordered)
    whole = int(cut)
    rest = (cut - whole) * ordered[whole].item() if whole < len(ordered) else 0.0
    return ordered[:whole].sum().item() + rest


def predicted_damage(profile: Profile, damage: ModuleDamage, estimator: str) -> float:
    """What an estimator's importances say of slicing one module; in its own unit, so only the order has a meaning."""
    importances = profile.layers[damage.layer].importances[estimator]
    return fallen_importance(getattr(importances, damage.module), damage.ratio)


def noise_ceiling(damages: Float[Tensor, "modules windows"]) -> float | None:
    """Spearman's rho between measured damages and what they would be on endless text: a perfect estimator's.

    Windows are resampled: half of them, drawn by lot, against the other half, many times. The mean rho r of the halves
    makes `2r / (1 + r)` the reliability of all windows (Spearman and Brown), whose root is the correlation with the
    truth. A bootstrap would not do: its resamples agree with a sample that is all noise. None for fewer than two
    windows or modules, or where all modules are alike.
    """
    modules, windows = damages.shape
    if min(modules, windows) < 2 or not (damages.mean(1).var() > 0):
        return None
    generator = torch.Generator().manual_seed(0)
    lots = torch.rand(SPLITS, windows, generator=generator).argsort(1) < windows // 2
    chosen = lots.double() / (windows // 2)
    others = (~lots).double() / (windows - windows // 2)
    first, second = (_centred_ranks(shares @ damages.double().T) for shares in (chosen, others))
    rho = (first * second).sum(1).mean().item() / first[0].square().sum().item()
    return max(0.0, 2 * rho / (1 + rho)) ** 0.5 if rho > 0 else 0.0


def _centred_ranks(values: Float[Tensor, "splits modules"]) -> Float[Tensor, "splits modules"]:
    ranks = values.argsort(1).argsort(1).double()
    return ranks - ranks.mean(1, keepdim=True)


def compare_ranks(sensitivity: Sensitivity, profile: Profile, measure: Measure = "kl") -> RankAgreement:
    """Compare measured damages, as KL or as loss, with what each estimator foretells, by rank.

    Attention and MLPs are ranked apart, as the estimator does. A module counts as misjudged when its rank would be off
    by more than a third of the layers even with its damage two standard errors nearer to what was foretold.
    """
    modules = pandas.DataFrame([_row(damage, measure) for damage in sensitivity.modules])
    damages = torch.tensor([damage.by_window(measure) for damage in sensitivity.modules], dtype=torch.float64)
    kinds = {kind: modules["module"] == kind for kind in MODULE_KINDS} | {"all": modules["module"] != ""}
    modules["place"] = _places(modules, "damage")
    for estimator in profile.estimators:
        modules[estimator] = [predicted_damage(profile, damage, estimator) for damage in sensitivity.modules]
        modules[f"place_{estimator}"] = _places(modules, estimator)
    misjudged = [module for kind in MODULE_KINDS for module in _misjudged(modules[kinds[kind]], profile.estimators)]
    return RankAgreement(
        modules,
        {name: {kind: _spearman(modules[rows], name) for kind, rows in kinds.items()} for name in profile.estimators},
        {kind: noise_ceiling(damages[torch.tensor(rows.tolist())]) for kind, rows in kinds.items()},
        tuple(sorted(misjudged, key=lambda module: -abs(module.measured - module.predicted))),
    )


def _row(damage: ModuleDamage, measure: Measure) -> dict[str, object]:
    """A module's line: its damage by the measure, in nats a token, None for an error that is not known."""
    value, error = damage.damage(measure)
    named = {name: getattr(damage, name) for name in ("layer", "module", "ratio", "removed")}
    return named | {"damage": value, "standard_error": error}


def _places(modules: pandas.DataFrame, column: str) -> pandas.Series:
    return modules.groupby("module")[column].rank(ascending=False, method="first").astype(int)


def _misjudged(modules: pandas.DataFrame, estimators: tuple[str, ...]) -> Iterator[Misjudged]:
    """Those of one kind of module."""
    count = len(modules)
    for index, row in modules.iterrows():
        others = modules["damage"].drop(index)
        noise = SURE * (row["standard_error"] or 0.0)
        best = 1 + int((others > row["damage"] + noise).sum())
        worst = 1 + int((others > row["damage"] - noise).sum())
        for estimator in estimators:
            predicted = row[f"place_{estimator}"]
            if max(best - predicted, predicted - worst) > count / 3:
                yield Misjudged(estimator, row["layer"], row["module"], row["place"], predicted, count)


def _spearman(modules: pandas.DataFrame, estimator: str) -> float | None:
    rho = modules[["damage", estimator]].corr(method="spearman").iloc[0, 1]
    return None if pandas.isna(rho) else float(rho)
