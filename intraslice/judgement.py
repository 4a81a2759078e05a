"""Was the ratio estimator right? What importances foretell of each module, against what slicing it alone did. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas
from jaxtyping import Float
from torch import Tensor

from intraslice.ratios import Profile
from intraslice.sensitivity import Module, ModuleLoss, Sensitivity

Judged = Literal["pca", "fisher"]
JUDGED: tuple[Judged, ...] = ("pca", "fisher")  # uniform foretells nothing


@dataclass(frozen=True)
class Misjudged:
    """A module whose place among its kind is far from the foretold one. Place 1 hurts most."""

    estimator: Judged
    layer: int
    module: Module
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
class Judgement:
    """`modules` has a row a module; `rho[estimator]` Spearman's rho among "attention", "mlp" and "all" modules.

    A rho is None where it does not exist, as for a single layer. `misjudged` comes worst first.
    """

    modules: pandas.DataFrame
    rho: dict[Judged, dict[str, float | None]]
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


def judge(sensitivity: Sensitivity, profile: Profile) -> Judgement:
    """Compare measured increases of the loss with what each estimator foretells, by rank.

    Attention and MLPs are ranked apart, as the estimator does. A module counts as misjudged when its rank is off by
    more than a third of the layers.
    """
    modules = pandas.DataFrame([vars(loss) for loss in sensitivity.modules])
    rho: dict[Judged, dict[str, float | None]] = {}
    misjudged = []
    by_module = modules.groupby("module")
    modules["place"] = by_module["increase"].rank(ascending=False, method="first").astype(int)
    for estimator in JUDGED:
        modules[estimator] = [foretell(profile, loss, sensitivity.ratio, estimator) for loss in sensitivity.modules]
        modules[f"place_{estimator}"] = by_module[estimator].rank(ascending=False, method="first").astype(int)
        rho[estimator] = {
            "attention": _spearman(modules[modules["module"] == "attention"], estimator),
            "mlp": _spearman(modules[modules["module"] == "mlp"], estimator),
            "all": _spearman(modules, estimator),
        }
        count = len(modules) // 2
        for row in modules.itertuples():
            foretold = getattr(row, f"place_{estimator}")
            if abs(row.place - foretold) > count / 3:
                misjudged.append(Misjudged(estimator, row.layer, row.module, row.place, foretold, count))
    misjudged.sort(key=lambda one: -abs(one.measured - one.foretold))
    return Judgement(modules, rho, tuple(misjudged))


def _spearman(modules: pandas.DataFrame, estimator: str) -> float | None:
    rho = modules[["increase", estimator]].corr(method="spearman").iloc[0, 1]
    return None if pandas.isna(rho) else float(rho)
