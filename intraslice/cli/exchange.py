"""The command that measures an estimator's plans into better ones, for `--estimator FILE.json`."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path

from intraslice.cli.run import Answer, Run
from intraslice.core.config import GRADIENT_GROUP
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.diagnostics.exchanges import EXCHANGES, Exchanged, Trials, exchange_parameters
from intraslice.distributed.sharing import speaks
from intraslice.planning.measured import importances_along
from intraslice.untrusted.importance_files import importances_json


def add_options(command: argparse.ArgumentParser) -> None:
    """What only this command takes."""
    add = command.add_argument
    add("--out", type=Path, required=True, metavar="FILE.json", help="importances, for --estimator")
    explanation = "sizes that are measured, each from the one before; ratios between them follow straight lines"
    add("--sparsities", nargs="+", type=float, default=[0.2, 0.3, 0.4, 0.5], metavar="F", help=explanation)
    add("--exchanges", type=int, default=EXCHANGES, metavar="N", help="that are tried at each size")
    add("--windows", type=int, default=4, metavar="N", help="calibration sequences that they are judged on")


def exchange(run: Run) -> Answer:
    """Move parameters between modules while KL falls; writes importances whose plans have the ratios that come out."""
    a, slicing = run.arguments, run.recipe.slicing
    if a.out.suffix != ".json" or not a.out.parent.is_dir():
        raise UserError(f"{a.out} is no place for the importances; expected a .json file in a folder that is there")
    if not 2 <= a.windows <= a.sequences or a.exchanges < 1:
        raise UserError(
            f"expected --windows from 2 to {a.sequences}, the calibration's sequences, and --exchanges from 1"
        )
    configs = [replace(slicing, sparsity=sparsity) for sparsity in sorted(set(a.sparsities))]
    usual = (slicing.head_fraction, slicing.gradient_group) == (None, GRADIENT_GROUP)
    if ESTIMATORS[slicing.estimator].importance is None or not usual:
        raise UserError(
            "there are no importances to begin with; expected an estimator that has some, in its usual units"
        )
    loaded = run.load_dense()
    stats, tokens = run.calibrate(loaded)
    path: list[Exchanged] = []
    for config in configs:
        with run.timed("exchange"):
            trials = Trials(a.exchanges, a.seed)
            path.append(exchange_parameters(loaded, stats, tokens[: a.windows], config, path[-1:], trials))
    importances = importances_along(stats.profile, [(one.sparsity, one.ratios) for one in path], slicing.estimator)
    if speaks():
        a.out.write_text(importances_json(importances), encoding="utf-8")
    lines = [
        f"{one.sparsity:.0%} removed: KL {one.before:.4f} -> {one.after:.4f} nats a token, "
        f"{one.stayed} of {a.exchanges} exchanges stayed"
        for one in path
    ]
    lines.append(f"importances are in {a.out}: --estimator {a.out}")
    plans = [
        asdict(one) | {"ratios": [(one.ratios[n, "attention"], one.ratios[n, "mlp"]) for n in range(len(stats.layers))]}
        for one in path
    ]
    return {"plans": plans, "file": str(a.out), "protocol": run.recipe.protocol(), "seconds": run.seconds}, "\n".join(
        lines
    )
