"""The command that measures an estimator's importances into better ones, for `--estimator FILE.json`."""

from __future__ import annotations

import argparse
from pathlib import Path

from intraslice.cli.run import Answer, Run, show
from intraslice.config import GRADIENT_GROUP
from intraslice.diagnostics.curves import RATIOS, corrected_importances, measure_attention_curves
from intraslice.errors import UserError
from intraslice.progress import finish
from intraslice.registry import ESTIMATORS
from intraslice.untrusted.importance_files import importances_json


def add_options(command: argparse.ArgumentParser) -> None:
    """What only this command takes."""
    command.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="importances, for --estimator")
    explanation = "calibration sequences that the curves are measured on"
    command.add_argument("--windows", type=int, default=4, metavar="N", help=explanation)


def curves(run: Run) -> Answer:
    """KL of every layer's attention, cut alone ever further; writes importances that are corrected by it."""
    a, slicing = run.arguments, run.recipe.slicing
    if a.out.suffix != ".json" or not a.out.parent.is_dir():
        raise UserError(f"{a.out} is no place for the importances; wanted a .json file in a folder that is there")
    if not 1 <= a.windows <= a.sequences:
        raise UserError(f"windows is {a.windows}; wanted 1 to {a.sequences}, the calibration's sequences")
    usual = (slicing.head_fraction, slicing.gradient_group) == (None, GRADIENT_GROUP)
    if ESTIMATORS[slicing.estimator].importance is None or not usual:
        raise UserError("there are no importances to correct; wanted an estimator that has some, in its usual units")
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    with run.timed("curves"):
        found = finish(measure_attention_curves(loaded, stats, tokens[: a.windows]), show)
    a.out.write_text(importances_json(corrected_importances(stats, found, slicing.estimator)), encoding="utf-8")
    result = {"ratios": RATIOS, "attention": found, "file": str(a.out)}
    lines = [f"KL of each layer's attention alone, nats a token, at {', '.join(map(str, RATIOS))}:"]
    lines += [f"{layer:5} " + " ".join(f"{value:8.4f}" for value in row) for layer, row in enumerate(found)]
    lines.append(f"importances are in {a.out}: --estimator {a.out}")
    return result | {"protocol": run.recipe.protocol(), "seconds": run.seconds}, "\n".join(lines)
