"""Settings of the site; in a clone, `python -m sphinx -W docs site` builds it. The documents can be read without it."""

import re
import shutil
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import intraslice
from components.export.pages import chart_page
from components.state.leaderboard import cells
from components.sweep.leaderboard.charts import TEXTS, size_chart, sparsity_chart

project, release = "IntraSlice Explorer", intraslice.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "usage"  # index.html is the article of `python -m intraslice publish --site`
html_theme, html_title, html_copy_source = "furo", f"{project} {release}", False
html_theme_options = {"announcement": '<a href="index.html">The article: how much can be removed?</a>'}
myst_heading_anchors = 4  # like GitHub's
default_role, smartquotes = "code", False  # `name` and --option in docstrings
autodoc_member_order = "bysource"
CHARTS = "leaderboard.html"
FRAME = f'<iframe src="{CHARTS}" title="Leaderboard" style="width:100%;height:780px;border:0" loading="lazy"></iframe>'


def add_parts(app, document, source):
    """Add what only the site has: the list of documents, in the order of llms.txt, and the leaderboard's charts."""
    if document == root_doc:
        names = re.findall(r"\((\w+)\.md\)", Path(app.srcdir, "llms.txt").read_text(encoding="utf-8"))
        names.sort(key="assistants".__eq__)  # last
        entries = "\n".join("self" if name == root_doc else name for name in names)
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    source[0] = source[0].replace("<!-- charts -->", FRAME)


def add_fields(app, what, name, value, options, lines):
    """Describe the fields of a configuration as the command line does."""
    if what == "class" and is_dataclass(value):
        lines += [f":param {field.name}: {field.metadata['help']}" for field in fields(value) if field.metadata]


def add_files(app, error):
    """Add the documents as Markdown, for assistants, and a page with charts of every model and text."""
    for document in (*Path(app.srcdir).glob("*.md"), Path(app.srcdir, "llms.txt")):
        shutil.copy(document, app.outdir)
    charts = []
    for text in TEXTS:
        on_text = [cell for cell in cells() if cell.text == text]
        for model in dict.fromkeys(cell.model_name for cell in on_text):
            chart = sparsity_chart([cell for cell in on_text if cell.model_name == model])
            charts.append(replace(chart, title=f"{model} on {TEXTS[text]}"))
        charts.append(replace(size_chart(on_text), title=f"All models on {TEXTS[text]}, at 30%"))
    page = chart_page(charts, "<h1>Leaderboard</h1>", table=False)
    Path(app.outdir, CHARTS).write_text(page, encoding="utf-8")


def setup(app):
    app.connect("source-read", add_parts)
    app.connect("autodoc-process-docstring", add_fields)
    app.connect("build-finished", add_files)
