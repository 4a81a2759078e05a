"""Measures cells of the leaderboard, `assets/leaderboard.csv`: `python -m components.make_leaderboard --texts FOLDER`.

`python -m tests.texts FOLDER` writes the texts. Every stage is one sweep of the command line, whose points are cached,
as are the generations of a search: a run that was stopped continues where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.config import NO_RECOVERY

from .state.snapshots.leaderboard import FILE, SEARCH, WIKIPEDIA, Cell, merged, read, write

METHODS = ("intraslice", "flap", "wanda", "modegpt", "flatllm", "shortgpt", "crossmodule")
SPARSITIES = (0.2, 0.3, 0.4, 0.5)
STAGES = ("training-free", "searched", "recovered")
TEXTS = {"news": "lee.txt", "help": "help.txt", "source": "source.jsonl"}
DIGITS = 5  # significant


def measure(arguments: argparse.Namespace, stage: str) -> Iterator[Cell]:
    """The cells of a stage, of all texts."""
    a, about = arguments, {"model": arguments.name or arguments.model, "weights": arguments.weights}
    common = ["--model", a.model, "--order", "one-shot", "--dtype", a.dtype, "--eval-tokens", str(a.eval_tokens)]
    common += ["--threads", str(a.threads)] if a.threads else []
    sweep = ["sweep", *common, "--also-eval", *(str(a.texts / file) for file in TEXTS.values())]
    sweep += ["--no-speed"] if a.losses_only else ["--answers"]
    if stage == "searched":
        with tempfile.TemporaryDirectory() as folder:
            for sparsity in a.sparsities:
                file = Path(folder) / f"{sparsity:g}.json"
                searched = run(["search", *common, "--sparsities", str(sparsity), "--out", str(file)])
                about |= {"ratios": SEARCH, "passes": searched["plans"][0]["passes"]}
                sliced = ["--methods", "intraslice", "--estimators", str(file), "--sparsities", str(sparsity)]
                yield from cells(run([*sweep, *sliced]), about)
    else:
        sweep += ["--recover", "distill"] if stage == "recovered" else []
        points = ["--methods", *a.methods, "--estimators", "pca", "--sparsities", *map(str, a.sparsities)]
        yield from cells(run([*sweep, *points]), about)


def run(words: list[str]) -> dict[str, Any]:
    """The JSON result of a command of `python -m intraslice`."""
    arguments = parser().parse_args(words)
    result: dict[str, Any] = arguments.run(Run(arguments))[0]
    return result


def cells(result: dict[str, Any], about: dict[str, Any]) -> Iterator[Cell]:
    """A cell for every point of a sweep that could be sliced, and every text; `about` has values for all of them."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True).stdout
    for row in result["rows"]:
        if row["perplexity"] is None:
            continue
        common = {
            "parameters": row["dense_total"],
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
            "commit": commit.strip(),
        }
        for text, suffix in ((WIKIPEDIA, ""), *((text, f" {Path(file).stem}") for text, file in TEXTS.items())):
            losses = {
                "dense_perplexity": row[f"dense_perplexity{suffix}"],
                "perplexity": row[f"perplexity{suffix}"],
                "ratio": row[f"perplexity_ratio{suffix}"],
                "ratio_error": row[f"perplexity_ratio_error{suffix}"],
                "divergence": row[f"divergence{suffix}"],
                "divergence_error": row[f"divergence_error{suffix}"],
            }
            values = common | losses | about | {"text": text}
            yield Cell(**{name: _rounded(value) for name, value in values.items()})


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def main(argv: list[str] | None = None) -> None:
    """Measure the stages one after another, and write the file after each."""
    options = argparse.ArgumentParser(prog="python -m components.make_leaderboard", description=__doc__)
    add = options.add_argument
    add("--texts", type=Path, required=True, metavar="FOLDER", help="folder with the texts")
    add("--model", default="default", help="as for python -m intraslice")
    add("--name", help="the model's name in the page's list, if it is not that of --model")
    add("--weights", default="Q4_1", help="type of the GGUF file whose weights are dequantised (default: Q4_1)")
    add("--stages", nargs="+", default=STAGES, choices=STAGES)
    add("--methods", nargs="+", default=METHODS)
    add("--sparsities", nargs="+", type=float, default=SPARSITIES)
    add("--eval-tokens", type=int, default=2048, help="tokens of each text (default: 2048)")
    add("--dtype", default="bfloat16")
    add("--threads", type=int, help="number of CPU threads (default: PyTorch's)")
    add("--losses-only", action="store_true", help="measure no answers, and no speed, which needs an idle machine")
    arguments = options.parse_args(argv)
    for stage in arguments.stages:
        write(merged(read(FILE), tuple(measure(arguments, stage))), FILE)
        print(f"{stage}: written to {FILE}", flush=True)


if __name__ == "__main__":
    main()
