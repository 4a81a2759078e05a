"""The argument parser of the command line, with all commands and options."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, get_args

import intraslice
from intraslice.calibration.user_estimator import load_estimator
from intraslice.checkpoints.to_gguf import GGUF_TYPES
from intraslice.cli import analyses, commands, paper, search, tasks
from intraslice.cli.benchmark import benchmark
from intraslice.cli.extensions import extensions
from intraslice.cli.run import CommandResult, Run
from intraslice.core.checks import RETIRED
from intraslice.core.config import (
    NO_RECOVERY,
    PRESETS,
    SHAPES,
    CalibrationConfig,
    EvaluationConfig,
    Order,
    SliceConfig,
    Targets,
)
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS, RECOVERIES, Registry
from intraslice.diagnostics.sensitivity import Measure
from intraslice.evaluation.answers import PROMPTS
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.sweep import QUANTISE
from intraslice.methods.registry import METHODS
from intraslice.modeling.offload import PLACEMENTS
from intraslice.pretrained.precision import AUTO, Precision
from intraslice.pretrained.sources import DEFAULT
from intraslice.search.evolution import SearchConfig

FEW_TOKENS = 2048  # enough for activations
RANKING_TOKENS = 8192  # enough to rank modules by their KL divergence


class _Formatter(argparse.HelpFormatter):
    """Appends an option's default to its help, unless the help names it."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        has_none = default is None or default is False or default == [] or default == argparse.SUPPRESS
        if not text or has_none or "default:" in text or "by default" in text:
            return text
        values = default if isinstance(default, list | tuple) else [default]
        words = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values)
        return f"{text} (default: {words.replace('%', '%%')})"


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options | {"formatter_class": _Formatter})

    def error(self, message: str) -> NoReturn:  # one line, without argparse's usage message
        self.exit(2, f"{self.prog}: {message}\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices and value in RETIRED:
            self.error(RETIRED[value])
        super()._check_value(action, value)


class _Retired(argparse.Action):
    """A removed option, which ends the command with what replaces it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(RETIRED[self.option_strings[0]])


def _registry_help(description: str, registry: Registry[Any]) -> str:
    """Help for a choice among registered names, with per cent signs escaped for argparse."""
    return f"{description}. {registry.help()}".replace("%", "%%")


def _estimator(text: str) -> str:
    """The name of an estimator. A user's file is loaded and registered."""
    if text.endswith(".py"):
        raise argparse.ArgumentTypeError(f"{text} lacks the name of its function; write {text}:FUNCTION")
    if ":" not in text and ".json" not in text:
        return text
    try:
        return load_estimator(text).name
    except UserError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


_ESTIMATOR: dict[str, Any] = {"type": _estimator, "choices": ESTIMATORS, "metavar": "NAME|FILE.py:FUNCTION|FILE.json"}


def _common(eval_tokens: int) -> _Parser:
    calibration, slicing, evaluation = CalibrationConfig(), SliceConfig(), EvaluationConfig()
    common = _Parser(add_help=False)
    add = common.add_argument
    add("--model", default=DEFAULT, metavar="ID|FOLDER|FILE.gguf|default", help="weights to load")
    add("--verify", action="store_true", help="hash cached weights first, and download damaged files again")
    explanation = "auto: bfloat16 if the device supports it natively, else float32; statistics are always float32"
    add("--dtype", default=AUTO, choices=(AUTO, *get_args(Precision)), help=explanation)
    add("--device", default=AUTO, help="auto: CUDA if available, else the CPU")
    add(
        "--device-map",
        choices=PLACEMENTS,
        help="for models larger than memory: offload the layers that do not fit (auto), or all layers (disk)",
    )
    add("--threads", type=int, metavar="N", help="number of CPU threads (default: PyTorch's)")
    add("--json", action="store_true", help="print the result as a single JSON object on stdout")
    add("--sparsity", type=float, default=slicing.sparsity, help="fraction of the decoder layers' parameters to remove")
    explanation = "ratio estimator, or your own path.py:function or importances.json (see docs/extending.md)"
    add("--estimator", default=slicing.estimator, **_ESTIMATOR, help=_registry_help(explanation, ESTIMATORS))
    explanation = (
        "weight of MLPs against attention: above 1 prunes MLPs more, below 1 attention; "
        "by default derived from the importances, or 1 for an estimator without importances"
    )
    add("--bias", type=float, metavar="F", help=explanation)
    add(
        "--head-fraction", type=float, metavar="F", help="fraction of a head that is ranked as one unit; 1: whole heads"
    )
    explanation = "number of sequences whose gradients are summed before squaring"
    add("--gradient-group", type=int, default=slicing.gradient_group, metavar="N", help=explanation)
    explanation = "upper bound of every ratio that is not locked; 1 allows removing whole modules"
    add("--cap", type=float, default=slicing.cap, help=explanation)
    explanation = (
        "sequential: fits a layer on the outputs of the preceding sliced layers; one-shot: on the dense model's moments"
    )
    add("--order", default=slicing.order, choices=get_args(Order), help=explanation)
    explanation = (
        "runtime: what llama.cpp runs without padding: heads of full width, equally many query heads for every "
        "key/value head of a layer, and MLP widths in multiples of 32"
    )
    add("--shapes", default=slicing.shapes, choices=SHAPES, help=explanation)
    explanation = f"free shapes in multiples, such as mlp=64 dim=8, or one of {', '.join(PRESETS)}"
    add("--align", nargs="+", default=[], metavar="NAME=N", help=explanation)
    explanation = (
        "train the kept neurons of MLPs pruned by more than 35%% to match the dense MLP (sequential order; slow)"
    )
    add("--iterative", action="store_true", help=explanation)
    lock = (
        "fix the ratio of one module, such as --lock 7 mlp 25; repeatable; other modules are adjusted to meet the "
        "sparsity"
    )
    add("--lock", nargs=3, action="append", default=[], metavar=("LAYER", "MODULE", "PERCENT"), help=lock)
    ratios = (
        "fix ratios from a file, as written by `ratios --csv`; --lock takes precedence, and the estimator sets the "
        "rest. search: start from the estimator's ratios, and move parameters between modules as long as the measured "
        "KL decreases"
    )
    add("--ratios", type=Path, metavar="FILE|search", help=ratios)
    explanation = "budget of a search at each sparsity, in dense passes over the calibration text"
    add("--passes", type=float, default=SearchConfig().passes, metavar="N", help=explanation)
    add("--method", default="intraslice", choices=METHODS, help=_registry_help("slicing method", METHODS))
    explanation = _registry_help("training after slicing, for any method", RECOVERIES)
    add("--recover", default=slicing.recovery, choices=(NO_RECOVERY, *RECOVERIES), help=explanation)
    add("--epochs", type=int, default=slicing.epochs, help="epochs of the recovery; 0 skips it")
    add("--slicing", type=float, metavar="F", help="crossmodule: fraction of axes to remove, instead of --sparsity")
    add("--calibration", default=calibration.text, metavar="NAME|FILE", help="calibration text")
    explanation = "number of calibration sequences"
    add("--sequences", type=int, default=calibration.sequences, metavar="N", help=explanation)
    add(
        "--length", type=int, default=calibration.length, help="number of tokens per sequence and per perplexity window"
    )
    explanation = (
        "number of additional calibration sequences, sampled from the dense model, so that the slice also suits other "
        "kinds of text"
    )
    add("--samples", type=int, default=calibration.samples, metavar="N", help=explanation)
    explanation = "random seed of the calibration text, of sampled answers and of the search for ratios"
    add("--seed", type=int, default=calibration.seed, metavar="N", help=explanation)
    explanation = "labels for gradients: tokens sampled from the model, or the tokens of the text (as published)"
    add("--targets", default=calibration.targets, choices=get_args(Targets), help=explanation)
    add("--eval", default=evaluation.text, metavar="NAME|FILE", help="evaluation text")
    explanation = "number of tokens of the evaluation text, rounded down to whole windows"
    add("--eval-tokens", type=int, default=eval_tokens, metavar="N", help=explanation)
    return common


def parser() -> argparse.ArgumentParser:
    """The parser of all commands with their options."""
    root = _Parser(prog="python -m intraslice", description=intraslice.__doc__)
    root.add_argument("--version", action="version", version=intraslice.__version__)
    subparsers = root.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(
        name: str, run: Callable[[Run], CommandResult], help: str = "", eval_tokens: int = EvaluationConfig().tokens
    ) -> argparse.ArgumentParser:
        parents = [_common(eval_tokens)]
        subparser = (
            subparsers.add_parser(name, parents=parents, help=help)
            if help
            else subparsers.add_parser(name, parents=parents)  # which is not listed
        )
        subparser.set_defaults(run=run)
        return subparser

    ratios = command("ratios", commands.ratios, "pruning ratios of every layer")
    ratios.add_argument("--csv", type=Path, metavar="FILE", help="also write the ratios to this file, for --ratios")
    evaluate = command("evaluate", commands.evaluate, "perplexity, dense and sliced")
    slice_command = command("slice", commands.slice_, "write the sliced model to a folder, a GGUF file, or both")
    slice_command.add_argument("--out", type=Path, metavar="FOLDER", help="folder in transformers format")
    slice_command.add_argument("--gguf", type=Path, metavar="FILE", help="file for llama.cpp")
    explanation = (
        "keep one layer in memory at a time, and resume an interrupted run; enabled automatically if memory is short "
        "(requires method intraslice, --order one-shot, --out and safetensors)"
    )
    slice_command.add_argument("--stream", action="store_true", help=explanation)
    export = command("export", commands.export, "write a saved model for llama.cpp")
    export.add_argument("--gguf", type=Path, metavar="FILE", required=True, help="file for llama.cpp")
    export.add_argument("--vllm", action=_Retired, help=argparse.SUPPRESS)
    export.set_defaults(dtype="float32")  # represents the values of any saved dtype
    for subparser in (slice_command, export):
        subparser.add_argument("--type", default="f16", choices=GGUF_TYPES, help="GGUF type of the weights")
    generate = command("generate", commands.generate, "dense and sliced answers to one prompt")
    generate.add_argument(
        "--prompt", default="What is the capital of France, and why is it famous?", help="the prompt to answer"
    )
    explanation = "maximum number of tokens of an answer"
    generate.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help=explanation)
    explanation = "sampling temperature; 0: greedy decoding"
    generate.add_argument("--temperature", type=float, default=0.0, metavar="F", help=explanation)

    inspect = command("inspect", analyses.inspect, "spectra and activation shift", FEW_TOKENS)
    explanation = (
        "spectra: explained variance of the dense activations; shift: distance of each method's activations from the "
        "dense ones; faults: perplexity when only the inputs, only the outputs, or both are projected in every module, "
        "to find the part of cross-module slicing that does the damage"
    )
    inspect.add_argument("--parts", nargs="+", default=["spectra", "shift"], choices=analyses.PARTS, help=explanation)
    explanation = "methods whose shift is measured"
    methods = ["intraslice", "crossmodule"]
    inspect.add_argument("--methods", nargs="+", default=methods, choices=METHODS, help=explanation)
    sensitivity = command("sensitivity", analyses.sensitivity, "damage from slicing each module alone", RANKING_TOKENS)
    explanation = "pruning ratio of each module; one or more"
    sensitivity.add_argument("--ratio", type=float, nargs="+", default=[0.3], metavar="F", help=explanation)
    explanation = "measure of damage: KL divergence from the dense model, or increase of the loss, which is far noisier"
    sensitivity.add_argument("--measure", default="kl", choices=get_args(Measure), help=explanation)
    explanation = "slice the model by --sparsity and --estimator, and restore one module at a time to dense"
    sensitivity.add_argument("--context", action="store_true", help=explanation)
    sensitivity.set_defaults(dtype="float32")  # bfloat16's rounding alone is 0.002 nats, as much as small modules cost
    explanation = "search for better ratios by measuring KL, and save them as importances"
    search.add_options(command("search", search.search, explanation))
    search.add_options(command("exchange", search.search))  # its former name
    explanation = "perplexity, size and speed for all combinations of methods, estimators, sparsities and GGUF types"
    sweep = command("sweep", analyses.sweep_, explanation)
    sweep.add_argument("--methods", nargs="+", default=methods, choices=METHODS, help="slicing methods")
    explanation = "ratio estimators, for methods that use one"
    sweep.add_argument("--estimators", nargs="+", default=["pca", "uniform"], **_ESTIMATOR, help=explanation)
    explanation = "fractions of the decoder layers' parameters to remove"
    sweep.add_argument(
        "--sparsities", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.4], metavar="F", help=explanation
    )
    explanation = (
        "evaluate each model, and the dense one, with its weights rounded to these GGUF types; none: not rounded"
    )
    sweep.add_argument("--quantise", nargs="+", default=["none"], choices=QUANTISE, help=explanation)
    sweep.add_argument("--no-speed", action="store_true", help="do not measure speed")
    explanation = "number of prompt tokens for measuring prefill speed"
    sweep.add_argument("--prompt-tokens", type=int, default=SpeedConfig().prompt, metavar="N", help=explanation)
    explanation = "further held-out texts to evaluate every model on, each with its own columns"
    sweep.add_argument("--also-eval", nargs="+", default=[], metavar="NAME|FILE", help=explanation)
    explanation = (
        "calibrate with each of these seeds instead of --seed; each row has its seed, and the table has the mean over "
        "the seeds, with the standard deviations (sd) of perplexity and divergence"
    )
    sweep.add_argument("--seeds", nargs="+", type=int, default=[], metavar="N", help=explanation)
    sweep.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows to this file")
    explanation = (
        f"also answer {len(PROMPTS)} prompts greedily: fraction of answers that loop, tokens before they differ from "
        "the dense model's, fraction of distinct 3-grams"
    )
    for subparser in (evaluate, sweep):
        subparser.add_argument("--answers", action="store_true", help=explanation)
    tasks.add_options(command("tasks", tasks.tasks, "lm-eval task scores of the dense and the sliced models"))
    explanation = "the table of the IntraSlice paper (arXiv 2602.01975), measured here, next to the published numbers"
    paper.add_options(command("paper", paper.paper, explanation))
    explanation = "cost of each stage, in multiples of a dense forward pass"
    benchmark_command = command("benchmark", benchmark, explanation, FEW_TOKENS // 2)
    # The result is scaled to the default number of sequences. Waiting threads would take CPU time.
    benchmark_command.set_defaults(sequences=4, threads=1)
    explanation = "also the speed and perplexity of free shapes and of every preset of --align, one-shot"
    benchmark_command.add_argument("--speed", action="store_true", help=explanation)
    precisions, explanation = get_args(Precision), "precisions to measure in addition to --dtype"
    benchmark_command.add_argument("--dtypes", nargs="+", default=precisions, choices=precisions, help=explanation)
    for name, module in extensions().items():
        summary = module.__doc__.partition("\n")[0].rstrip(".")
        module.add_options(command(name, module.run, summary[:1].lower() + summary[1:]))
    return root
