"""Commands that make models: ratios, evaluate, slice, export, generate. Each returns its JSON object and its text."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch

from intraslice import checkpoints
from intraslice.api import compress_loaded, export_gguf
from intraslice.checkpoints.format import require_new_file
from intraslice.checkpoints.to_gguf import NO_CROSS_MODULE, padding_in_words, require_deci
from intraslice.checkpoints.to_vllm import to_vllm
from intraslice.cli.run import Answer, Run, peak_memory, require_folder
from intraslice.core.errors import UserError
from intraslice.distributed.sharing import speaks
from intraslice.evaluation.generation import generate_text
from intraslice.evaluation.perplexity import measure_losses
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.modeling.counts import kv_bytes_per_token, parameters_of
from intraslice.modeling.linear import NO_FORMAT
from intraslice.planning.crossmodule_plan import CrossModulePlan
from intraslice.reporting import CROSS_MODULE, described, layer_table, measured, plan_record, summary
from intraslice.untrusted.ratio_files import ratios_csv


def ratios(run: Run) -> Answer:
    """What each layer gives, also as a file of ratios."""
    file = run.arguments.csv
    if file is not None:
        require_folder(file)
        if run.recipe.method == "crossmodule":
            raise UserError("crossmodule has a width for all layers and no ratios to write; leave --csv out")
    loaded = run.load_dense()
    stats, _ = run.calibrate_for_method(loaded)
    plan = run.plan(loaded, stats)
    result = run.recipe.asked() | described(plan, loaded.model)
    rows = []
    if not isinstance(plan, CrossModulePlan):
        result |= plan_record(plan)
        if file is not None and speaks():
            file.write_text(
                ratios_csv([(layer.attention_ratio, layer.mlp_ratio) for layer in plan.layers]), encoding="utf-8"
            )
        rows.append(layer_table(plan))
    return result | {"protocol": run.recipe.protocol(), "seconds": run.seconds}, "\n".join([*rows, summary(plan)])


def evaluate(run: Run) -> Answer:
    """Perplexity, dense and sliced, and the KL divergence between the two."""
    loaded = run.load()
    windows = run.windows(loaded)
    if loaded.made is not None:
        return _evaluate_checkpoint(run, loaded, windows)
    compressed = compress_loaded(run, loaded)
    with run.timed("evaluate"):
        evaluation = compressed.evaluate(windows)
    result = run.recipe.asked() | described(compressed.plan, loaded.model)
    result |= measured(evaluation.dense, evaluation.sliced) | {"protocol": run.recipe.protocol()}
    result["parameters"] |= compressed.parameters  # counted on the tensors, not taken from the plan
    result["removed_fraction"] = compressed.removed_fraction
    result |= {"seconds": run.seconds, "peak_rss_bytes": peak_memory()}
    values, ratio = result["perplexity"], result["perplexity_ratio"]
    line = f"perplexity {values['dense']:.3f} -> {values['sliced']:.3f}, {_with_error(ratio, 3)} times"
    line += f"; KL from the dense model {_with_error(result['divergence'], 4)} nats a token"
    return result, f"{summary(compressed.plan)}\n{line} {run.recipe.protocol()}"


def _with_error(estimate: dict[str, float | None], digits: int) -> str:
    error = estimate["standard_error"]
    return f"{estimate['value']:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def _evaluate_checkpoint(run: Run, loaded: LoadedModel, windows: torch.Tensor) -> Answer:
    """A sliced checkpoint alone: what is dense is read off its record, since the dense model is not there."""
    with run.timed("evaluate"):
        value, error = measure_losses(loaded.model, windows, "perplexity sliced").perplexity()
    made = loaded.made
    assert made is not None  # as of every checkpoint
    protocol = run.recipe.protocol() | {
        key: made["protocol"][key] for key in ("calibration", "calibration_tokens", "seed")
    }
    result = made["asked"] | {key: made[key] for key in ("removed_fraction", "parameters", "ratios")}
    result["parameters"] = made["parameters"] | parameters_of(loaded.model, "sliced")
    result["kv_bytes_per_token"] = made["kv_bytes_per_token"] | {"sliced": kv_bytes_per_token(loaded.model)}
    result |= {key: made[key] for key in CROSS_MODULE if key in made}
    result |= {"model": loaded.name, "perplexity": {"dense": None, "sliced": value}, "protocol": protocol}
    result |= {"perplexity_error": {"dense": None, "sliced": error}, "perplexity_ratio": None, "divergence": None}
    result |= {"seconds": run.seconds, "peak_rss_bytes": peak_memory()}
    return result, f"perplexity {value:.3f} {protocol}"


def slice_(run: Run) -> Answer:
    """Write the sliced model to a folder, to a GGUF file, or both."""
    out, file = run.arguments.out, run.arguments.gguf
    _require_places(run)
    loaded = run.load_dense()
    if file is not None:
        require_deci(loaded.model, loaded.tokenizer)
    compressed = compress_loaded(run, loaded)
    if not speaks():
        return {}, ""
    plan = compressed.plan
    result, lines = run.recipe.asked() | described(plan, loaded.model), [summary(plan)]
    if out is not None:
        with run.timed("save"):
            compressed.save_pretrained(out)
        size = sum(file.stat().st_size for file in out.iterdir())
        result |= {"out": str(out), "bytes": size}
        lines.append(f"wrote {out} ({size / 1e6:.0f} MB)")
    if file is not None:
        written, line = _write_gguf(run, compressed.loaded)
        result["gguf"] = written
        lines.append(line)
    return result | {"seconds": run.seconds}, "\n".join(lines)


def _require_places(run: Run) -> None:
    """Raise UserError, before any work, unless the slice can be written where it is wanted."""
    out, file = run.arguments.out, run.arguments.gguf
    if out is None and file is None:
        raise UserError("nowhere to write to; expected --out FOLDER, --gguf FILE, or both")
    if not METHODS[run.recipe.method].can_be_saved:
        raise UserError(f"{NO_FORMAT}; take another --method, or evaluate")
    if out is not None:
        checkpoints.require_free(out)
    if file is not None:
        require_new_file(file, ".gguf")
        if run.recipe.method == "crossmodule":
            raise UserError(NO_CROSS_MODULE)


def export(run: Run) -> Answer:
    """Write a model that a folder holds, sliced or dense, as a GGUF file, a folder for vLLM, or both."""
    file, folder = run.arguments.gguf, run.arguments.vllm
    if file is None and folder is None:
        raise UserError("nothing to write; expected --gguf FILE, --vllm FOLDER, or both")
    if file is not None:
        require_new_file(file, ".gguf")
    if folder is not None:
        checkpoints.require_free(folder)
    loaded = run.load()
    if not speaks():
        return {}, ""
    result: dict[str, Any] = {"model": loaded.name}
    lines = []
    if folder is not None:
        with run.timed("vllm"):
            to_vllm(loaded.model, loaded.tokenizer, folder, loaded.made)
        result["vllm"] = str(folder)
        lines.append(f"wrote {folder}, which vLLM opens with --trust-remote-code")
    if file is not None:
        result["gguf"], line = _write_gguf(run, loaded)
        lines.append(line)
    return result | {"seconds": run.seconds}, "\n".join(lines)


def _write_gguf(run: Run, loaded: LoadedModel) -> Answer:
    """Write a model in memory as the GGUF file that the command line names."""
    a = run.arguments
    with run.timed("gguf"):
        report = export_gguf(loaded, a.gguf, a.type)
    size = f"{report.bytes / 1e6:.0f} MB, {padding_in_words(report.padding_bytes)}"
    line = f"wrote {report.file} ({report.type}, {size})"
    if report.as_f16:
        line += f"; {len(report.as_f16)} tensors are f16, as their rows are no multiple of 32"
    return asdict(report), line


def generate(run: Run) -> Answer:
    """Dense and sliced answers to one prompt."""
    a = run.arguments
    if a.max_new_tokens < 1 or not a.temperature >= 0:
        raise UserError("--max-new-tokens must be at least 1 and --temperature at least 0")
    loaded = run.load()
    models = {"sliced": loaded.model}
    if loaded.made is None:
        models = {"dense": loaded.model, "sliced": compress_loaded(run, loaded).model}
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
