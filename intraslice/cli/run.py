"""The run of one command: its settings, validated before anything is loaded, and its stages."""

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas
import psutil
import torch
from transformers import PreTrainedModel

if sys.platform != "win32":
    import resource

from intraslice import token_windows
from intraslice.core.checks import integer
from intraslice.core.config import (
    BUDGETS,
    NO_RECOVERY,
    RUNTIME,
    CalibrationConfig,
    EvaluationConfig,
    SliceConfig,
    canonical_shapes,
    lock_target,
    parse_lock,
)
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.distributed import rank, size
from intraslice.evaluation.facts import encode_questions, fact_questions, facts_record, measure_facts
from intraslice.loading import LoadedModel
from intraslice.methods.registry import METHODS
from intraslice.modeling.hidden_states import Windows
from intraslice.pipeline import Pipeline
from intraslice.pretrained.precision import AUTO, choose_device, choose_dtype
from intraslice.pretrained.sources import verify_weights
from intraslice.records import Recipe
from intraslice.untrusted.layer_files import read_ratios

CommandResult = tuple[dict[str, Any], str]  # a command's JSON object, and its text for people
BY_POINT = ("sweep", "paper")  # commands of which each model is made by a single process
SHARED = ("ratios", "evaluate", "slice", *BY_POINT)  # commands that several processes share
SEARCHING = ("ratios", "evaluate", "slice", "generate")  # commands that take --ratios search and --estimator auto

log = logging.getLogger(__name__)
Config = TypeVar("Config", SliceConfig, CalibrationConfig, EvaluationConfig)


def names_of(config: type) -> dict[str, str]:
    """The option of every field of a config that has one, as the parser names it."""
    flags = {field.name: field.metadata["flag"] or field.name for field in fields(config) if field.metadata}
    return {name: flag.strip("-").replace("-", "_") for name, flag in flags.items()}


OF_CALIBRATION = {*names_of(CalibrationConfig).values(), "budget"}
# Of these, a command on a sliced model uses the seed and the length alone.
OF_SLICES = {*names_of(SliceConfig).values(), *OF_CALIBRATION} - {"length", "seed"}
OF_SLICES |= {"method", "methods", "align", "ratios", "passes", "slicing", "size", "context"}
OF_CONTEXT = OF_SLICES - {*OF_CALIBRATION, "estimator", "head_fraction", "gradient_group"}
SETTERS = {"locked": ("lock", "ratios"), "shapes": ("shapes", "align")}  # options that set the same field


class Run(Pipeline):
    """A validated command line, and the stages of its command."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        device = choose_device(arguments.device)
        # Several processes do not share a choice, and ratios from a file leave little to choose.
        has_choice = size() == 1 and (not arguments.ratios or searches(arguments))
        if is_auto(arguments) and "estimator" not in arguments.explicit and not has_choice:
            arguments.estimator = SliceConfig.estimator
        search: float | None = arguments.passes if searches(arguments) else None
        if search is not None and arguments.command not in SEARCHING:
            raise UserError(
                f"--ratios search works with {', '.join(SEARCHING)}, got {arguments.command}; run `search --out "
                f"FILE.json` first, then pass --estimator FILE.json to {arguments.command}"
            )
        if is_auto(arguments) and arguments.command not in SEARCHING:
            raise UserError(
                f"--estimator auto works with {', '.join(SEARCHING)}, got {arguments.command}; run `ratios --estimator "
                "auto` first, then pass the estimator that it names"
            )
        recipe = recipe_of(arguments)
        options = {"ratio_search": search, "is_auto": is_auto(arguments)} | _size(arguments)
        super().__init__(recipe, device, arguments.device_map, arguments.slicing, **options)
        self.is_first, self.is_alone = rank() == 0, size() == 1  # of the processes that torchrun has started
        if not self.is_alone:
            require_shareable(arguments, self.recipe)
        self._not_named = list(arguments.explicit)
        self._warn_of_explicit()
        if arguments.threads is not None:
            torch.set_num_threads(integer("threads", arguments.threads, 1))

    def _warn_of_explicit(self) -> None:
        """Name the options that were given although the command and its other options have no use for them."""
        a, options, slicing = self.arguments, vars(self.arguments), self.recipe.slicing
        compared = options.get("methods", [])
        methods = [METHODS[name] for name in (compared if "method" in a.unused else [a.method, *compared])]
        unused = {name for name in names_of(SliceConfig) if methods and all(name in one.unused for one in methods)}
        estimators = [ESTIMATORS[name] for name in options.get("estimators", [slicing.estimator])]
        by_method = [option for name in unused for option in SETTERS.get(name, (name,))]
        is_sensitivity, sizes = a.command == "sensitivity", bool(options.get("size"))
        in_context = is_sensitivity and a.context
        trains = slicing.recovery != NO_RECOVERY or any(one.recovery(slicing) != NO_RECOVERY for one in methods)
        has_units = is_sensitivity or any(one.importance and not one.neurons for one in estimators)
        for is_unused, user, names in (
            (True, f"the command {a.command}", a.unused),
            (is_sensitivity and not in_context, "sensitivity without --context", OF_CONTEXT),
            (in_context, "--context", ["ratio"]),
            (a.slicing is not None and "slicing" not in a.unused, "--slicing", ["sparsity"]),
            (sizes, "--size", ["sparsity"]),
            (not sizes and not is_sensitivity, "a slice without --size", ["context"]),
            (options.get("no_speed", False), "--no-speed", ["prompt_tokens"]),
            (bool(options.get("seeds")), "--seeds", ["seed"]),
            (a.command != "search" and not searches(a), "ratios without a search", ["passes"]),
            ("gguf" in a and a.gguf is None, "a slice without --gguf", ["type"]),
            (not trains, "recovery none", ["epochs"]),
            (bool(unused), f"method {', '.join(one.name for one in methods)}", by_method),
            (not has_units, f"estimator {', '.join(one.name for one in estimators)}", ["head_fraction"]),
        ):
            if is_unused:
                self.warn_of_unused(user, names)

    def warn_of_unused(self, user: str, options: Collection[str]) -> None:
        """Name those of the options that were given, and not named before: `user` has no use for them."""
        if names := [f"--{name.replace('_', '-')}" for name in self._not_named if name in options]:
            log.warning("%s ignored: not used by %s", ", ".join(names), user)
        self._not_named = [name for name in self._not_named if name not in options]

    def verify(self) -> None:
        """With `--verify`, hash the model's cached weights, and download damaged files again."""
        if self.arguments.verify:
            verify_weights(self.recipe.model)

    def load(self) -> LoadedModel:
        """Load the model as the pipeline does, and print the source of its weights to stderr."""
        self.verify()
        loaded = super().load()
        print(f"model: {loaded.source}", file=sys.stderr)
        return loaded

    def calibrate(self, loaded: LoadedModel) -> Any:
        """Calibrate as the pipeline does, and print the choice of an estimator to stderr."""
        result = super().calibrate(loaded)
        if self.choice is not None:
            print(f"estimator: {self.choice}", file=sys.stderr)
        return result

    def load_any(self) -> LoadedModel:
        """As `load`, and for a sliced checkpoint log the options of slicing, which it does not use."""
        loaded = self.load()
        if loaded.record is not None:
            self.warn_of_unused("a sliced model", OF_SLICES)
        return loaded

    def other_windows(self, loaded: LoadedModel) -> dict[str, Windows]:
        """Held-out windows of every text of `--also-eval`, named without folder and suffix; names must differ."""
        others = {Path(text).stem: replace(self.recipe.evaluation, text=text) for text in self.arguments.also_eval}
        if len(others) < len(self.arguments.also_eval):
            raise UserError("two texts of --also-eval have the same name; rename one of them")
        calibration = self.recipe.calibration.text
        for text in self.arguments.also_eval:
            token_windows.require_held_out(text, calibration, self.recipe.evaluation.text)
        return {
            name: token_windows.evaluation_tokens(loaded.tokenizer, text, calibration) for name, text in others.items()
        }

    def ask_facts(self, loaded: LoadedModel, models: dict[str, PreTrainedModel]) -> CommandResult:
        """The right answers of every model to the questions, by group, and what slicing loses and gains."""
        questions = fact_questions(self.arguments.facts)
        with self.timed("facts"):
            encoded = encode_questions(loaded.tokenizer, questions)
            facts = {
                name: measure_facts(one, loaded.tokenizer, encoded, f"facts {name}") for name, one in models.items()
            }
        record = facts_record(questions, facts)
        counts = {name: pandas.DataFrame(of_model["counts"]).T for name, of_model in record.items()}
        lines = [pandas.concat(counts, axis=1).to_string()]
        for kind in ("lost", "gained"):
            lines += [
                f"{kind}: {row['prompt']!r} {row['answer']} (dense {row['probability']:.0%}); "
                f"dense says {row['dense']['says']!r}, sliced {row['sliced']['says']!r}"
                for row in record["sliced"][kind]
            ]
        return record, "\n".join(lines)


def searches(arguments: argparse.Namespace) -> bool:
    """Whether the ratios come from a search."""
    return str(arguments.ratios) == "search"


def is_auto(arguments: argparse.Namespace) -> bool:
    """Whether the estimator is chosen by measurement."""
    return str(arguments.estimator) == AUTO


def require_shareable(arguments: argparse.Namespace, recipe: Recipe) -> None:
    """Raise UserError unless several processes can share the command and all that its options ask for."""
    method, slicing = METHODS.require(recipe.method), recipe.slicing
    recovery = method.recovery(slicing)
    if arguments.command in BY_POINT:
        unshared = {}
    elif arguments.command in SHARED:
        sequential = method.uses_order and slicing.order == "sequential"
        unshared = {
            "--ratios search": searches(arguments),
            "--estimator auto": is_auto(arguments),
            "--stream": getattr(arguments, "stream", False),
            f"recovery {recovery}": recovery != NO_RECOVERY,
            f"{method.name} in the sequential order": sequential and method.name != "intraslice",
            f"method {method.name}": method.configured(slicing).fit.iterative_from is not None,
        }
    else:
        unshared = {arguments.command: True}
    for what, is_asked in unshared.items():
        if is_asked:
            raise UserError(f"{what} requires one process, got {size()}; start it without torchrun")
    if recipe.calibration.sequences < size():
        raise UserError(
            f"sequences must be at least {size()}, one for each process, got {recipe.calibration.sequences}; "
            "start fewer processes or raise sequences"
        )


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe of a command line. Raises UserError for numbers out of range, or an invalid file of ratios."""
    a = arguments
    length = vars(a).get("eval_length")
    option, window = ("--length", a.length) if length is None else ("--eval-length", length)
    if a.eval_tokens < window:
        raise UserError(f"--eval-tokens must be at least {option}, {window} tokens, got {a.eval_tokens}")
    estimator = SliceConfig.estimator if is_auto(a) else a.estimator  # until one is chosen
    locks = tuple(parse_lock(" ".join(lock)) for lock in a.lock)
    file_locks = read_ratios(a.ratios) if a.ratios and not searches(a) else ()
    locked = (*(lock for lock in file_locks if lock[:2] not in {lock_target(other) for other in locks}), *locks)
    calibration = _config(CalibrationConfig, a)
    if a.budget is not None:  # a number of sequences or samples that is given wins over that of the budget
        budget = BUDGETS[a.budget]()
        numbers = {name: getattr(budget, name) for name in ("sequences", "samples") if name not in a.explicit}
        calibration = replace(calibration, **numbers)
    return Recipe(
        model=a.model,
        slicing=_config(SliceConfig, a, locked=locked, shapes=_shapes(a), estimator=estimator),
        calibration=calibration,
        evaluation=_config(EvaluationConfig, a, window=window),
        method=a.method,
        dtype=choose_dtype(a.dtype, choose_device(a.device)),
    )


def _config(config: type[Config], arguments: argparse.Namespace, **others: Any) -> Config:
    """A config by the options of its fields, and others."""
    return config(**{name: getattr(arguments, option) for name, option in names_of(config).items()} | others)


def _size(arguments: argparse.Namespace) -> dict[str, Any]:
    """The pipeline's size and context. A size without a type is that of the GGUF file, where one is written."""
    words = getattr(arguments, "size", None)
    if not words:
        return {}
    size, file = " ".join(words), getattr(arguments, "gguf", None)
    named = size if file is None or size.rstrip()[-1:] not in "bB" else f"{size} {arguments.type}"
    return {"size": named, "context": arguments.context}


def _shapes(arguments: argparse.Namespace) -> str:
    shapes, align = str(arguments.shapes), " ".join(arguments.align)
    if not align:
        return shapes
    if shapes == RUNTIME and canonical_shapes(align) != RUNTIME:
        raise UserError(f"runtime shapes have an alignment already, got --align {align}; leave out --align or --shapes")
    return align


def require_writable(file: Path) -> None:
    """Raise UserError unless the file can be written. Does not change it."""
    if not file.parent.is_dir():
        raise UserError(f"the folder {file.parent} for {file.name} does not exist; create it first")
    try:
        if file.is_file() or file.is_dir():
            file.open("a").close()
        elif not file.exists():
            tempfile.TemporaryFile(dir=file.parent).close()
    except OSError as error:
        raise UserError(f"cannot write {file} ({error.strerror or error}); name another file") from error


def peak_memory() -> int | None:
    """Peak resident set size of this process in bytes, None if the system does not report it.

    On Linux `ru_maxrss` is not used, as that of a forked child starts at its parent's value.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        peaks = re.findall(r"^VmHWM:\s*(\d+) kB$", status.read_text(), re.MULTILINE)
        return 1024 * int(peaks[0]) if peaks else None
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
