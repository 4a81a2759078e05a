"""What a run comes to, as JSON and as words: one form for the command line, the page and saved folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas
from transformers import PreTrainedModel

import intraslice
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.evaluation.perplexity import Losses
from intraslice.loading import LoadedModel
from intraslice.methods.registry import Plan
from intraslice.modeling.counts import kv_bytes_per_token
from intraslice.planning.budget import LowRankPlan
from intraslice.planning.crossmodule_plan import CrossModulePlan

CROSS_MODULE = ("slicing", "width", "untied_total", "note")  # what only a cross-module plan has


@dataclass(frozen=True)
class Recipe:
    """All that makes a sliced model and its numbers again."""

    model: str
    slicing: SliceConfig
    calibration: CalibrationConfig
    evaluation: EvaluationConfig
    method: str = "intraslice"
    dtype: str = "float32"

    def asked(self) -> dict[str, Any]:
        """What was asked of the slice, as JSON."""
        config = self.slicing
        return {
            "model": self.model,
            "method": self.method,
            "estimator": config.estimator,
            "head_fraction": config.head_fraction,
            "gradient_group": config.gradient_group,
            "bias": config.bias,
            "cap": config.cap,
            "order": config.order,
            "iterative": config.iterative,
            "epochs": config.epochs,
            "shapes": config.shapes,
            "locked": [list(lock) for lock in config.locked],
            "sparsity_asked": config.sparsity,
        }

    def protocol(self) -> dict[str, Any]:
        """What perplexities and statistics are taken on, as JSON: without it the numbers mean nothing."""
        return {
            "eval": self.evaluation.text,
            "eval_tokens": self.evaluation.tokens // self.evaluation.window * self.evaluation.window,
            "window": self.evaluation.window,
            "calibration": self.calibration.text,
            "calibration_tokens": self.calibration.sequences * self.calibration.length,
            "seed": self.calibration.seed,
            "targets": self.calibration.targets,
            "dtype": self.dtype,
        }


def record(recipe: Recipe, loaded: LoadedModel, plan: Plan) -> dict[str, Any]:
    """How a sliced model is made, as its folder says it."""
    return {
        "version": intraslice.__version__,
        "source": loaded.source,
        "asked": recipe.asked(),
        "protocol": recipe.protocol(),
        "plan": plan_record(plan),
        **described(plan, loaded.model),
    }


def plan_record(plan: Plan) -> dict[str, Any]:
    """What a plan keeps of every layer, and why, as JSON."""
    if isinstance(plan, CrossModulePlan):
        return asdict(plan)
    ranks = {"ranks": plan.ranks} if isinstance(plan, LowRankPlan) else {}
    return {"layers": [asdict(layer) for layer in plan.layers], "reasons": asdict(plan.reasons)} | ranks


def described(plan: Plan, dense: PreTrainedModel) -> dict[str, Any]:
    """What a plan comes to, as JSON. A cross-module plan has no ratios, but a width."""
    common = {"removed_fraction": plan.removed_fraction, "parameters": asdict(plan.parameters)}
    if isinstance(plan, CrossModulePlan):
        cache = kv_bytes_per_token(dense)  # keys and values are left alone
        special = {name: getattr(plan, name) for name in CROSS_MODULE}
        return common | {"kv_bytes_per_token": {"dense": cache, "sliced": cache}, "ratios": None, **special}
    return common | {
        "kv_bytes_per_token": dict(zip(("dense", "sliced"), plan.kv_bytes_per_token, strict=True)),
        "ratios": [[layer.attention_ratio, layer.mlp_ratio] for layer in plan.layers],
    }


def measured(dense: Losses, sliced: Losses) -> dict[str, Any]:
    """Perplexities, their errors, the ratio of the two with its paired error, and KL to the dense model, as JSON."""
    estimates = {"dense": dense.perplexity(), "sliced": sliced.perplexity()}
    return {
        "perplexity": {name: estimate.value for name, estimate in estimates.items()},
        "perplexity_error": {name: estimate.standard_error for name, estimate in estimates.items()},
        "perplexity_ratio": sliced.ratio(dense)._asdict(),
        "divergence": None if (found := sliced.divergence()) is None else found._asdict(),
    }


def summary(plan: Plan) -> str:
    """What a plan comes to, in a line or two for people."""
    counts, asked = plan.parameters, plan.asked if isinstance(plan, CrossModulePlan) else plan.config.sparsity
    line = (
        f"removed {plan.removed_fraction:.4f} of the decoder layers' parameters "
        f"(asked {'for a width' if asked is None else f'{asked:g}'}): "
        f"{counts.dense_total:,} -> {counts.sliced_total:,} in all"
    )
    if isinstance(plan, CrossModulePlan):
        return line + f"; width {plan.width} of {plan.hidden} (slicing {plan.slicing:.1%}). {plan.note}".rstrip()
    return f"{line}; bias {plan.reasons.bias:.2f}"


def records(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    """A frame's rows as JSON, in which a missing number is null."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")
