"""A published site: an article in every language over one set of measurements, and the models that it names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tiny_page import in_job, publisher

from components.device import files as device_files
from components.device import wllama
from components.export.published import site
from components.export.published.views import Choice, Published
from components.i18n.language import LANGUAGES
from intraslice.__main__ import main
from intraslice.core.errors import UserError

CHOICE = Choice((0, 30), ("w10 w20 w30",), 6, passage="w10 w20 w30 w40 w50")
PERCENTS = (0.0, 30.0)


@pytest.fixture(scope="module")
def published(session, tiny) -> Published:
    return in_job(session, publisher(session).publish, tiny, CHOICE)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """WebAssembly files, and models of some bytes: a tiny model's tokenizer is none that llama.cpp has."""
    folder = tmp_path / "engine"
    folder.mkdir()
    for name in (*wllama.FILES, ".lock"):
        (folder / name).write_bytes(name.encode())
    monkeypatch.setattr(wllama, "fetch", lambda: folder)
    monkeypatch.setattr(device_files, "require_deci", lambda *_: None)
    monkeypatch.setattr(
        device_files, "write_gguf", lambda model, tokenizer, path, kind, name, progress: path.write_bytes(b"GGUF")
    )
    return folder


@pytest.fixture
def folder(tmp_path: Path, session, tiny, published, engine) -> Path:
    made = tmp_path / "site"
    made.mkdir()
    models = in_job(session, site.write_models, session, tiny, PERCENTS, made)
    site.write_pages(made, published, models, "python -m intraslice publish --site 'my <site>'")
    return made


def test_it_has_an_article_a_language_the_models_and_all_that_they_need(folder) -> None:
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    pages = {"index.html", "de.html", "plotly.min.js", "README.md"}
    assert files == pages | {"models/dense.gguf", "models/sliced-30.gguf", "wllama/index.js", "wllama/wllama.wasm"}
    for code, name in {"en": "index.html", "de": "de.html"}.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert f'<html lang="{code}">' in text
        others = re.findall(r'<a href="([^"]+)" lang="(\w+)"', text)
        assert len(others) == len(LANGUAGES) - 1
        assert all((folder / link).is_file() for link, _ in others)
        assert "my &lt;site&gt;" in text
        words = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", text, flags=re.S).split()
        assert 1_000 < len(words) < 1_800
        assert "src=" not in text.replace('src="plotly.min.js"', "")  # nothing is asked of another host
    front = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    assert "sdk: static" in front
    assert "cross-origin-embedder-policy: require-corp" in front


def test_a_site_that_is_too_large_is_refused(folder, published, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(site, "MAX_BYTES", 1_000_000)
    (tmp_path / "large").mkdir()
    with pytest.raises(ValueError, match=r"the site is \d\.\d MB without its models, expected at most 1 MB"):
        site.write_pages(tmp_path / "large", published, [], "")


def test_the_command_writes_it_whole_or_not_at_all(tiny, engine, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    text = tiny.settings.text
    options = ["--model", tiny.settings.model, "--calibration", text, "--eval", text, "--sequences", "8"]
    options += ["--length", "32", "--eval-tokens", "256", "--prompts", "w10", "--site", str(out)]
    monkeypatch.setattr("components.compare.passage_panel.SAMPLE", "w10 w20 w30")
    monkeypatch.setattr(Choice.__new__, "__defaults__", ((0.0, 20.0), *Choice.__new__.__defaults__[1:]))
    assert main(["publish", *options, "--sparsities", "0.3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [model["percent"] for model in said["models"]] == [0, 30]
    assert (out / "index.html").is_file()
    assert main(["publish", *options]) == 2
    assert "exists and is not empty" in capsys.readouterr().err

    def refuse(*_: object) -> None:
        raise UserError("llama.cpp does not support it")

    monkeypatch.setattr(device_files, "require_deci", refuse)
    options[-1] = str(tmp_path / "other")
    assert main(["publish", *options, "--sparsities", "0.3"]) == 2
    assert "llama.cpp does not support it" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "other" in path.name]
