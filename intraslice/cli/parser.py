"""The words that the command line takes, and what each of them means."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, get_args

import intraslice
from intraslice.calibration.own_estimator import load_estimator
from intraslice.checkpoints.to_gguf import GGUF_TYPES
from intraslice.cli import analyses, commands, exchange, paper, tasks
from intraslice.cli.benchmark import benchmark
from intraslice.cli.extensions import extensions
from intraslice.cli.prices import prices
from intraslice.cli.run import Answer, Run
from intraslice.core.config import NO_RECOVERY, CalibrationConfig, EvaluationConfig, Order, Shapes, SliceConfig, Targets
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS, RECOVERIES, Registry
from intraslice.diagnostics.sensitivity import Measure
from intraslice.evaluation.speed import SpeedConfig
from intraslice.loading import DEFAULT
from intraslice.methods.registry import METHODS
from intraslice.modeling.offload import PLACEMENTS
from intraslice.pretrained.precision import AUTO, Precision

FEW_TOKENS = 2048  # enough for activations
JUDGED_TOKENS = 8192  # enough to rank modules by their KL divergence


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, where argparse would print its usage too
        self.exit(2, f"{self.prog}: {message}\n")


def _listed(what: str, registry: Registry[Any]) -> str:
    """Help on a choice among what is registered; argparse wants its per cent signs doubled."""
    return f"{what}. {registry.help()}".replace("%", "%%")


def _estimator(text: str) -> str:
    """The name of an estimator, that of one's own file once it is run."""
    if ":" not in text and ".json" not in text:
        return text
    try:
        return load_estimator(text).name
    except UserError as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


OWN_ESTIMATOR = (
    "how ratios are estimated, or path.py:function or importances.json of your own (calibration/own_estimator.py)"
)
_ESTIMATOR: dict[str, Any] = {"type": _estimator, "choices": ESTIMATORS, "metavar": "NAME|FILE.py:FUNCTION|FILE.json"}


def _common(eval_tokens: int) -> _Parser:
    calibration, slicing, evaluation = CalibrationConfig(), SliceConfig(), EvaluationConfig()
    common = _Parser(add_help=False)
    add = common.add_argument
    add("--model", default=DEFAULT, metavar="ID|FOLDER|default", help="weights to load")
    add("--verify", action="store_true", help="hash cached weights first, and fetch damaged ones anew")
    explanation = "auto: bfloat16 where the device multiplies it natively, else float32; statistics are float32 in both"
    add("--dtype", default=AUTO, choices=(AUTO, *get_args(Precision)), help=explanation)
    add("--device", default=AUTO, help="auto: CUDA where it is there, else the CPU")
    add(
        "--device-map",
        choices=PLACEMENTS,
        help="for models larger than memory: layers that do not fit, or all, on disk",
    )
    add("--threads", type=int, metavar="N", help="CPU threads")
    add("--json", action="store_true", help="one JSON object on stdout and nothing else")
    add("--sparsity", type=float, default=slicing.sparsity, help="fraction of decoder-layer parameters to remove")
    add("--estimator", default=slicing.estimator, **_ESTIMATOR, help=_listed(OWN_ESTIMATOR, ESTIMATORS))
    explanation = (
        "above 1 cuts MLPs harder, below 1 attention; by default the importances decide, and it is 1 without any"
    )
    add("--bias", type=float, metavar="F", help=explanation)
    add(
        "--head-fraction", type=float, metavar="F", help="share of a head that is ranked as one unit; 1 is a whole head"
    )
    add("--gradient-group", type=int, default=slicing.gradient_group, help="sequences whose gradients are summed first")
    add("--cap", type=float, default=slicing.cap, help="upper bound of every ratio; at 1 a module may go whole")
    explanation = "sequential: on what the layers sliced before make; one-shot: from the dense model's moments alone"
    add("--order", default=slicing.order, choices=get_args(Order), help=explanation)
    explanation = "runtime: full-width heads in even groups and MLP widths in 32s, which llama.cpp takes unpadded"
    add("--shapes", default=slicing.shapes, choices=get_args(Shapes), help=explanation)
    add("--iterative", action="store_true", help="refine MLPs that lose over 35 %% (sequential order; slow)")
    lock = "give one module's ratio by hand, such as --lock 7 mlp 25; may be repeated, and the others make up for it"
    add("--lock", nargs=3, action="append", default=[], metavar=("LAYER", "MODULE", "PERCENT"), help=lock)
    ratios = "take ratios from a file, as ratios --csv writes one; what it leaves out, and --lock, go their own ways"
    add("--ratios", type=Path, metavar="FILE", help=ratios)
    add("--method", default="intraslice", choices=METHODS, help=_listed("how the model is sliced", METHODS))
    explanation = _listed("training after slicing, by any method", RECOVERIES)
    add("--recover", default=slicing.recovery, choices=(NO_RECOVERY, *RECOVERIES), help=explanation)
    add("--epochs", type=int, default=slicing.epochs, help="of the recovery; 0 leaves it out")
    add("--slicing", type=float, metavar="F", help="crossmodule: share of axes to cut, instead of --sparsity")
    add("--calibration", default=calibration.text, metavar="NAME|FILE", help="calibration text")
    add("--sequences", type=int, default=calibration.sequences)
    add("--length", type=int, default=calibration.length, help="tokens a sequence, and a perplexity window")
    add("--seed", type=int, default=calibration.seed)
    explanation = "what gradients are taken on: tokens the model draws itself, or the text's own (as published)"
    add("--targets", default=calibration.targets, choices=get_args(Targets), help=explanation)
    add("--eval", default=evaluation.text, metavar="NAME|FILE", help="evaluation text")
    add("--eval-tokens", type=int, default=eval_tokens)
    return common


def parser() -> argparse.ArgumentParser:
    """Every command with its options; `main` runs what it parses."""
    whole = _Parser(prog="python -m intraslice", description=intraslice.__doc__)
    whole.add_argument("--version", action="version", version=intraslice.__version__)
    subparsers = whole.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(
        name: str, run: Callable[[Run], Answer], help: str, eval_tokens: int = EvaluationConfig().tokens
    ) -> argparse.ArgumentParser:
        made = subparsers.add_parser(name, parents=[_common(eval_tokens)], help=help)
        made.set_defaults(run=run)
        return made

    ratios = command("ratios", commands.ratios, "what each layer gives")
    ratios.add_argument("--csv", type=Path, metavar="FILE", help="also write the ratios there, for --ratios")
    command("evaluate", commands.evaluate, "perplexity, dense and sliced")
    slice_command = command("slice", commands.slice_, "write the sliced model to a folder, a GGUF file, or both")
    slice_command.add_argument("--out", type=Path, metavar="FOLDER", help="a folder, which transformers opens")
    slice_command.add_argument("--gguf", type=Path, metavar="FILE", help="one file, for llama.cpp")
    export = command("export", commands.export, "write a saved model for llama.cpp or vLLM")
    export.add_argument("--gguf", type=Path, metavar="FILE", help="one file, for llama.cpp")
    export.add_argument("--vllm", type=Path, metavar="FOLDER", help="for vLLM; of slices of MLPs alone")
    export.set_defaults(dtype="float32")  # which holds what any folder does
    for writes in (slice_command, export):
        writes.add_argument("--type", default="f16", choices=GGUF_TYPES, help="of the weights in the GGUF file")
    generate = command("generate", commands.generate, "dense and sliced answers to one prompt")
    generate.add_argument("--prompt", default="What is the capital of France, and why is it famous?")
    generate.add_argument("--max-new-tokens", type=int, default=64)
    generate.add_argument("--temperature", type=float, default=0.0)

    inspect = command("inspect", analyses.inspect, "spectra and activation shift", FEW_TOKENS)
    inspect.add_argument("--parts", nargs="+", default=["spectra", "shift"], choices=analyses.PARTS)
    inspect.add_argument("--methods", nargs="+", default=["intraslice", "crossmodule"], choices=METHODS)
    sensitivity = command("sensitivity", analyses.sensitivity, "what each module alone costs", JUDGED_TOKENS)
    explanation = "share of each module to slice; one or more"
    sensitivity.add_argument("--ratio", type=float, nargs="+", default=[0.3], metavar="F", help=explanation)
    explanation = "of damage: KL divergence from the dense model, or increase of the loss, which is far noisier"
    sensitivity.add_argument("--measure", default="kl", choices=get_args(Measure), help=explanation)
    explanation = "slice the model as --sparsity and --estimator say, and make each module dense again"
    sensitivity.add_argument("--context", action="store_true", help=explanation)
    sensitivity.set_defaults(dtype="float32")  # bfloat16's rounding alone is 0.002 nats, as much as small modules cost
    argued = command("prices", prices, "what a parameter costs in each module of a sliced model", FEW_TOKENS)
    explanation = "also say on which modules the plan parts from this estimator's, of equal size"
    argued.set_defaults(dtype="float32")
    argued.add_argument("--against", **_ESTIMATOR, help=explanation)
    exchange.add_options(command("exchange", exchange.exchange, "better ratios by measurement, as importances"))
    sweep = command("sweep", analyses.sweep_, "perplexity and speed of many models")
    sweep.add_argument("--methods", nargs="+", default=["intraslice", "crossmodule"], choices=METHODS)
    sweep.add_argument("--estimators", nargs="+", default=["pca", "uniform"], **_ESTIMATOR)
    sweep.add_argument("--sparsities", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.4], metavar="F")
    sweep.add_argument("--no-speed", action="store_true", help="measure no speed")
    read: dict[str, Any] = {"type": int, "default": SpeedConfig().prompt, "metavar": "N"}
    sweep.add_argument("--prompt-tokens", **read, help="tokens of the prompt whose reading is timed")
    explanation = "further held-out texts to judge every model on, each with columns of its own"
    sweep.add_argument("--also-eval", nargs="+", default=[], metavar="NAME|FILE", help=explanation)
    sweep.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows there")
    tasks.add_options(command("tasks", tasks.tasks, "scores in lm-eval's tasks, of the dense model and its slices"))
    paper.add_options(command("paper", paper.paper, "the paper's table, measured here, beside its own numbers"))
    measured = command("benchmark", benchmark, "what every job costs, in dense forwards", FEW_TOKENS // 2)
    measured.set_defaults(sequences=4, threads=1)  # scaled to the usual number; threads that wait take CPU time
    precisions = get_args(Precision)
    measured.add_argument("--dtypes", nargs="+", default=precisions, choices=precisions, help="beside that of --dtype")
    for name, module in extensions().items():
        module.add_options(command(name, module.run, module.__doc__.partition("\n")[0].rstrip(".")))
    return whole
