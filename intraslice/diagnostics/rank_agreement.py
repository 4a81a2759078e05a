"""Was the ratio estimator right? What importances foretell of each module, against what slicing it alone did. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pandas
from jaxtyping import Float
from torch import Tensor

from intraslice.config import MODULE_KINDS, ModuleKind
from intraslice.diagnostics.sensitivity import ModuleLoss, Sensitivity
from intraslice.planning.profile import Profile

SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Misjudged:
    """A module whose place among its kind is far from the foretold one, noise allowed for. Place 1 hurts most."""

    estimator: str
    layer: int
    module: ModuleKind
    measured: int
    foretold: int
    of: int

    def __str__(self) -> str:
        way = "more" if self.measured < self.foretold else "less"
        return (
            f"layer {self.layer} {self.module} hurts {way} than {self.estimator} foretells: "
            f"number {self.measured} of {self.of} as measured, number {self.foretold} as foretold"
        )


@dataclass(frozen=True)
class RankAgreement:
    """`modules` has a row a module; `rho[estimator]` Spearman's rho among "attention", "mlp" and "all" modules.

    The estimators are those that look at importances. `reliability` is the share of the measured increases' variance
    that is no noise of the evaluation tokens: about the square of the rho that a perfect estimator would reach. A
    number is None where it does not exist, as the rho of a single layer. `misjudged` comes worst first.
    """

    modules: pandas.DataFrame
    rho: dict[str, dict[str, float | None]]
    reliability: dict[str, float | None]
    misjudged: tuple[Misjudged, ...]


def fallen_importance(importance: Float[Tensor, " units"], ratio: float) -> float:
    """The sum over the `ratio` least important units, the last one in part: the loss that an estimator expects."""
    ordered = importance.double().sort().values
    cut = ratio * len(ordered)
    whole = int(cut)
    rest = (cut - whole) * ordered[whole].item() if whole < len(ordered) else 0.0
    return ordered[:whole].sum().item() + rest


def foretell(profile: Profile, loss: ModuleLoss, ratio: float, estimator: str) -> float:
    """What an estimator's importances say of slicing one module; in its own unit, so only the order has a meaning."""
    return fallen_importance(getattr(profile.layers[loss.layer].importances[estimator], loss.module), ratio)


def compare_ranks(sensitivity: Sensitivity, profile: Profile) -> RankAgreement:
    """Compare measured increases of the loss with what each estimator foretells, by rank.

    Attention and MLPs are ranked apart, as the estimator does. A module counts as misjudged when its rank would be off
    by more than a third of the layers even with its increase two standard errors nearer to what was foretold.
    """
    modules = pandas.DataFrame([vars(loss) for loss in sensitivity.modules])
    kinds = {kind: modules["module"] == kind for kind in MODULE_KINDS} | {"all": modules["module"] != ""}
    modules["place"] = _places(modules, "increase")
    for estimator in profile.estimators:
        modules[estimator] = [foretell(profile, loss, sensitivity.ratio, estimator) for loss in sensitivity.modules]
        modules[f"place_{estimator}"] = _places(modules, estimator)
    misjudged = [module for kind in MODULE_KINDS for module in _misjudged(modules[kinds[kind]], profile.estimators)]
    return RankAgreement(
        modules,
        {name: {kind: _spearman(modules[rows], name) for kind, rows in kinds.items()} for name in profile.estimators},
        {kind: _reliability(modules[rows]) for kind, rows in kinds.items()},
        tuple(sorted(misjudged, key=lambda module: -abs(module.measured - module.foretold))),
    )


def _places(modules: pandas.DataFrame, column: str) -> pandas.Series:
    return modules.groupby("module")[column].rank(ascending=False, method="first").astype(int)


def _misjudged(modules: pandas.DataFrame, estimators: tuple[str, ...]) -> Iterator[Misjudged]:
    """Those of one kind of module."""
    count = len(modules)
    for index, row in modules.iterrows():
        others = modules["increase"].drop(index)
        best = 1 + int((others > row["increase"] + SURE * row["standard_error"]).sum())
        worst = 1 + int((others > row["increase"] - SURE * row["standard_error"]).sum())
        for estimator in estimators:
            foretold = row[f"place_{estimator}"]
            if max(best - foretold, foretold - worst) > count / 3:
                yield Misjudged(estimator, row["layer"], row["module"], row["place"], foretold, count)


def _spearman(modules: pandas.DataFrame, estimator: str) -> float | None:
    rho = modules[["increase", estimator]].corr(method="spearman").iloc[0, 1]
    return None if pandas.isna(rho) else float(rho)


def _reliability(modules: pandas.DataFrame) -> float | None:
    variance = modules["increase"].var()
    if not variance > 0:
        return None
    return max(0.0, 1 - float((modules["standard_error"] ** 2).mean() / variance))
