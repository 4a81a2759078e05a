"""IntraSlice, the paper's method: PCA inside the modules, with ratios from an estimator."""

from dataclasses import replace

from transformers import PreTrainedModel

from intraslice.calibration.stats import CalibrationStats
from intraslice.core.config import NO_RECOVERY, SliceConfig
from intraslice.methods.registry import METHODS, SlicingMethod
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing.driver import slice_model


class IntraSlice(SlicingMethod[SlicePlan]):
    """PCA inside each module, with every transform fused into the weights (arXiv 2602.01975)."""

    name = "intraslice"
    label = "IntraSlice"
    explanation = (
        "PCA inside each module, as in the IntraSlice paper (arXiv 2602.01975), with this project's fits and labels, "
        "in the order given by --order"
    )
    uses_estimator = True
    uses_order = True
    supports_offload = True

    def plan(self, model: PreTrainedModel, stats: CalibrationStats, config: SliceConfig) -> SlicePlan:
        configured = self.configured(config)
        return make_plan(stats.profile_for(configured), configured)

    slice = staticmethod(slice_model)


class IntraSlicePlus(IntraSlice):
    """Another name for `intraslice` in the one-shot order with recovery `distill`."""

    name = "intraslice+"
    label = "IntraSlice + distillation"
    explanation = "intraslice with --order one-shot --recover distill"
    uses_order = False
    supports_offload = False

    def configured(self, config: SliceConfig) -> SliceConfig:
        return replace(config, order="one-shot", recovery=self.recovery(config))

    def recovery(self, config: SliceConfig) -> str:
        return "distill" if config.recovery == NO_RECOVERY else config.recovery


METHODS.register(IntraSlice())
METHODS.register(IntraSlicePlus())
