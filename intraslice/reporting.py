"""Plans and frames as JSON and as words: one form for the command line and the page."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pandas
from transformers import PreTrainedModel

from intraslice.methods.crossmodule import CrossModulePlan
from intraslice.methods.registry import Plan
from intraslice.modeling.counts import kv_bytes_per_token

CROSS_MODULE = ("slicing", "width", "untied_total", "note")  # what only a cross-module plan has


def described(plan: Plan, dense: PreTrainedModel) -> dict[str, Any]:
    """What a plan comes to, as JSON. A cross-module plan has no ratios, but a width."""
    common = {"removed_fraction": plan.removed_fraction, "parameters": asdict(plan.parameters)}
    if isinstance(plan, CrossModulePlan):
        cache = kv_bytes_per_token(dense)  # keys and values are left alone
        own = {name: getattr(plan, name) for name in CROSS_MODULE}
        return common | {"kv_bytes_per_token": {"dense": cache, "sliced": cache}, "ratios": None, **own}
    return common | {
        "kv_bytes_per_token": dict(zip(("dense", "sliced"), plan.kv_bytes_per_token, strict=True)),
        "ratios": [[layer.attention_ratio, layer.mlp_ratio] for layer in plan.layers],
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


def recorded(plan: Plan) -> dict[str, Any]:
    if isinstance(plan, CrossModulePlan):
        return asdict(plan)
    return {"layers": [asdict(layer) for layer in plan.layers], "reasons": asdict(plan.reasons)}
