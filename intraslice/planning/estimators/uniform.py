"""Uniform ratios: every module of every layer gives the same share of its units."""

from __future__ import annotations

from intraslice.planning.estimators.estimator import Estimator
from intraslice.registry import ESTIMATORS

ESTIMATORS.register(Estimator("uniform", "Uniform", "all layers give alike", None))
