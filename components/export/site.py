"""A site that needs no server: an article whose figures follow a slider, and models that run in the browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from ..assets import ASSETS
from ..device import wllama
from ..device.files import writer
from ..i18n.language import ENGLISH, LANGUAGES, lazy_gettext, use_language
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import DENSE, Request
from ..state.session import Session
from ..state.settings import PROMPT
from ..ui.chart_bridge import PLOTLY
from .pages import fill
from .views import Published

MAX_BYTES = 8_000_000  # without models and WebAssembly
ENGINE, MODELS = "wllama", "models"  # folders of the site
SCRIPTS = (*(f"device/{name}.js" for name in ("files", "engine", "answers", "panel")), "published/site.js")
# A page whose headers isolate it from others may use several threads.
README = Template("""---
title: $title
sdk: static
app_file: index.html
custom_headers:
  cross-origin-opener-policy: same-origin
  cross-origin-embedder-policy: require-corp
  cross-origin-resource-policy: cross-origin
---
Made by `$command`. Any static host can serve this folder; locally, `python -m http.server` can. The charts and the
article also open from disk. The models run in the browser with $engine.
""")


class SiteModel(NamedTuple):
    """A GGUF file of the site: the percentage that is removed, its address, and its size in bytes."""

    percent: float
    url: str
    bytes: int


def model_path(percent: float) -> str:
    """The address of a model below the site's own."""
    return f"{MODELS}/{'dense' if percent == 0 else f'sliced-{percent:g}'}.gguf"


def write_models(
    job: Job, session: Session, request: Request, percents: Sequence[float], folder: Path
) -> list[SiteModel]:
    """Write the dense model and the slices at these percentages. Raises UserError if llama.cpp cannot run them."""
    (folder / MODELS).mkdir()
    models = []
    for done, percent in enumerate(percents):
        job.emit(Status(lazy_gettext("Writing models"), "busy", done, len(percents)))
        method = "intraslice" if percent else DENSE
        write, _ = writer(job, session, request.with_settings(sparsity=percent, locked=""), method)
        with job.waiting():
            write(path := folder / model_path(percent))
        models.append(SiteModel(percent, model_path(percent), path.stat().st_size))
    return models


def write_pages(folder: Path, published: Published, models: Sequence[SiteModel], command: str) -> int:
    """Write everything but the models; returns its size in bytes, without the WebAssembly files.

    Args:
        command: the shell command that makes the site.

    Raises:
        ValueError: it exceeds `MAX_BYTES`.
        UserError: the WebAssembly files cannot be fetched.
    """
    about = f"{wllama.PACKAGE.rpartition('/')[2]} {wllama.VERSION} ({wllama.LICENCE})"
    content = {"models": [model._asdict() for model in models], "engine": f"{ENGINE}/", "about": about}
    passage = f"((element) => {{ {_script('passage.js')} }})(document.getElementById('tokens'));"
    scripts = "".join(map(_script, SCRIPTS)) + passage
    device_style = _script("device/device.css")
    for code in LANGUAGES:
        with use_language(code):
            texts = {"own": escape(PROMPT), "languages": _languages(code), "command": escape(command)}
            text = fill("site.html", published, scripts, content, **texts)
        text = text.replace("</style>", f"{device_style}</style>", 1)
        (folder / _page_name(code)).write_text(text, encoding="utf-8")
    shutil.copyfile(PLOTLY, folder / "plotly.min.js")
    title = json.dumps(f"How much of {published.name} can be removed?")
    readme = README.substitute(title=title, command=command, engine=about)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if size > MAX_BYTES:
        raise ValueError(
            f"the site is {size / 1e6:.1f} MB without its models, expected at most {MAX_BYTES / 1e6:.0f} MB; use a "
            "smaller model or fewer --prompts"
        )
    shutil.copytree(wllama.fetch(), folder / ENGINE, ignore=shutil.ignore_patterns(".lock"))
    return size


def _page_name(code: str) -> str:
    return "index.html" if code == ENGLISH else f"{code}.html"


def _languages(current: str) -> str:
    """Links to the article in other languages (HTML)."""
    links = (
        entry.name
        if code == current
        else f'<a href="{_page_name(code)}" lang="{code}" hreflang="{code}">{entry.name}</a>'
        for code, entry in LANGUAGES.items()
    )
    return " · ".join(links)


def _script(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
