"""IntraSlice, the paper's method: PCA inside the modules, by ratios that an estimator gives."""

from __future__ import annotations

from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import SliceConfig
from intraslice.methods.registry import METHODS, Method
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing.driver import slice_model


def plan_intraslice(model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> SlicePlan:
    """The plan of a calibration, with the units of `config`. Raises UserError for a sparsity out of reach."""
    return make_plan(stats.profile_for(config), config)


METHODS.register(
    Method(
        "intraslice",
        "IntraSlice",
        "the paper's: PCA inside each module, in the order that --order names",
        plan_intraslice,
        slice_model,
        uses_estimator=True,
        uses_order=True,
        layer_by_layer=True,
    )
)
