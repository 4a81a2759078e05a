"""What each layer's attention costs as more and more of it goes: KL from the dense model, each module cut alone.

Masks' gradients foretell MLPs well and attention less so, since queries and keys have none. The curves mend that.
"""

from __future__ import annotations

from collections.abc import Generator

from jaxtyping import Int
from torch import Tensor

from intraslice.calibration.stats import CalibrationStats
from intraslice.config import MODULE_KINDS
from intraslice.diagnostics.changes import Change, measure_changes
from intraslice.diagnostics.sensitivity import sensitivity_path, slice_alone
from intraslice.evaluation.perplexity import mean_over_windows
from intraslice.loading import LoadedModel
from intraslice.planning.estimators.measured import corrected
from intraslice.progress import Progress
from intraslice.untrusted.importance_files import Units

RATIOS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)


def measure_attention_curves(
    loaded: LoadedModel, stats: CalibrationStats, tokens: Int[Tensor, "windows window"]
) -> Generator[Progress, None, list[list[float]]]:
    """KL (nats a token) of every layer's attention cut alone, in one shot, at `RATIOS`; yields progress by cut.

    `tokens` are best some of the calibration's: the curves are to choose by, and held-out text is to judge by. What is
    done is kept (see `measure_changes`). Costs about half a forward a cut.
    """
    model = loaded.model
    cuts = [(layer, ratio) for layer in range(len(model.model.layers)) for ratio in RATIOS]
    changes = [
        Change(layer, lambda layer=layer, ratio=ratio: slice_alone(model, stats, layer, "attention", ratio))
        for layer, ratio in cuts
    ]
    path = sensitivity_path(loaded, stats, tokens, "curves", RATIOS)
    readings = yield from measure_changes(model, model, changes, tokens, path, "curves")
    found = [mean_over_windows(reading.divergences).value for reading in readings.changed]
    return [found[start : start + len(RATIOS)] for start in range(0, len(found), len(RATIOS))]


def corrected_importances(stats: CalibrationStats, curves: list[list[float]], estimator: str) -> list[Units]:
    """An estimator's importances with attention's corrected by its curves, layer by layer. Pure."""
    attention, mlp = (stats.profile.importances(estimator, module) for module in MODULE_KINDS)
    attention = corrected(attention, RATIOS, curves)
    return [{"attention": one.tolist(), "mlp": other.tolist()} for one, other in zip(attention, mlp, strict=True)]
