"""The command line: `python -m intraslice ratios | evaluate | slice | generate`. Results go to stdout."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch

try:
    import resource
except ImportError:  # Windows has no such count
    resource = None

import intraslice
from intraslice import checkpoints, corpora
from intraslice.calibration import CalibrationStats, calibrate
from intraslice.config import (
    CalibrationConfig,
    Estimator,
    EvaluationConfig,
    Order,
    Progress,
    SliceConfig,
    UserError,
    finish,
)
from intraslice.evaluation import generate_text, kv_bytes_per_token, parameters_of, perplexity
from intraslice.linalg import NumericalError
from intraslice.models import DEFAULT, LoadedModel, load_model
from intraslice.ratios import SlicePlan, make_plan
from intraslice.slicing import slice_model


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # one line, where argparse would print its usage too
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    calibration, slicing, evaluation = CalibrationConfig(), SliceConfig(), EvaluationConfig()
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--model", default=DEFAULT, metavar="ID|FOLDER|default", help="weights to load")
    add("--dtype", default="float32", choices=("float32", "bfloat16"))
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, metavar="N", help="CPU threads")
    add("--json", action="store_true", help="one JSON object on stdout and nothing else")
    add("--sparsity", type=float, default=slicing.sparsity, help="fraction of decoder-layer parameters to remove")
    add("--estimator", default=slicing.estimator, choices=get_args(Estimator), help="how ratios are estimated")
    add("--bias", type=float, default=slicing.bias, help="above 1 cuts MLPs harder, below 1 attention")
    add("--cap", type=float, default=slicing.cap, help="upper bound of every ratio")
    add("--order", default=slicing.order, choices=get_args(Order))
    add("--method", default="intraslice", choices=("intraslice",))
    add("--calibration", default=calibration.text, metavar="NAME|FILE", help="calibration text")
    add("--sequences", type=int, default=calibration.sequences)
    add("--length", type=int, default=calibration.length, help="tokens a sequence, and a perplexity window")
    add("--seed", type=int, default=calibration.seed)
    add("--eval", default=evaluation.text, metavar="NAME|FILE", help="evaluation text")
    add("--eval-tokens", type=int, default=evaluation.tokens)

    parser = _Parser(prog="python -m intraslice", description=intraslice.__doc__)
    parser.add_argument("--version", action="version", version=intraslice.__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    commands.add_parser("ratios", parents=[common], help="what each layer gives").set_defaults(run=_ratios)
    commands.add_parser("evaluate", parents=[common], help="perplexity, dense and sliced").set_defaults(run=_evaluate)
    slice_command = commands.add_parser("slice", parents=[common], help="write the sliced model to a folder")
    slice_command.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    slice_command.set_defaults(run=_slice)
    generate = commands.add_parser("generate", parents=[common], help="dense and sliced answers to one prompt")
    generate.add_argument("--prompt", default="What is the capital of France, and why is it famous?")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.0)
    generate.set_defaults(run=_generate)
    return parser


class _Run:
    """One command's settings, validated before anything is loaded, and how long each step took."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        a = arguments
        self.arguments = a
        self.calibration = CalibrationConfig(a.calibration, a.sequences, a.length, a.seed)
        self.evaluation = EvaluationConfig(a.eval, a.eval_tokens, a.length)
        self.slicing = SliceConfig(a.sparsity, a.estimator, a.bias, a.cap, a.order)
        self.seconds: dict[str, float] = {}
        if a.threads is not None:
            if a.threads < 1:
                raise UserError(f"threads is {a.threads}; wanted 1 or more")
            torch.set_num_threads(a.threads)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[step] = round(self.seconds.get(step, 0.0) + time.perf_counter() - start, 3)

    def load(self) -> LoadedModel:
        with self.timed("load"):
            loaded = load_model(self.arguments.model, getattr(torch, self.arguments.dtype), self.arguments.device)
        print(f"model: {loaded.source}", file=sys.stderr)
        return loaded

    def plan(self, loaded: LoadedModel) -> tuple[SlicePlan, CalibrationStats, torch.Tensor]:
        if loaded.made is not None:
            raise UserError(f"{loaded.name} is sliced already; wanted a dense model to slice")
        tokens = corpora.calibration_tokens(loaded.tokenizer, self.calibration, self.evaluation.text)
        with self.timed("calibrate"):
            stats = finish(calibrate(loaded, tokens), _show)
            plan = make_plan(stats.profile, self.slicing)
        return plan, stats, tokens

    def slice(self, loaded: LoadedModel) -> tuple[torch.nn.Module, SlicePlan]:
        plan, stats, tokens = self.plan(loaded)
        with self.timed("slice"):
            model = finish(slice_model(loaded.model, plan, stats, tokens), _show)
        return model, plan

    def protocol(self) -> dict[str, Any]:
        return {
            "eval": self.evaluation.text,
            "eval_tokens": self.evaluation.tokens // self.evaluation.window * self.evaluation.window,
            "window": self.evaluation.window,
            "calibration": self.calibration.text,
            "calibration_tokens": self.calibration.sequences * self.calibration.length,
            "seed": self.calibration.seed,
            "dtype": self.arguments.dtype,
        }

    def asked(self) -> dict[str, Any]:
        a = self.arguments
        return {
            "model": a.model,
            "method": a.method,
            "estimator": a.estimator,
            "bias": a.bias,
            "cap": a.cap,
            "order": a.order,
            "sparsity_asked": a.sparsity,
        }


def _ratio_rows(plan: SlicePlan) -> list[list[float]]:
    return [[layer.attention_ratio, layer.mlp_ratio] for layer in plan.layers]


def _described(plan: SlicePlan) -> dict[str, Any]:
    return {
        "removed_fraction": plan.removed_fraction,
        "parameters": asdict(plan.parameters),
        "kv_bytes_per_token": dict(zip(("dense", "sliced"), plan.kv_bytes_per_token, strict=True)),
        "ratios": _ratio_rows(plan),
    }


def _ratios(run: _Run) -> tuple[dict[str, Any], str]:
    loaded = run.load()
    plan, _, _ = run.plan(loaded)
    result = run.asked() | _described(plan) | {"layers": [asdict(layer) for layer in plan.layers]}
    result |= {"reasons": asdict(plan.reasons), "protocol": run.protocol(), "seconds": run.seconds}
    rows = ["layer  attention    MLP   heads  dim  neurons"]
    for index, layer in enumerate(plan.layers):
        sizes = f"{len(layer.heads):>7}{layer.dim:>5}{layer.neurons:>9}"
        rows.append(f"{index:>5}{layer.attention_ratio:>11.3f}{layer.mlp_ratio:>7.3f}{sizes}")
    return result, "\n".join([*rows, _summary(plan)])


def _summary(plan: SlicePlan) -> str:
    counts = plan.parameters
    return (
        f"removed {plan.removed_fraction:.4f} of the decoder layers' parameters (asked {plan.config.sparsity:g}): "
        f"{counts.dense_total:,} -> {counts.sliced_total:,} in all"
    )


def _evaluate(run: _Run) -> tuple[dict[str, Any], str]:
    loaded = run.load()
    text = None if loaded.made is not None else run.calibration.text
    windows = corpora.evaluation_tokens(loaded.tokenizer, run.evaluation, text)
    if loaded.made is not None:
        return _evaluate_checkpoint(run, loaded, windows)
    model, plan = run.slice(loaded)
    with run.timed("evaluate"):
        values = {
            name: finish(perplexity(which, windows, f"perplexity {name}"), _show)
            for name, which in (("dense", loaded.model), ("sliced", model))
        }
    result = run.asked() | _described(plan) | {"perplexity": values, "protocol": run.protocol()}
    result["parameters"] |= parameters_of(model, "sliced")  # counted on the tensors, not taken from the plan
    result["removed_fraction"] = 1 - result["parameters"]["sliced_decoder"] / result["parameters"]["dense_decoder"]
    result |= {"seconds": run.seconds, "peak_rss_bytes": _peak_memory()}
    return result, f"{_summary(plan)}\nperplexity {values['dense']:.3f} -> {values['sliced']:.3f} {run.protocol()}"


def _evaluate_checkpoint(run: _Run, loaded: LoadedModel, windows: torch.Tensor) -> tuple[dict[str, Any], str]:
    """A sliced checkpoint alone: what is dense is read off its record, since the dense model is not there."""
    with run.timed("evaluate"):
        value = finish(perplexity(loaded.model, windows, "perplexity sliced"), _show)
    made = loaded.made
    protocol = run.protocol() | {key: made["protocol"][key] for key in ("calibration", "calibration_tokens", "seed")}
    result = made["asked"] | {key: made[key] for key in ("removed_fraction", "parameters", "ratios")}
    result["parameters"] = made["parameters"] | parameters_of(loaded.model, "sliced")
    result["kv_bytes_per_token"] = made["kv_bytes_per_token"] | {"sliced": kv_bytes_per_token(loaded.model)}
    result |= {"model": loaded.name, "perplexity": {"dense": None, "sliced": value}, "protocol": protocol}
    result |= {"seconds": run.seconds, "peak_rss_bytes": _peak_memory()}
    return result, f"perplexity {value:.3f} {protocol}"


def _slice(run: _Run) -> tuple[dict[str, Any], str]:
    out = run.arguments.out
    checkpoints.require_free(out)
    loaded = run.load()
    model, plan = run.slice(loaded)
    made = {
        "version": intraslice.__version__,
        "source": loaded.source,
        "asked": run.asked(),
        "protocol": run.protocol(),
        "plan": {"layers": [asdict(layer) for layer in plan.layers], "reasons": asdict(plan.reasons)},
        **_described(plan),
    }
    with run.timed("save"):
        checkpoints.save(model, loaded.tokenizer, out, made)
    size = sum(file.stat().st_size for file in out.iterdir())
    result = run.asked() | _described(plan) | {"out": str(out), "bytes": size, "seconds": run.seconds}
    return result, f"{_summary(plan)}\nwrote {out} ({size / 1e6:.0f} MB)"


def _generate(run: _Run) -> tuple[dict[str, Any], str]:
    a = run.arguments
    if a.max_new_tokens < 1 or not a.temperature >= 0:
        raise UserError("wanted --max-new-tokens of at least 1 and --temperature of at least 0")
    loaded = run.load()
    models = (
        {"sliced": loaded.model} if loaded.made is not None else {"dense": loaded.model, "sliced": run.slice(loaded)[0]}
    )
    texts = {}
    for name, model in models.items():
        pieces = generate_text(model, loaded.tokenizer, a.prompt, a.max_new_tokens, a.temperature, a.seed)
        texts[name] = "".join(pieces)
    result = run.asked() | {"prompt": a.prompt, "text": texts, "protocol": run.protocol(), "seconds": run.seconds}
    return result, "\n\n".join(f"{name}:\n{text}" for name, text in texts.items())


def _show(event: Progress) -> None:
    end = "\n" if event.done == event.total else "\r"
    print(f"{event.stage} {event.done}/{event.total}", end=end, file=sys.stderr, flush=True)


def _peak_memory() -> int | None:
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux kibibytes


def main(words: list[str] | None = None) -> int:
    """Run one command; 0, or 2 with one line on stderr for bad input."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    arguments = _parser().parse_args(words)
    try:
        result, text = arguments.run(_Run(arguments))
    except (UserError, NumericalError) as error:
        print(f"python -m intraslice: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result) if arguments.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
