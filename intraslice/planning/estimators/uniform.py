"""Uniform ratios: the same fraction of every module is removed."""

from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators.estimator import Estimator

ESTIMATORS.register(Estimator("uniform", "Uniform", "the same ratio for all layers", None))
