"""The site of docs/: it builds without a warning, and its reference describes every public name."""

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from test_documents import ROOT

import intraslice

for package in ("sphinx", "furo", "myst_parser"):  # of docs/requirements.txt
    pytest.importorskip(package)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "index.html").write_text("the article")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", folder / "doctrees", "docs", folder]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


def test_it_has_a_page_for_every_document_and_leaves_the_article_in_front(site) -> None:
    names = {path.stem for path in (ROOT / "docs").glob("*.md")}
    usage = (site / "usage.html").read_text(encoding="utf-8")
    assert {name for name in names if f'href="{name}.html' not in usage} == {"usage"}
    assert (site / "index.html").read_text() == "the article"
    assert 'href="index.html"' in usage
    assert names | {"llms"} == {path.stem for path in (*site.glob("*.md"), *site.glob("*.txt"))}


def test_the_reference_describes_every_public_name_with_its_parameters_and_shapes(site) -> None:
    text = (site / "reference.html").read_text(encoding="utf-8")
    assert [name for name in intraslice.__all__ if f'id="intraslice.{name}"' not in text] == []
    plain = " ".join(re.sub(r"<[^>]+>", "", text).split())
    for config in (intraslice.SliceConfig, intraslice.CalibrationConfig, intraslice.EvaluationConfig):
        helps = [field.metadata["help"] for field in fields(config) if field.metadata]
        assert [one for one in helps if one[:20] not in plain] == []
    assert "sequences length" in plain


def test_the_results_have_the_leaderboards_charts(site) -> None:
    assert 'src="leaderboard.html"' in (site / "results.html").read_text(encoding="utf-8")
    charts = (site / "leaderboard.html").read_text(encoding="utf-8")
    assert charts.count('class="isx-card"') == 16  # three models and all of them, on four texts
