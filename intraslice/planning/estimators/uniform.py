"""Uniform ratios: every module of every layer gives the same share of its units."""

from __future__ import annotations

from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators.estimator import Estimator

ESTIMATORS.register(Estimator("uniform", "Uniform", "all layers give alike", None))
