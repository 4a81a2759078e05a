"""What a run comes to, as JSON and as words: one form for the command line, the page and saved folders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import pandas
from transformers import PreTrainedModel

import intraslice
from intraslice.core.config import NO_RECOVERY, CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.evaluation.perplexity import Losses
from intraslice.loading import LoadedModel
from intraslice.methods.registry import Plan
from intraslice.modeling.counts import kv_bytes_per_token
from intraslice.planning.budget import LowRankPlan
from intraslice.planning.crossmodule_plan import CrossModulePlan

CROSS_MODULE = ("slicing", "width", "untied_total", "note")  # what only a cross-module plan has
COLOURS = {"attention": "#4c78a8", "MLP": "#f58518"}  # of bars


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
        } | ({} if config.recovery == NO_RECOVERY else {"recovery": config.recovery})

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
        absent = ("recovery", "epochs") if plan.recovery == NO_RECOVERY else ()
        return {key: value for key, value in asdict(plan).items() if key not in absent}
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


def layer_table(plan: Plan) -> str:
    """Ratios and sizes, a line for each layer; empty for a cross-module plan, whose layers are all alike."""
    if isinstance(plan, CrossModulePlan):
        return ""
    rows = ["layer  attention    MLP   heads  dim  neurons"]
    for index, layer in enumerate(plan.layers):
        sizes = f"{len(layer.heads):>7}{layer.dim:>5}{layer.neurons:>9}"
        rows.append(f"{index:>5}{layer.attention_ratio:>11.3f}{layer.mlp_ratio:>7.3f}{sizes}")
    return "\n".join(rows)


def ratio_chart(plan: Plan) -> str:
    """The ratios of every layer as two bars in an SVG; empty for a cross-module plan."""
    if isinstance(plan, CrossModulePlan):
        return ""
    width, height = 16 * len(plan.layers), 100
    marks = [
        f'<line x1="0" x2="{width}" y1="{height - y}" y2="{height - y}" stroke="currentColor" opacity="0.2"/>'
        f'<text x="-4" y="{height - y + 3}" text-anchor="end">{y} %</text>'
        for y in (0, 50, 100)
    ]
    for index, layer in enumerate(plan.layers):
        ratios = {"attention": layer.attention_ratio, "MLP": layer.mlp_ratio}
        for place, (module, ratio) in enumerate(ratios.items()):
            x, bar = 16 * index + 1 + 7 * place, height * ratio
            marks.append(
                f'<rect x="{x}" y="{height - bar:.1f}" width="7" height="{bar:.1f}" fill="{COLOURS[module]}">'
                f"<title>layer {index}, {module}: {ratio:.1%}</title></rect>"
            )
        if index % 5 == 0:
            marks.append(f'<text x="{16 * index + 8}" y="{height + 12}" text-anchor="middle">{index}</text>')
    for place, (module, colour) in enumerate(COLOURS.items()):
        marks.append(f'<rect x="{80 * place}" y="-16" width="9" height="9" fill="{colour}"/>')
        marks.append(f'<text x="{80 * place + 13}" y="-8">{module}</text>')
    return (
        f'<svg viewBox="-40 -20 {width + 44} {height + 50}" style="max-width: {2 * width}px; font: 9px sans-serif" '
        f'fill="currentColor" role="img" aria-label="Pruning ratio per layer">{"".join(marks)}'
        f'<text x="{width / 2}" y="{height + 26}" text-anchor="middle">layer</text></svg>'
    )
