"""Measures cells of the leaderboard, `assets/leaderboard.csv`.

    python -m tests.texts FOLDER
    python -m components.make_leaderboard --texts FOLDER --weights Q4_1

Points of sweeps and generations of searches are cached: a run that was stopped continues where it was. Cells of other
models, methods, stages and sparsities stay as they are.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.cli.search import DEPTH
from intraslice.core.config import NO_RECOVERY, CalibrationConfig, SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.evaluation.sweep import LOSSES
from intraslice.methods.registry import METHODS
from intraslice.pretrained.sources import SUGGESTED_MODELS

from .state.leaderboard import DTYPE, FILE, SEARCH, STAGES, TOKENS, WIKIPEDIA, Cell, merged, read, write

COMPARED = ("intraslice", "flap", "wanda", "modegpt", "flatllm", "shortgpt", "crossmodule")
SPARSITIES = (0.2, 0.3, 0.4, 0.5)
TEXTS = {"news": "lee.txt", "help": "help.txt", "source": "source.jsonl"}
LONGER = CalibrationConfig(sequences=128, samples=16)
CALIBRATIONS = {"longer calibration": LONGER}  # by stage, else the default
SEARCHED = ("intraslice", DEPTH)  # methods with a search
SEARCH_START, SEARCH_PASSES = "output-error", 100  # the estimator whose plan a search starts from, and its budget
DIGITS = 5  # significant
LOCK = Path(tempfile.gettempdir()) / "intraslice-leaderboard.lock"  # against another run that writes


def shared_words(
    arguments: argparse.Namespace, calibration: CalibrationConfig, commit: str
) -> tuple[list[str], dict[str, Any]]:
    """The words of all commands with this calibration, and values of all rows."""
    a = arguments
    sizes = {"sequences": calibration.sequences, "samples": calibration.samples}
    common = ["--model", a.model, "--order", "one-shot", "--dtype", DTYPE, "--eval-tokens", str(TOKENS)]
    common += [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    common += ["--threads", str(a.threads)] if a.threads else []
    return common, {"model": a.name, "weights": a.weights, "commit": commit, **sizes}


def sweep_words(arguments: argparse.Namespace, common: list[str]) -> list[str]:
    """The words of a sweep over all texts."""
    texts = [str(arguments.texts / file) for file in TEXTS.values()]
    return ["sweep", *common, "--also-eval", *texts, "--no-speed" if arguments.losses_only else "--answers"]


def measure(arguments: argparse.Namespace, stage: str, commit: str) -> Iterator[list[Cell]]:
    """The cells of a stage, of all texts, a sparsity at a time."""
    a = arguments
    if stage == "searched":
        for method in (method for method in SEARCHED if method in a.methods):
            yield from measure_searched(a, method, commit)
        return
    common, about = shared_words(a, CALIBRATIONS.get(stage, CalibrationConfig()), commit)
    recovery = ["--recover", "distill"] if stage == "recovered" else []
    sliced = ["--methods", *a.methods, "--estimators", *a.estimators]
    for sparsity in a.sparsities:
        yield list(cells(run([*sweep_words(a, common), "--sparsities", str(sparsity), *recovery, *sliced]), about))


def measure_searched(arguments: argparse.Namespace, method: str, commit: str) -> Iterator[list[Cell]]:
    """The cells of a method whose ratios are found by search, of all texts, a sparsity at a time.

    For `shortgpt` the search decides which modules are removed. The calibration decides where it starts, and how
    another module is narrowed until the size is right.
    """
    is_depth = method == DEPTH
    calibration = CalibrationConfig() if is_depth else LONGER
    common, about = shared_words(arguments, calibration, commit)
    # Dense passes are over the default calibration.
    relative = (calibration.sequences + calibration.samples) / CalibrationConfig().sequences
    for sparsity in arguments.sparsities:
        at = ["--sparsities", str(sparsity)]
        with tempfile.TemporaryDirectory() as folder:
            file = str(Path(folder) / ("ratios.csv" if is_depth else "importances.json"))
            kind = ["--depth"] if is_depth else ["--estimator", SEARCH_START]
            budget = ["--passes", str(SEARCH_PASSES / relative)]
            (plan,) = run(["search", *common, *at, *kind, *budget, "--out", file])["plans"]
            found = ["--ratios" if is_depth else "--estimators", file]
            result = run([*sweep_words(arguments, common), *at, "--methods", method, *found])
        yield list(cells(result, about | {"ratios": SEARCH, "passes": relative * plan["passes"]}))


def run(words: list[str]) -> dict[str, Any]:
    """The JSON result of a command of `python -m intraslice`."""
    arguments = parser().parse_args(words)
    result: dict[str, Any] = arguments.run(Run(arguments))[0]
    return result


def cells(result: dict[str, Any], about: dict[str, Any]) -> Iterator[Cell]:
    """A cell for every point of a sweep and every text; `about` has values of all of them.

    A point that could not be sliced, or whose perplexity is not finite, has none; stderr says why.
    """
    suffixes = {WIKIPEDIA: "", **{text: f" {Path(file).stem}" for text, file in TEXTS.items()}}
    for row in result["rows"]:
        perplexities = [row[f"perplexity{suffix}"] for suffix in suffixes.values()]
        if not all(value is not None and math.isfinite(value) for value in perplexities):
            reason = row["note"] or f"perplexities are {perplexities}"
            print(f"no cells of {row['method']} at {row['sparsity']}: {reason}", file=sys.stderr)
            continue
        common = {
            "parameters": int(row["dense_decoder"]),
            "method": row["method"],
            "ratios": row["estimator"] or "",
            "recovery": row.get("recovery") or NO_RECOVERY,
            "sparsity": row["sparsity"],
            "removed": row["removed_fraction"],
            "passes": row.get("recovery_training_passes") or 0.0,
            "prefill": row.get("prefill_ratio"),
            "decode": row.get("decode_ratio"),
            "loops": row.get("loops"),
            "answer_tokens": row.get("answer_tokens"),
            "date": row["date"],
        }
        for text, suffix in suffixes.items():
            losses = {name: row[f"{name}{suffix}"] for name in ("dense_perplexity", *LOSSES)}
            values = common | losses | about | {"text": text}
            yield Cell(**{name: rounded(value) for name, value in values.items()})


def rounded(value: Any) -> Any:
    """As it stands in a file: floats with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def shared_options(command: str, description: str | None, stages: Sequence[str]) -> argparse.ArgumentParser:
    """The options of this command and of `make_tasks`: which models are sliced, and how."""
    options = argparse.ArgumentParser(
        prog=f"python -m components.{command}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = options.add_argument
    add("--model", default="default", help="as for python -m intraslice")
    add("--name", help="the model's name in the page's list, if it is not that of --model")
    add("--weights", required=True, help="type of the weights, such as Q4_1 or bfloat16")
    add("--stages", nargs="+", default=stages, choices=stages)
    add("--methods", nargs="+", default=COMPARED, choices=list(METHODS))
    add(
        "--estimators",
        nargs="+",
        default=[SliceConfig().estimator],
        choices=list(ESTIMATORS),
        help="of intraslice, but for searches",
    )
    add("--sparsities", nargs="+", type=float, default=SPARSITIES)
    add("--threads", type=int, help="number of CPU threads (default: PyTorch's)")
    return options


def parsed(options: argparse.ArgumentParser, argv: list[str] | None) -> tuple[argparse.Namespace, str]:
    """The command line, with `name` set, and the commit of the code."""
    arguments = options.parse_args(argv)
    arguments.name = arguments.name or arguments.model
    if arguments.name not in SUGGESTED_MODELS:
        options.error(f"--name must be one of the page's models ({', '.join(SUGGESTED_MODELS)}), got {arguments.name}")
    describe = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return arguments, subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()


def main(argv: list[str] | None = None) -> None:
    """Measure the stages one after another, and write the file after each sparsity."""
    options = shared_options("make_leaderboard", __doc__, STAGES)
    add = options.add_argument
    add("--texts", type=Path, required=True, metavar="FOLDER", help="folder with the texts")
    add("--losses-only", action="store_true", help="measure no answers, and no speed, which needs an idle machine")
    arguments, commit = parsed(options, argv)
    if missing := [file for file in TEXTS.values() if not (arguments.texts / file).is_file()]:
        options.error(f"{arguments.texts} lacks {', '.join(missing)}; run `python -m tests.texts {arguments.texts}`")
    for stage in arguments.stages:
        try:
            for measured in measure(arguments, stage, commit):
                with FileLock(LOCK):
                    write(merged(read(FILE), tuple(measured)), FILE)
                print(f"{stage}: {len(measured)} cells written to {FILE}", flush=True)
        except (UserError, NumericalError) as error:
            sys.exit(f"python -m components.make_leaderboard: {error}")


if __name__ == "__main__":
    main()
