"""Was the ratio estimator right? What importances foretell of each module, against what slicing it alone did. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pandas
from jaxtyping import Float
from torch import Tensor

from intraslice.diagnostics.sensitivity import ModuleKind, ModuleLoss, Sensitivity
from intraslice.planning.importance import Profile

Judged = Literal["pca", "fisher"]
JUDGED: tuple[Judged, ...] = ("pca", "fisher")  # uniform foretells nothing
SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Misjudged:
    """A module whose place among its kind is far from the foretold one, noise allowed for. Place 1 hurts most."""

    estimator: Judged
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

    `reliability` is the share of the measured increases' variance that is no noise of the evaluation tokens: about the
    square of the rho that a perfect estimator would reach. A number is None where it does not exist, as the rho of a
    single layer. `misjudged` comes worst first.
    """

    modules: pandas.DataFrame
    rho: dict[Judged, dict[str, float | None]]
    reliability: dict[str, float | None]
    misjudged: tuple[Misjudged, ...]


def fallen_importance(importance: Float[Tensor, " units"], ratio: float) -> float:
    """The sum over the `ratio` least important units, the last one in part: the loss that an estimator expects."""
    ordered = importance.double().sort().values
    cut = ratio * len(ordered)
    whole = int(cut)
    rest = (cut - whole) * ordered[whole].item() if whole < len(ordered) else 0.0
    return ordered[:whole].sum().item() + rest


def foretell(profile: Profile, loss: ModuleLoss, ratio: float, estimator: Judged) -> float:
    """What an estimator's importances say of slicing one module; in its own unit, so only the order has a meaning."""
    layer = profile.layers[loss.layer]
    if loss.module == "mlp":
        return fallen_importance(layer.neurons, ratio)
    return fallen_importance(layer.pca_channels if estimator == "pca" else layer.fisher_heads, ratio)


def judge(sensitivity: Sensitivity, profile: Profile) -> RankAgreement:
    """Compare measured increases of the loss with what each estimator foretells, by rank.

    Attention and MLPs are ranked apart, as the estimator does. A module counts as misjudged when its rank would be off
    by more than a third of the layers even with its increase two standard errors nearer to what was foretold.
    """
    modules = pandas.DataFrame([vars(loss) for loss in sensitivity.modules])
    kinds = {kind: modules["module"] == kind for kind in ("attention", "mlp")} | {"all": modules["module"] != ""}
    modules["place"] = _places(modules, "increase")
    for estimator in JUDGED:
        modules[estimator] = [foretell(profile, loss, sensitivity.ratio, estimator) for loss in sensitivity.modules]
        modules[f"place_{estimator}"] = _places(modules, estimator)
    misjudged = [one for kind in ("attention", "mlp") for one in _misjudged(modules[kinds[kind]])]
    return RankAgreement(
        modules,
        {name: {kind: _spearman(modules[own], name) for kind, own in kinds.items()} for name in JUDGED},
        {kind: _reliability(modules[own]) for kind, own in kinds.items()},
        tuple(sorted(misjudged, key=lambda one: -abs(one.measured - one.foretold))),
    )


def _places(modules: pandas.DataFrame, column: str) -> pandas.Series:
    return modules.groupby("module")[column].rank(ascending=False, method="first").astype(int)


def _misjudged(modules: pandas.DataFrame) -> Iterator[Misjudged]:
    """Those of one kind of module."""
    count = len(modules)
    for index, row in modules.iterrows():
        others = modules["increase"].drop(index)
        best = 1 + int((others > row["increase"] + SURE * row["standard_error"]).sum())
        worst = 1 + int((others > row["increase"] - SURE * row["standard_error"]).sum())
        for estimator in JUDGED:
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
