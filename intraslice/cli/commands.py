"""The commands that make models: ratios, evaluate, slice, generate. Each returns its JSON object and its text."""

from __future__ import annotations

from typing import Any

import torch

from intraslice import checkpoints
from intraslice.cli.run import Run, peak_memory, show
from intraslice.distributed.sharing import speaks
from intraslice.errors import UserError
from intraslice.evaluation.generation import generate_text
from intraslice.evaluation.perplexity import measure_losses
from intraslice.loading import LoadedModel
from intraslice.modeling.counts import kv_bytes_per_token, parameters_of
from intraslice.planning.crossmodule_plan import CrossModulePlan
from intraslice.progress import finish
from intraslice.reporting import CROSS_MODULE, described, measured, plan_record, record, summary

Answer = tuple[dict[str, Any], str]


def ratios(run: Run) -> Answer:
    """What each layer gives."""
    loaded = run.load_dense()
    stats, _ = run.calibrate_for_method(loaded)
    plan = run.plan(loaded, stats)
    result = run.recipe.asked() | described(plan, loaded.model)
    rows = []
    if not isinstance(plan, CrossModulePlan):
        result |= plan_record(plan)
        rows.append("layer  attention    MLP   heads  dim  neurons")
        for index, layer in enumerate(plan.layers):
            sizes = f"{len(layer.heads):>7}{layer.dim:>5}{layer.neurons:>9}"
            rows.append(f"{index:>5}{layer.attention_ratio:>11.3f}{layer.mlp_ratio:>7.3f}{sizes}")
    return result | {"protocol": run.recipe.protocol(), "seconds": run.seconds}, "\n".join([*rows, summary(plan)])


def evaluate(run: Run) -> Answer:
    """Perplexity, dense and sliced."""
    loaded = run.load()
    windows = run.windows(loaded)
    if loaded.made is not None:
        return _evaluate_checkpoint(run, loaded, windows)
    stats, tokens = run.calibrate_for_method(loaded)
    model, plan = run.slice(loaded, stats, tokens)
    with run.timed("evaluate"):
        dense, sliced = (
            finish(measure_losses(which, windows, f"perplexity {name}"), show)
            for name, which in (("dense", loaded.model), ("sliced", model))
        )
    result = run.recipe.asked() | described(plan, loaded.model) | measured(dense, sliced)
    result["protocol"] = run.recipe.protocol()
    result["parameters"] |= parameters_of(model, "sliced")  # counted on the tensors, not taken from the plan
    result["removed_fraction"] = 1 - result["parameters"]["sliced_decoder"] / result["parameters"]["dense_decoder"]
    result |= {"seconds": run.seconds, "peak_rss_bytes": peak_memory()}
    values, ratio = result["perplexity"], result["perplexity_ratio"]
    line = f"perplexity {values['dense']:.3f} -> {values['sliced']:.3f}, {ratio['value']:.3f} times"
    error = "" if ratio["standard_error"] is None else f" +- {ratio['standard_error']:.3f}"
    return result, f"{summary(plan)}\n{line}{error} {run.recipe.protocol()}"


def _evaluate_checkpoint(run: Run, loaded: LoadedModel, windows: torch.Tensor) -> Answer:
    """A sliced checkpoint alone: what is dense is read off its record, since the dense model is not there."""
    with run.timed("evaluate"):
        value, error = finish(measure_losses(loaded.model, windows, "perplexity sliced"), show).perplexity()
    made = loaded.made
    protocol = run.recipe.protocol() | {
        key: made["protocol"][key] for key in ("calibration", "calibration_tokens", "seed")
    }
    result = made["asked"] | {key: made[key] for key in ("removed_fraction", "parameters", "ratios")}
    result["parameters"] = made["parameters"] | parameters_of(loaded.model, "sliced")
    result["kv_bytes_per_token"] = made["kv_bytes_per_token"] | {"sliced": kv_bytes_per_token(loaded.model)}
    result |= {key: made[key] for key in CROSS_MODULE if key in made}
    result |= {"model": loaded.name, "perplexity": {"dense": None, "sliced": value}, "protocol": protocol}
    result |= {"perplexity_error": {"dense": None, "sliced": error}, "perplexity_ratio": None}
    result |= {"seconds": run.seconds, "peak_rss_bytes": peak_memory()}
    return result, f"perplexity {value:.3f} {protocol}"


def slice_(run: Run) -> Answer:
    """Write the sliced model to a folder."""
    out = run.arguments.out
    checkpoints.require_free(out)
    loaded = run.load_dense()
    stats, tokens = run.calibrate_for_method(loaded)
    model, plan = run.slice(loaded, stats, tokens)
    if not speaks():
        return {}, ""
    with run.timed("save"):
        checkpoints.save(model, loaded.tokenizer, out, record(run.recipe, loaded, plan))
    size = sum(file.stat().st_size for file in out.iterdir())
    result = (
        run.recipe.asked() | described(plan, loaded.model) | {"out": str(out), "bytes": size, "seconds": run.seconds}
    )
    return result, f"{summary(plan)}\nwrote {out} ({size / 1e6:.0f} MB)"


def generate(run: Run) -> Answer:
    """Dense and sliced answers to one prompt."""
    a = run.arguments
    if a.max_new_tokens < 1 or not a.temperature >= 0:
        raise UserError("wanted --max-new-tokens of at least 1 and --temperature of at least 0")
    loaded = run.load()
    models = {"sliced": loaded.model}
    if loaded.made is None:
        models = {"dense": loaded.model, "sliced": run.slice(loaded, *run.calibrate_for_method(loaded))[0]}
    texts = {}
    for name, model in models.items():
        pieces = generate_text(model, loaded.tokenizer, a.prompt, a.max_new_tokens, a.temperature, a.seed)
        texts[name] = "".join(pieces)
    result = run.recipe.asked() | {
        "prompt": a.prompt,
        "text": texts,
        "protocol": run.recipe.protocol(),
        "seconds": run.seconds,
    }
    return result, "\n\n".join(f"{name}:\n{text}" for name, text in texts.items())
