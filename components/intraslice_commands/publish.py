"""Write a page without a server: one HTML file with a live slider, which opens anywhere without a network.

This joins the command line and the page, which do not know each other, as `app.py` joins the page's parts.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intraslice.checkpoints.format import require_new_file
from intraslice.cli.run import Answer, Run
from intraslice.core.cache import scratch_beside
from intraslice.core.errors import UserError
from intraslice.distributed.sharing import size
from intraslice.reporting import Recipe

EVAL_TOKENS = 4096  # of each of two dozen models


def add_options(command: argparse.ArgumentParser) -> None:
    """What only this command takes; `--sparsity` is where the slider stands first."""
    add = command.add_argument
    command.set_defaults(order="one-shot", eval_tokens=EVAL_TOKENS)
    add("--out", type=Path, required=True, metavar="FILE.html")
    steps = [percent / 100 for percent in range(0, 61, 5)]
    add("--sparsities", nargs="+", type=float, default=steps, metavar="F", help="the slider's steps")
    add("--prompts", nargs="+", metavar="TEXT", help="that all three models answer; by default the page's own")
    add("--language", default="en", metavar="CODE", help="of the page's words: en or de")


def run(run: Run) -> Answer:
    """Measure what the slider shows, or find it measured, and write the file: whole or not at all."""
    # The page takes a second to import, which no other command has to wait for.
    from components.export.published import measure
    from components.export.published.html import page
    from components.i18n.language import LANGUAGES, use_language
    from components.state.session import Session

    a = run.arguments
    if size() > 1:
        raise UserError(f"one process publishes and there are {size()}; start it without torchrun")
    if a.device_map is not None:
        raise UserError("the page keeps its models in memory; leave --device-map out")
    if a.language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {a.language!r}")
    file = require_new_file(a.out, ".html")
    session = Session(run.device, run.recipe.evaluation.tokens)
    request = measure.request_of(run.recipe)
    _require_same(run.recipe, request.recipe(session.evaluation_tokens))
    choice = measure.Choice([round(100 * part, 9) for part in a.sparsities], a.prompts or measure.PROMPTS)
    with run.timed("measure"):
        published = measure.to_the_end(session, request, choice, lambda line: print(line, file=sys.stderr))
    try:
        with use_language(a.language):
            text = page(published)
    except ValueError as problem:  # too large
        raise UserError(str(problem)) from problem
    try:
        with scratch_beside(file) as scratch:
            draft = scratch / file.name
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, file)
    except OSError as error:
        raise UserError(f"cannot write {len(text) / 1e6:.0f} MB to {file}: {error}; nothing was kept") from error
    written: dict[str, Any] = {"out": str(file), "bytes": file.stat().st_size}
    points = [asdict(point) for point in published.sweep.points]
    result = written | {"rows": points, "protocol": run.recipe.protocol(), "seconds": run.seconds}
    return result, f"wrote {file} ({written['bytes'] / 1e6:.1f} MB)\n{published.protocol}"


def _require_same(asked: Recipe, page: Recipe) -> None:
    """Raise UserError for options that the page has no control for."""
    for part, wanted in asdict(page).items():
        given = asdict(asked)[part]
        pairs = [(name, given[name], wanted[name]) for name in given] if isinstance(given, dict) else []
        for name, got, want in pairs or [(part, given, wanted)]:
            if got != want:
                raise UserError(f"{part}: {name} is {got!r}, which the page cannot be set to; expected {want!r}")
