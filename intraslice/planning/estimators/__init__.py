"""Ratio estimators, one file each: the expected increase of the loss when each unit of a layer is removed (paper §4).

To add one, write a file here that registers an `Estimator`, and name it below; or register it from outside.
"""

from intraslice.planning.estimators import pca, output_error, fisher, uniform  # noqa: F401, I001  in the order they are listed
from intraslice.planning.estimators.estimator import Estimator, Importances, LayerCalibration
from intraslice.core.registry import ESTIMATORS

__all__ = ["ESTIMATORS", "Estimator", "Importances", "LayerCalibration"]
