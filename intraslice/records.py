"""Results of a run as JSON and as text, in one format for the command line, the page and saved folders."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import intraslice
from intraslice.core.config import NO_RECOVERY, CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.core.fit_config import INTRASLICE_FIT
from intraslice.evaluation.perplexity import Losses
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS, Plan
from intraslice.modeling.counts import kv_bytes_per_token, parameters_of
from intraslice.modeling.hidden_states import Windows
from intraslice.planning.baseline_plans import CrossModulePlan
from intraslice.token_windows import display_name, evaluation_tokens, text_digest

CROSS_MODULE = ("slicing", "width", "untied_total", "note")  # fields that only a cross-module plan has
OF_CALIBRATION = ("calibration", "calibration_tokens", "seed", "targets", "sampled_tokens")  # of a protocol
COLOURS = {"attention": "#4c78a8", "MLP": "#f58518"}  # bar colours


@dataclass(frozen=True)
class Recipe:
    """All settings that are needed to reproduce a sliced model and its evaluation."""

    model: str
    slicing: SliceConfig
    calibration: CalibrationConfig
    evaluation: EvaluationConfig
    method: str = "intraslice"
    dtype: str = "float32"

    def slice_options(self, plan: Plan | None = None) -> dict[str, Any]:
        """The settings of the slice, as JSON. The plan says whether a width was asked for instead of a sparsity."""
        config = self.slicing
        sparsity = plan.requested if isinstance(plan, CrossModulePlan) else config.sparsity
        apart = ("sparsity", "locked", "recovery", "fit")
        names = [field.name for field in fields(config) if field.name not in apart]
        options = {"model": self.model, "method": self.method} | {name: getattr(config, name) for name in names}
        options |= {"locked": [list(lock) for lock in config.locked], "sparsity_asked": sparsity}
        options |= {} if config.recovery == NO_RECOVERY else {"recovery": config.recovery}
        return options | ({} if config.fit == INTRASLICE_FIT else {"fit": asdict(config.fit)})

    def windows(self, tokenizer: PreTrainedTokenizerBase) -> Windows:
        """Tokens of the evaluation text, disjoint from the calibration tokens."""
        return evaluation_tokens(tokenizer, self.evaluation, self.calibration.text)

    def protocol(self) -> dict[str, Any]:
        """Texts, windows and precision of the evaluation and the calibration, as JSON."""
        return {
            "eval": display_name(self.evaluation.text),
            "eval_tokens": self.evaluation.tokens // self.evaluation.window * self.evaluation.window,
            "window": self.evaluation.window,
            "calibration": display_name(self.calibration.text),
            "calibration_tokens": self.calibration.sequences * self.calibration.length,
            "seed": self.calibration.seed,
            "targets": self.calibration.targets,
            "dtype": self.dtype,
        } | ({"sampled_tokens": samples * self.calibration.length} if (samples := self.calibration.samples) else {})


def slice_record(recipe: Recipe, loaded: LoadedModel, plan: Plan) -> dict[str, Any]:
    """The record of how a sliced model is made, as saved in its folder. It knows users' texts by name and digest."""
    digests = {"eval": text_digest(recipe.evaluation.text), "calibration": text_digest(recipe.calibration.text)}
    return {
        "version": intraslice.__version__,
        "source": loaded.source,
        "requested": recipe.slice_options(plan),
        "protocol": recipe.protocol() | {f"{name}_digest": digest for name, digest in digests.items() if digest},
        "plan": plan_record(plan),
        **plan_statistics(plan, loaded.model),
    }


def plan_record(plan: Plan) -> dict[str, Any]:
    """The kept units of every layer and the reasons for the ratios, as JSON."""
    if isinstance(plan, CrossModulePlan):
        absent = ("recovery", "epochs") if plan.recovery == NO_RECOVERY else ()
        values = {key: value for key, value in asdict(plan).items() if key not in absent}
        return values | {"asked": plan.requested}  # as HTTP clients know it
    return {"layers": [asdict(layer) for layer in plan.layers], "reasons": asdict(plan.reasons)}


def plan_statistics(plan: Plan, dense: PreTrainedModel | None = None) -> dict[str, Any]:
    """Parameters, cache size and ratios of a plan, as JSON. A cross-module plan has a width and needs `dense`."""
    result = {"removed_fraction": plan.removed_fraction, "parameters": asdict(plan.parameters), "ratios": None}
    if isinstance(plan, CrossModulePlan):
        assert dense is not None
        caches = (kv_bytes_per_token(dense),) * 2  # keys and values are not sliced
        result |= {name: getattr(plan, name) for name in CROSS_MODULE}
    else:
        caches = plan.kv_bytes_per_token
        result["ratios"] = [[layer.attention_ratio, layer.mlp_ratio] for layer in plan.layers]
    return result | {"kv_bytes_per_token": dict(zip(("dense", "sliced"), caches, strict=True))}


def checkpoint_record(loaded: LoadedModel, recipe: Recipe) -> dict[str, Any]:
    """The record of a sliced checkpoint with its sizes and the protocol of an evaluation by `recipe`, as JSON.

    Values that the checkpoint's record lacks are None: `save` writes whatever its caller knows.
    """
    record = loaded.record or {}
    recorded = record.get("protocol", {})
    fixed = {key: recorded.get(key) for key in OF_CALIBRATION if key in recorded or key != "sampled_tokens"}
    protocol = {key: value for key, value in recipe.protocol().items() if key not in OF_CALIBRATION} | fixed
    result = dict.fromkeys(recipe.slice_options()) | record.get("requested", {})
    result |= {key: record.get(key) for key in ("removed_fraction", "ratios")}
    counts = record.get("parameters", {"dense_total": None, "dense_decoder": None})
    result["parameters"] = counts | parameters_of(loaded.model, "sliced")
    cache = {"dense": None, "sliced": kv_bytes_per_token(loaded.model)}  # in the precision of the slice where recorded
    result["kv_bytes_per_token"] = record.get("kv_bytes_per_token", cache)
    result |= {key: record[key] for key in CROSS_MODULE if key in record}
    return result | {"model": loaded.name, "protocol": protocol}


def evaluation_statistics(dense: Losses, sliced: Losses) -> dict[str, Any]:
    """Perplexities, their errors, their ratio with its paired error, and KL from the dense model, as JSON."""
    estimates = {"dense": dense.perplexity(), "sliced": sliced.perplexity()}
    return {
        "perplexity": {name: estimate.value for name, estimate in estimates.items()},
        "perplexity_error": {name: estimate.standard_error for name, estimate in estimates.items()},
        "perplexity_ratio": sliced.ratio(dense)._asdict(),
        "divergence": None if (divergence := sliced.divergence()) is None else divergence._asdict(),
    }


def summary(plan: Plan, method: str) -> str:
    """A one-line summary of a plan by `method`."""
    counts, target = plan.parameters, plan.requested if isinstance(plan, CrossModulePlan) else plan.config.sparsity
    line = (
        f"removed {plan.removed_fraction:.4f} of the decoder layers' parameters "
        f"({'by --slicing' if target is None else f'target {target:g}'}): "
        f"{counts.dense_total:,} -> {counts.sliced_total:,} in total"
    )
    if isinstance(plan, CrossModulePlan):
        return line + f"; width {plan.width} of {plan.hidden} (slicing {plan.slicing:.1%}). {plan.note}".rstrip()
    return line if "bias" in METHODS[method].unused else f"{line}; bias {plan.reasons.bias:.2f}"


def records(frame: pandas.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as JSON, with null for missing numbers."""
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def layer_table(plan: Plan) -> str:
    """Ratios and sizes, one line per layer; empty for a cross-module plan, whose layers all have the same width."""
    if isinstance(plan, CrossModulePlan):
        return ""
    rows = ["layer  attention    MLP   heads  dim  neurons"]
    for index, layer in enumerate(plan.layers):
        sizes = f"{len(layer.heads):>7}{layer.dim:>5}{layer.neurons:>9}"
        rows.append(f"{index:>5}{layer.attention_ratio:>11.3f}{layer.mlp_ratio:>7.3f}{sizes}")
    return "\n".join(rows)


def ratio_chart(plan: Plan) -> str:
    """An HTML table with a bar for the ratios of every layer; empty for a cross-module plan."""
    if isinstance(plan, CrossModulePlan):
        return ""
    ratios = [(layer.attention_ratio, layer.mlp_ratio) for layer in plan.layers]
    table = pandas.DataFrame(ratios, columns=[*COLOURS]).rename_axis("layer").style.format("{:.1%}")
    for module, colour in COLOURS.items():
        table.bar(subset=[module], color=colour, vmin=0, vmax=1)
    return table.to_html()
