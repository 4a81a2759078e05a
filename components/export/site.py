"""A site that needs no server: an article whose figures follow a slider, and models that run in the browser."""

import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path

from intraslice.core.errors import UserError

from ..device import wllama
from ..device.files import writer
from ..i18n.language import ENGLISH, LANGUAGES, gettext, lazy_gettext, use_language
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import DENSE, Request
from ..state.session import Session
from ..state.settings import PROMPT
from ..ui.chart_bridge import PLOTLY
from ..ui.figure import Json
from ..ui.scripts import DEVICE, asset, scoped
from . import pages
from .space import OnHub, write_readme
from .space import card_facts as card_facts
from .views import Published

ENGINE, MODELS = "wllama", "models"  # folders of the site
NOT_KNOWN = OnHub()


def write_models(job: Job, session: Session, request: Request, percents: Sequence[float], folder: Path) -> list[Json]:
    """Write the models at these percentages; returns each one's percentage, address and bytes. Raises UserError."""
    (folder / MODELS).mkdir()
    models = []
    for done, percent in enumerate(percents):
        job.emit(Status(lazy_gettext("Writing models"), "busy", done, len(percents)))
        method, name = ("intraslice", f"sliced-{percent:g}") if percent else (DENSE, "dense")
        write, _ = writer(job, session, request.with_settings(sparsity=percent, locked=""), method)
        url = f"{MODELS}/{name}.gguf"
        with job.waiting():
            write(folder / url)
        models.append({"percent": percent, "url": url, "bytes": (folder / url).stat().st_size})
    return models


def write_pages(
    folder: Path, published: Published, models: Sequence[Json], docs: str = "", on_hub: OnHub = NOT_KNOWN
) -> int:
    """Write everything but the models, with links to `docs`; returns its bytes, without the WebAssembly files.

    Raises UserError if it exceeds `MAX_BYTES` of pages.py, or if the WebAssembly files cannot be fetched.
    """
    more = {"models": list(models), "engine": f"{ENGINE}/", "about": wllama.ABOUT}
    passage = f"((element) => {{ {asset('passage.js')} }})(document.getElementById('tokens'));"
    scripts, style = scoped(*DEVICE) + passage + asset("published/site.js"), asset("device/device.css")
    for code in LANGUAGES:
        with use_language(code):
            texts = {"own": escape(PROMPT), "languages": _links(code, docs), "command": escape(published.command)}
            article = pages.article("site.html", published, **texts)
            text = pages.document(article, more | pages.content(published), "site", style, scripts)
        (folder / _page_name(code)).write_text(text, encoding="utf-8")
    shutil.copyfile(PLOTLY, folder / PLOTLY.name)
    write_readme(folder, published, on_hub)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    if size > pages.MAX_BYTES:
        raise UserError(
            "the site is {size:.1f} MB without its models, expected at most {limit:.0f} MB; use a smaller model or "
            "fewer --prompts",
            size=size / 1e6,
            limit=pages.MAX_BYTES / 1e6,
        )
    shutil.copytree(wllama.fetch(), folder / ENGINE, ignore=shutil.ignore_patterns(".lock"))
    return size


def _page_name(code: str) -> str:
    return "index.html" if code == ENGLISH else f"{code}.html"


def _links(current: str, docs: str) -> str:
    """Links to the article in other languages, and to the documentation if there is one (HTML)."""
    links = [
        entry.name
        if code == current
        else f'<a href="{_page_name(code)}" lang="{code}" hreflang="{code}">{entry.name}</a>'
        for code, entry in LANGUAGES.items()
    ]
    links += [f'<a href="{escape(docs)}">{gettext("Documentation")}</a>'] if docs else []
    return " · ".join(links)
