"""Write a page that needs no server: one HTML file with a live slider, which opens without a network.

This command connects the command line and the page, which do not import each other.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from intraslice.checkpoints.format import require_new_file
from intraslice.cli.run import CommandResult, Run
from intraslice.core.cache import temporary_sibling
from intraslice.core.errors import UserError
from intraslice.distributed.sharing import size
from intraslice.reporting import Recipe

EVAL_TOKENS = 4096  # of each of two dozen models


def add_options(command: argparse.ArgumentParser) -> None:
    """Add this command's own options. `--sparsity` is the slider's initial value."""
    add = command.add_argument
    command.set_defaults(order="one-shot", eval_tokens=EVAL_TOKENS)
    add("--out", type=Path, required=True, metavar="FILE.html")
    steps = [percent / 100 for percent in range(0, 61, 5)]
    add("--sparsities", nargs="+", type=float, default=steps, metavar="F", help="the slider's steps")
    add(
        "--prompts", nargs="+", metavar="TEXT", help="prompts that all three models answer; default: the page's prompts"
    )
    add("--language", default="en", metavar="CODE", help="the page's language: en or de")


def run(run: Run) -> CommandResult:
    """Measure all steps of the slider, unless they are cached, and write the file atomically."""
    # Imported here, since the page takes a second to import, which would slow down all other commands.
    from ..export.published import measure
    from ..export.published.html import page
    from ..i18n.language import LANGUAGES, use_language
    from ..state.session import Session

    arguments = run.arguments
    if size() > 1:
        raise UserError(f"publish must run in one process, got {size()} processes; start it without torchrun")
    if arguments.device_map is not None:
        raise UserError("the page keeps its models in memory; leave --device-map out")
    if arguments.language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {arguments.language!r}")
    file = require_new_file(arguments.out, ".html")
    session = Session(run.device, run.recipe.evaluation.tokens)
    request = measure.request_from_recipe(run.recipe)
    _require_same(run.recipe, request.recipe(session.evaluation_tokens))
    percentages = [round(100 * sparsity, 9) for sparsity in arguments.sparsities]
    choice = measure.Choice(percentages, arguments.prompts or measure.PROMPTS)
    with run.timed("measure"):
        published = measure.publish_now(session, request, choice, lambda line: print(line, file=sys.stderr))
    try:
        with use_language(arguments.language):
            text = page(published)
    except ValueError as error:  # too large
        raise UserError(str(error)) from error
    try:
        with temporary_sibling(file) as folder:
            temporary_file = folder / file.name
            temporary_file.write_text(text, encoding="utf-8")
            os.replace(temporary_file, file)
    except OSError as error:
        raise UserError(f"cannot write {len(text) / 1e6:.0f} MB to {file}: {error}; nothing was kept") from error
    result: dict[str, Any] = {"out": str(file), "bytes": file.stat().st_size}
    points = [asdict(point) for point in published.sweep.points]
    result |= {"rows": points, "protocol": run.recipe.protocol(), "seconds": run.seconds}
    return result, f"wrote {file} ({result['bytes'] / 1e6:.1f} MB)\n{published.protocol}"


def _require_same(recipe: Recipe, page_recipe: Recipe) -> None:
    """Raise UserError for options that the page has no control for, and which `page_recipe` therefore lacks."""
    values = asdict(recipe)
    for part, expected in asdict(page_recipe).items():
        value = values[part]
        pairs = [(name, value[name], expected[name]) for name in value] if isinstance(value, dict) else []
        for name, got, page_value in pairs or [(part, value, expected)]:
            if got != page_value:
                raise UserError(f"{part}: {name} is {got!r}, which the page cannot be set to; expected {page_value!r}")
