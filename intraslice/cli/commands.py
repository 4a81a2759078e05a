"""The commands ratios, evaluate, slice, export and generate. Each returns its JSON object and its text."""

import sys
from dataclasses import asdict
from typing import Any

import torch

from intraslice import records
from intraslice.api import compress_loaded, export_gguf
from intraslice.checkpoints.format import is_checkpoint, require_free, require_new_file
from intraslice.checkpoints.to_gguf import NO_CROSS_MODULE, padding_text, require_deci
from intraslice.cli.run import CommandResult, Run, is_auto, peak_memory, require_writable, searches
from intraslice.core.checks import require_words
from intraslice.core.config import NO_RECOVERY
from intraslice.core.errors import UserError
from intraslice.evaluation.answers import answer_statistics, answers_loss, greedy_answers, tokens_of_prompts
from intraslice.evaluation.generation import Sampling, generate_text
from intraslice.evaluation.perplexity import measure_losses
from intraslice.loading import LoadedModel, require_dense_name
from intraslice.recovery.registry import cost_of
from intraslice.streaming import estimate, memory_is_short, require_streamable, slice_to_folder
from intraslice.untrusted.layer_files import ratios_csv


def ratios(run: Run) -> CommandResult:
    """Pruning ratios of every layer, also as a file."""
    file, recipe = run.arguments.csv, run.recipe
    if file is not None:
        if run.method.slices_residual_stream:
            raise UserError("crossmodule has one width for all layers and no ratios to write; leave --csv out")
        require_writable(file)
    loaded = run.load_dense()
    stats, _ = run.calibrate_for_method(loaded)
    plan = run.plan(loaded, stats)
    result = run.recipe.slice_options(plan) | records.plan_statistics(plan, loaded.model)
    if ratios := result["ratios"]:  # a cross-module plan has none
        result |= records.plan_record(plan)
        if file is not None and run.is_first:
            file.write_text(ratios_csv(ratios), encoding="utf-8")
    text = f"{records.layer_table(plan)}\n{records.summary(plan, recipe.method)}".lstrip()
    return result | {"protocol": recipe.protocol(), "seconds": run.seconds}, text


def evaluate(run: Run) -> CommandResult:
    """Perplexity, dense and sliced, and the KL divergence between the two."""
    a = run.arguments
    if (flag := "answers" if a.answers else "facts" if a.facts else "") and is_checkpoint(run.recipe.model):
        raise UserError(
            f"--{flag} compares with the dense model's answers, and a sliced folder has no dense model; leave it out, "
            "or pass the dense model and the options of the slice"
        )
    loaded = run.load_any()
    windows = run.windows(loaded)
    if loaded.record is not None:
        return _evaluate_checkpoint(run, loaded, windows)
    compressed = compress_loaded(run, loaded)
    model, plan, calibration = compressed.model, compressed.plan, run.recipe.calibration
    with run.timed("evaluate"):
        evaluation = compressed.evaluate(windows)
    result = run.recipe.slice_options(plan) | records.plan_statistics(plan, loaded.model)
    result |= records.evaluation_statistics(evaluation.dense, evaluation.sliced) | {"protocol": run.recipe.protocol()}
    result["parameters"] |= compressed.parameters  # counted on the tensors instead of the plan
    result["removed_fraction"] = compressed.removed_fraction
    result |= {"seconds": run.seconds, "peak_rss_bytes": peak_memory()}
    values, ratio = result["perplexity"], result["perplexity_ratio"]
    line = f"perplexity {values['dense']:.3f} -> {values['sliced']:.3f}, {_with_error(ratio, 3)} times"
    line += f"; KL from the dense model {_with_error(result['divergence'], 4)} nats per token"
    line = f"{records.summary(plan, run.recipe.method)}\n{line}; {_measured_on(run.recipe.protocol())}"
    if plan.recovery != NO_RECOVERY and plan.epochs:
        training = run.training_tokens(loaded)
        cost = cost_of(loaded.model, model, training, plan.recovery, plan.epochs, calibration.tokens)
        assert cost is not None
        result["recovery_passes"] = cost._asdict()
        line += f"\nrecovery: {cost.training:.1f} dense passes of training; "
        line += f"{cost.sampling:.1f} for its samples and states, kept"
    models = {"dense": loaded.model, "sliced": model}
    if a.answers:
        with run.timed("answers"):
            prompts = tokens_of_prompts(loaded.tokenizer, a.answers)
            answers = {
                name: greedy_answers(one, prompts, stage=f"answers {name}", may_end=not a.full_length)
                for name, one in models.items()
            }
            losses = {name: answers_loss(loaded.model, prompts, answer) for name, answer in answers.items()}
        result["answers"] = {}
        for name, answer in answers.items():
            statistics = answer_statistics(answer, answers["dense"])._asdict() | {"dense_model_loss": losses[name]}
            result["answers"][name] = statistics
            line += f"\nanswers, {name}: " + ", ".join(f"{key} {value:.2f}" for key, value in statistics.items())
    if a.facts:
        result["facts"], text = run.ask_facts(loaded, models)
        line += f"\n{text}"
    return result, line


def _with_error(estimate: dict[str, float | None], digits: int) -> str:
    error = estimate["standard_error"]
    return f"{estimate['value']:.{digits}f}" + ("" if error is None else f" +- {error:.{digits}f}")


def _measured_on(protocol: dict[str, Any]) -> str:
    measured = f"{protocol['eval_tokens']:,} tokens of {protocol['eval']}, window {protocol['window']}"
    calibrated = "an unknown text"
    if protocol["calibration_tokens"] is not None:
        calibrated = f"{protocol['calibration_tokens']:,} tokens of {protocol['calibration']}"
        if sampled := protocol.get("sampled_tokens"):
            calibrated += f" and {sampled:,} tokens sampled from the dense model"
        calibrated += f", seed {protocol['seed']}"
    return f"measured on {measured}, in {protocol['dtype']}; calibrated on {calibrated}"


def _evaluate_checkpoint(run: Run, loaded: LoadedModel, windows: torch.Tensor) -> CommandResult:
    """Evaluate a sliced checkpoint. Values of the dense model come from its record, as that model is not loaded."""
    with run.timed("evaluate"):
        value, error = measure_losses(loaded.model, windows, "perplexity sliced").perplexity()
    result = records.checkpoint_record(loaded, run.recipe) | {"perplexity": {"dense": None, "sliced": value}}
    result |= {"perplexity_error": {"dense": None, "sliced": error}, "perplexity_ratio": None, "divergence": None}
    result |= {"seconds": run.seconds, "peak_rss_bytes": peak_memory()}
    return result, f"perplexity {value:.3f}; {_measured_on(result['protocol'])}"


def slice_(run: Run) -> CommandResult:
    """Write the sliced model to a folder, to a GGUF file, or both."""
    out, file = run.arguments.out, run.arguments.gguf
    if out is None and file is None:
        raise UserError("expected --out FOLDER, --gguf FILE, or both, got neither")
    if out is not None:
        require_free(out)
    if file is not None:
        require_new_file(file, ".gguf")
        if run.method.slices_residual_stream:
            raise UserError(NO_CROSS_MODULE)
    require_dense_name(run.recipe.model)
    if run.arguments.stream or _should_stream(run):
        return _slice_streamed(run)
    loaded = run.load_dense()
    if file is not None:
        require_deci(loaded.model, loaded.tokenizer)
    compressed = compress_loaded(run, loaded)
    if not run.is_first:
        return {}, ""
    plan = compressed.plan
    result = run.recipe.slice_options(plan) | records.plan_statistics(plan, loaded.model)
    lines = [records.summary(plan, run.recipe.method)]
    if out is not None:
        with run.timed("save"):
            compressed.save_pretrained(out)
        size = sum(file.stat().st_size for file in out.iterdir())
        result |= {"out": str(out), "bytes": size}
        lines.append(f"wrote {out} ({size / 1e6:.0f} MB)")
    if file is not None:
        result["gguf"], line = _write_gguf(run, compressed.loaded)
        lines.append(line)
    return result | {"seconds": run.seconds}, "\n".join(lines)


def _should_stream(run: Run) -> bool:
    """Whether the slice does not fit into memory, but can be made one layer at a time."""
    try:
        _require_streamable(run)
    except UserError:
        return False
    return run.is_alone and memory_is_short(run.recipe, run.device)


def _require_streamable(run: Run) -> None:
    a = run.arguments
    if a.out is None or any(option is not None for option in (a.gguf, a.device_map, a.slicing, a.size)):
        raise UserError(
            "--stream requires --out FOLDER and does not support --gguf, --device-map, --slicing or --size; leave them "
            "out, and write the GGUF file with `export` afterwards"
        )
    if is_auto(a) and "estimator" in a.explicit:  # where it is the default, the slice has the usual estimator
        raise UserError("cannot slice one layer at a time: --estimator auto measures whole models; name an estimator")
    if searches(a):
        raise UserError(
            "cannot slice one layer at a time: --ratios search measures whole models; on a machine with enough memory "
            "run `ratios --ratios search --csv FILE`, then pass --ratios FILE here"
        )
    require_streamable(run.recipe)


def _slice_streamed(run: Run) -> CommandResult:
    """Write the sliced model to a folder, with one layer in memory at a time."""
    _require_streamable(run)
    run.verify()
    out, expected = run.arguments.out, estimate(run.recipe, run.device)
    print(expected, file=sys.stderr, flush=True)
    with run.timed("slice"):
        plan = slice_to_folder(run.recipe, out, run.device, progress=run.progress)
    size = sum(file.stat().st_size for file in out.iterdir())
    result = run.recipe.slice_options(plan) | records.plan_statistics(plan) | {"out": str(out), "bytes": size}
    result |= {"estimate": asdict(expected), "peak_rss_bytes": peak_memory(), "seconds": run.seconds}
    return result, f"{records.summary(plan, run.recipe.method)}\nwrote {out} ({size / 1e6:.0f} MB)"


def export(run: Run) -> CommandResult:
    """Write a saved model, sliced or dense, for llama.cpp."""
    require_new_file(run.arguments.gguf, ".gguf")
    loaded = run.load_any()
    report, line = _write_gguf(run, loaded)
    return {"model": loaded.name, "gguf": report, "seconds": run.seconds}, line


def _write_gguf(run: Run, loaded: LoadedModel) -> CommandResult:
    """Write a loaded model to the GGUF file of the command line."""
    a = run.arguments
    with run.timed("gguf"):
        report = export_gguf(loaded, a.gguf, a.type)
    size = f"{report.bytes / 1e6:.0f} MB, {padding_text(report.padding_bytes)}"
    line = f"wrote {report.file} ({report.type}, {size})"
    if report.as_f16:
        line += f"; {len(report.as_f16)} tensors are f16, as the length of their rows is not a multiple of 32"
    return asdict(report), line


def generate(run: Run) -> CommandResult:
    """Dense and sliced answers to one prompt."""
    a = run.arguments
    Sampling(a.max_new_tokens, a.temperature, a.seed)
    require_words("--prompt", a.prompt)
    loaded = run.load_any()
    if loaded.record is None:
        compressed = compress_loaded(run, loaded)
        models = {"dense": loaded.model, "sliced": compressed.model}
        result = run.recipe.slice_options(compressed.plan) | {"protocol": run.recipe.protocol()}
    else:
        models, result = {"sliced": loaded.model}, records.checkpoint_record(loaded, run.recipe)
    texts = {}
    for name, model in models.items():
        pieces = generate_text(model, loaded.tokenizer, a.prompt, a.max_new_tokens, a.temperature, a.seed)
        texts[name] = "".join(pieces)
    result |= {"prompt": a.prompt, "text": texts, "seconds": run.seconds}
    return result, "\n\n".join(f"{name}:\n{text}" for name, text in texts.items())
