"""write static pages: one HTML file with a slider over stored results, or a site with models that run in the browser

This command connects the command line and the page, which do not import each other.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from intraslice.checkpoints.format import require_free, require_new_file, written_whole
from intraslice.cli.run import CommandResult, Run
from intraslice.core.cache import temporary_sibling
from intraslice.core.errors import UserError
from intraslice.records import Recipe

if TYPE_CHECKING:
    from ..state.request import Request
    from ..state.session import Session

EVAL_TOKENS = 4096  # of each of two dozen models
NOTHING_WRITTEN = "nothing was written. Free some space, or choose another folder"
SITE_PERCENTS = (0.0, 20.0, 30.0, 40.0)  # of a site's models


def add_options(command: argparse.ArgumentParser) -> None:
    """Add this command's own options. `--sparsity` is the slider's initial value."""
    add = command.add_argument
    command.set_defaults(order="one-shot", eval_tokens=EVAL_TOKENS)
    place = command.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", type=Path, metavar="FILE.html", help="one file, to send or to embed")
    help_text = "an article in every language of the page, with models that run in the browser"
    place.add_argument("--site", type=Path, metavar="FOLDER", help=help_text)
    help_text = "the same site, and the command that uploads it as a static Hugging Face Space"
    place.add_argument("--space", type=Path, metavar="FOLDER", help=help_text)
    help_text = "with --space: the Space's name on the Hub, which the address of its thumbnail contains"
    add("--space-name", default="", metavar="USER/NAME", help=help_text)
    help_text = (
        "the slider's steps (default: 0 to 0.6); with --site or --space: sparsities of the downloadable models "
        "(default: 0 0.2 0.3 0.4)"
    )
    add("--sparsities", nargs="+", type=float, metavar="F", help=help_text)
    help_text = "prompts that all three models answer (default: the page's prompts)"
    add("--prompts", nargs="+", metavar="TEXT", help=help_text)
    add("--language", default="en", metavar="CODE", help="the page's language: en or de")
    add(
        "--docs",
        default="",
        metavar="URL",
        help="with --site or --space: address of a documentation, which the article links to",
    )


def run(run: Run) -> CommandResult:
    """Measure all steps of the slider, unless they are cached, and write the file or the site atomically."""
    # Imported here, since the page takes a second to import, which would slow down all other commands.
    from ..i18n.language import LANGUAGES
    from ..state.request import from_recipe
    from ..state.session import Session

    arguments = run.arguments
    if arguments.device_map is not None:
        raise UserError("the page keeps its models in memory; leave --device-map out")
    if arguments.language not in LANGUAGES:
        raise UserError(f"language must be one of {', '.join(LANGUAGES)}, got {arguments.language!r}")
    session = Session(run.device, run.recipe.evaluation.tokens)
    request = from_recipe(run.recipe)
    if arguments.space_name:
        _require_space_name(arguments.space_name, has_space=arguments.space is not None)
    _require_same(run.recipe, request.recipe(session.evaluation_tokens))
    percents = [round(100 * value, 9) for value in arguments.sparsities or ()]
    write = _write_site if arguments.out is None else _write_page
    result, text = write(run, session, request, percents)
    return result | {"seconds": run.seconds}, text


def _write_page(run: Run, session: Session, request: Request, percents: Sequence[float]) -> CommandResult:
    """Measure the slider's steps, and write the file."""
    from ..export import measure
    from ..export.pages import page
    from ..export.views import PROMPTS, Choice
    from ..i18n.language import use_language

    file = require_new_file(run.arguments.out, ".html")
    choice = Choice(percents or Choice().percents, run.arguments.prompts or PROMPTS)
    with run.timed("measure"):
        published = measure.publish_now(session, request, choice, _report)
    with use_language(run.arguments.language):
        text = page(published)
    with written_whole(file, len(text)) as temporary_file:
        temporary_file.write_text(text, encoding="utf-8")
    points = [asdict(point) for point in published.sweep.points]
    size = file.stat().st_size
    result = {"out": str(file), "bytes": size, "rows": points, "protocol": run.recipe.protocol()}
    return result, f"wrote {file} ({size / 1e6:.1f} MB)\n{published.sweep.protocol}"


def _write_site(run: Run, session: Session, request: Request, percents: Sequence[float]) -> CommandResult:
    """Measure the slider's steps and those of the models, and write the site's folder."""
    from ..compare.passage_panel import SAMPLE
    from ..device import wllama
    from ..export import files, measure, site
    from ..export.views import PROMPTS, Choice

    arguments = run.arguments
    folder = (arguments.site or arguments.space).expanduser().resolve()
    require_free(folder)
    wllama.fetch()  # before minutes of work
    percents = sorted({0.0, *(percents or SITE_PERCENTS)})
    steps = sorted({*Choice().percents, *percents})
    choice = Choice(steps, arguments.prompts or PROMPTS, passage=SAMPLE)
    recipe = files.without_folders(request.recipe(session.evaluation_tokens))
    with run.timed("measure"):
        published = measure.publish_now(session, request, choice, _report)
    place = ["--site" if arguments.site else "--space", folder.name]
    place += ["--space-name", arguments.space_name] if arguments.space_name else []
    place += ["--docs", arguments.docs] if arguments.docs else []
    published = replace(published, command=files.command(recipe, session.device, place, percents, choice.prompts))
    try:
        with temporary_sibling(folder) as temporary:
            made = temporary / folder.name
            made.mkdir()
            with run.timed("models"):
                models = measure.run_now(
                    session, lambda job: site.write_models(job, session, request, percents, made), _report
                )
            pages = site.write_pages(
                made, published, models, arguments.docs, site.card_facts(recipe.model, arguments.space_name)
            )
            os.replace(made, folder)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}; {NOTHING_WRITTEN}") from error
    result: dict[str, Any] = {"out": str(folder), "bytes": pages, "models": models}
    sizes = f"{pages / 1e6:.1f} MB, and {len(models)} models of {sum(model['bytes'] for model in models) / 1e6:.0f} MB"
    lines = [f"wrote {folder}: {sizes}", f"serve it: python -m http.server --directory {shlex.quote(str(folder))}"]
    if arguments.space:
        name, path = arguments.space_name or "USER/NAME", shlex.quote(str(folder))
        # Without the first command, `hf upload` would create a Gradio Space, which needs a paid plan.
        create = f"hf repos create {name} --repo-type space --space-sdk static --exist-ok"
        lines.append(f"upload it: {create} && hf upload {name} {path} . --repo-type space")
    return result, "\n".join(lines)


def _require_space_name(name: str, *, has_space: bool) -> None:
    """Raise UserError for a name that is not USER/NAME on the Hub, or that no Space is written for."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not has_space:
        raise UserError("--space-name needs --space")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--space-name must be USER/NAME, got {name!r}") from error
    if name.count("/") != 1:
        raise UserError(f"--space-name must be USER/NAME, got {name!r}")


def _report(line: str) -> None:
    print(line, file=sys.stderr)


def _require_same(recipe: Recipe, page_recipe: Recipe) -> None:
    """Raise UserError for options that the page has no control for, and which `page_recipe` therefore lacks."""
    values = asdict(recipe)
    for part, expected in asdict(page_recipe).items():
        value = values[part]
        pairs = [(name, value[name], expected[name]) for name in value] if isinstance(value, dict) else []
        for name, got, page_value in pairs or [(part, value, expected)]:
            if got != page_value:
                where = "" if name == part else f" ({part})"
                raise UserError(
                    f"publish does not support {name} {got!r}{where}, because the page has no control for it; expected "
                    f"{page_value!r}"
                )
