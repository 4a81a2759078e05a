"""A published page holds what was measured in one file that asks for nothing, or is not written; so does a site."""

import json
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_page import SOMEBODY, content_of, in_job, options_of, publisher, unpacked

from components.device import files as device_files
from components.device import wllama
from components.export import files, pages, panel, site
from components.export.views import Choice, Published
from components.i18n.language import LANGUAGES, use_language
from components.state.request import from_recipe
from components.ui.downloads import Downloads
from intraslice.__main__ import main
from intraslice.cli.parser import parser
from intraslice.cli.run import recipe_of
from intraslice.core.errors import UserError
from intraslice.evaluation.facts import encode_questions, measure_facts
from intraslice.evaluation.generation import generate_text

CHOICE = Choice((0, 30, 60), ("w10 w20 w30", "w7 <b>"), 6)


@pytest.fixture(scope="module")
def published(session, tiny) -> Published:
    return in_job(session, publisher(session).publish, tiny, CHOICE)


@pytest.fixture(scope="module")
def text(published) -> str:
    return pages.page(published)


@pytest.fixture(scope="module")
def content(text) -> dict:
    return content_of(text)


def test_equal_parts_are_packed_once_and_come_back() -> None:
    curve = [round(math.sin(step), 6) for step in range(400)]
    content = {"charts": [{"curve": curve, "at": step} for step in range(50)], "words": "short", "none": None}
    assert unpacked(pages.pack(content)) == content
    assert len(pages.pack(content)) < 1.5 * len(pages.pack({"charts": [{"curve": curve, "at": 0}]}))
    with pytest.raises(ValueError, match="JSON"):
        pages.pack([math.nan])


def test_every_step_says_what_the_session_measured(session, tiny, published, content) -> None:
    assert [step["percent"] for step in content["steps"]] == [0, 30, 60]
    assert content["first"] == 1  # the 30 % that the page is set to
    for index, percent in enumerate(CHOICE.percents):
        setting = tiny.with_settings(sparsity=percent)
        plan, measured = session.plan(setting), session.perplexities(setting)
        bars = [trace["y"] for trace in content["charts"]["ratios"][index]["data"] if trace["type"] == "bar"]
        for shown, module in zip(bars, ("attention", "mlp"), strict=True):
            assert shown == pytest.approx([getattr(layer, module) for layer in plan.layers], rel=1e-4, abs=1e-6)
        table = content["steps"][index]["parts"]["numbers"]
        cross = published.steps[index].cross
        assert (cross is None) == (percent == 60)  # which so few axes cannot come near
        for one in (measured.sliced, cross):
            words = (
                f"{one.value:.2f} ± {one.error:.2f}" if one else "removes 63.0%, too different for a fair comparison"
            )
            assert words in table
        shapes = content["charts"]["sweep"][index]["layout"]["shapes"]
        assert shapes[-1]["x0"] == pytest.approx(plan.removed, rel=1e-4)


def test_answers_and_facts_of_every_step_are_the_models_own(session, tiny, published, content) -> None:
    loaded = session.calibrated(tiny).loaded
    models = [in_job(session, session.slice, tiny.with_settings(sparsity=percent)) for percent in CHOICE.percents]
    for name, model in {"intraslice": models[-1], "dense": loaded.model}.items():
        words = "".join(generate_text(model, loaded.tokenizer, CHOICE.prompts[0], 6))
        assert published.steps[-1].answers[0][name].text == words
    assert len(content["steps"][-1]["answers"]) == 2
    for model, chart in zip(models, content["charts"]["facts"], strict=True):
        own = measure_facts(model, loaded.tokenizer, encode_questions(loaded.tokenizer), progress=False)
        column = next(column for column in chart["drawing"]["columns"] if column["colour"] == "intraslice")
        assert column["says"] == [fact.completion for fact in own]
        assert column["selects"] == [fact.chosen for fact in own]
        assert "Ask the models" not in json.dumps(chart)


def test_spectra_have_a_chart_a_layer_the_marks_move_and_axes_have_room_for_every_step(content, published) -> None:
    spectra = content["charts"]["spectra"]
    assert [len(step) for step in spectra] == [3, 3, 3]
    curves = [[trace["y"] for trace in step[1]["data"]] for step in spectra]
    rings = [step[1]["layout"]["shapes"] for step in spectra]
    assert curves[0] == curves[1] == curves[2]
    assert rings[1] != rings[2]
    drawn = content["charts"]["shift"]
    assert "Nothing is removed" in json.dumps(drawn[0])
    ends = [[chart["layout"][axis]["range"] for axis in ("yaxis", "yaxis2", "yaxis3")] for chart in drawn[1:]]
    assert ends[0] == ends[1]
    for axis, (low, high) in zip(("y", "y2", "y3"), ends[0], strict=True):
        traces = [trace for chart in drawn[1:] for trace in chart["data"] if trace["yaxis"] == axis]
        values = [value for trace in traces if "outlier" not in trace["name"] for value in trace["y"]]
        assert low <= min(values) <= max(values) <= high
    assert pages.shift_axis_limits(published.steps[:1]) == [1.05, -0.05, 1.05]


def test_the_file_asks_for_nothing_and_tells_no_folder(text, tiny) -> None:
    own = re.sub(r"<script>/\*.*?</script>", "", text, flags=re.S)  # without plotly.js
    assert len(own) < len(text) / 2
    assert "default-src 'none'" in own
    assert not re.search(r"\bsrc=|@import|url\((?!#)|fetch\(|XMLHttpRequest", own)
    assert not re.search(r"""href="(?!data:,|https://arxiv\.org/abs/)""", own)
    assert len(text.encode()) < pages.MAX_BYTES
    assert "w7 &lt;b&gt;" in own
    assert str(Path(tiny.settings.model).parent) not in own
    assert re.search(r"Perplexity on 256 tokens.*Calibrated on 8 x 32", own)


def test_a_page_or_a_site_past_its_bound_is_refused(published, measured, engine, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(pages, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="fewer values of --sparsities"):
        pages.page(published)
    with pytest.raises(ValueError, match=r"the site is \d\.\d MB without its models, expected at most 1 MB"):
        site.write_pages(tmp_path, measured, [])


OTHERWISE = {"estimator": "fisher", "bias": 1.1, "cap": 77, "order": "sequential"}


@pytest.mark.parametrize("changed", [{}, OTHERWISE, {"shapes": "runtime", "seed": 3}])
def test_the_command_in_the_file_makes_the_same(session, tiny, published, changed) -> None:
    tiny = tiny.with_settings(**changed)
    recipe, place = tiny.recipe(session.evaluation_tokens), ["--out", "tiny.html"]
    line = files.command(recipe, session.device, place, CHOICE.percents, CHOICE.prompts)
    python, minus_m, module, *words = shlex.split(line)
    assert (python, minus_m, module) == ("python", "-m", "intraslice")
    a = parser().parse_args(words)
    assert recipe_of(a) == recipe
    assert from_recipe(recipe_of(a)).with_settings(dtype="auto") == tiny
    assert (a.sparsities, tuple(a.prompts)) == ([0, 0.3, 0.6], CHOICE.prompts)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (CHOICE._replace(percents=(30,)), "2 to 61 steps, got 1"),
        (CHOICE._replace(percents=(0, 90)), "sparsity must be a number from 0 to 80, got 90"),
        (CHOICE._replace(percents=(0, 70)), r"at most the cap, 50%, got 70%; raise the cap or lower the sparsity"),
        (CHOICE._replace(percents=range(80)), "2 to 61 steps, got 80"),
        (CHOICE._replace(prompts=()), "1 to 8 prompts, got 0"),
        (CHOICE._replace(prompts=(" ",)), "a prompt is empty"),
        (CHOICE._replace(tokens=0), "Maximum new tokens must be a whole number from 1 to 2,048, got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(session, tiny, choice, words) -> None:
    with pytest.raises(UserError, match=words):
        in_job(session, publisher(session).publish, tiny.with_settings(cap=50, seed=99), choice)


def test_the_export_tab_gives_the_file_and_measures_nothing_twice(session, tiny, monkeypatch) -> None:
    monkeypatch.setattr(panel, "Choice", lambda: CHOICE._replace(prompts=("w9",)))
    own, downloads = publisher(session), Downloads()
    *told, last = panel.published(session, downloads, own, tiny, SOMEBODY)
    assert any("step 1 of 3" in event["progress"] for event in told if "progress" in event)
    assert Path(last["file"]).name == "tiny.html"
    assert f"{Path(last['file']).stat().st_size / 1e6:.1f} MB" in last["status"]
    monkeypatch.setattr("components.compare.measure.write_answers", None)
    *_, again = panel.published(session, downloads, own, tiny, SOMEBODY)
    assert Path(again["file"]).read_bytes() == Path(last["file"]).read_bytes()
    shown = panel.preview(session, tiny, 0, "w9", SOMEBODY)
    assert 'src="tiny.html" title="The cost of slicing tiny"' in shown["embed"]
    refused = panel.preview(session, tiny.with_settings(locked="99 mlp 10"), 0, "w9", SOMEBODY)
    assert [*refused] == ["about"]
    assert "99" in refused["about"]


@pytest.fixture
def publish(tiny, session, capsys):
    """Runs the command on the tiny model; its exit code and what it says."""

    def run(out: Path, *more: str) -> tuple[int, str, str]:
        options = [*options_of(tiny), "--eval-tokens", "256", "--sparsities", "0", "0.3", "--prompts", "w10"]
        return main(["publish", *options, "--out", str(out), *more]), *capsys.readouterr()

    return run


def test_the_command_writes_one_file(publish, tmp_path) -> None:
    code, said, told = publish(tmp_path / "page.html", "--sparsity", "0")
    (file,) = tmp_path.iterdir()
    assert (code, file.name) == (0, "page.html")
    assert "Perplexity on 256 tokens" in said
    assert "step 1 of 2" in told
    assert "Nothing is removed:" in file.read_text(encoding="utf-8")  # where its slider stands first


@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("there.html", (), "exists"),
        ("nowhere/page.html", (), "cannot write to"),
        ("page.txt", (), "end in .html"),
        ("page.html", ("--model", "nobody-has/such-a-model"), "nobody-has/such-a-model"),
        ("page.html", ("--targets", "text"), "does not support targets 'text' (calibration)"),
        ("page.html", ("--device-map", "disk"), "--device-map"),
        ("page.html", ("--lock", "0", "mlp", "5"), "does not support locked"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(publish, tmp_path, name, more, words) -> None:
    (tmp_path / "there.html").write_text("mine")
    code, said, told = publish(tmp_path / name, *more)
    assert (code, said) == (2, "")
    line = told.strip().splitlines()[-1]
    assert line.startswith("python -m intraslice: ")
    assert words in line
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"there.html": "mine"}


def test_in_german_it_is_all_german(published) -> None:
    with use_language("de"):
        german = pages.page(published)
    found = content_of(german)
    assert '<html lang="de">' in german
    assert "Was das Zuschneiden von tiny kostet" in german
    assert "--language de</pre>" in german
    assert re.search(r"<dd>Perplexität auf [\d.]+ Tokens in Fenstern von", german)
    step = found["steps"][1]
    assert step["said"].startswith("30 %, Perplexität ".replace(" %", "\u00a0%"))
    assert re.search(r"30\u00a0%</b> der Parameter|\d\u00a0%</b> der Parameter", step["parts"]["headline"])
    assert '<th scope="col">Modulübergreifend</th>' in step["parts"]["numbers"]
    charts_told = json.dumps(
        [chart[1] for place, chart in found["charts"].items() if place not in ("spectra", "facts")]
    )
    assert "Welche Schichten werden beschnitten" in charts_told
    assert not re.search(r"(?<![\w-])(the|removed|heads|perplexity)(?![\w-])", charts_told)


SITE_CHOICE = Choice((0, 30), ("w10 w20 w30",), 6, passage="w10 w20 w30 w40 w50")


@pytest.fixture(scope="module")
def measured(session, tiny) -> Published:
    return in_job(session, publisher(session).publish, tiny, SITE_CHOICE)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """WebAssembly files, and models of some bytes: a tiny model's tokenizer is none that llama.cpp has."""
    folder = tmp_path / "engine"
    folder.mkdir()
    for name in (*wllama.FILES, ".lock"):
        (folder / name).write_bytes(name.encode())
    monkeypatch.setattr(wllama, "fetch", lambda: folder)
    monkeypatch.setattr(device_files, "require_deci_layers", lambda *_: None)
    monkeypatch.setattr(device_files, "write_gguf", lambda *values, **_: values[2].write_bytes(b"GGUF"))
    return folder


def test_it_has_an_article_a_language_the_models_and_all_that_they_need(
    session, tiny, measured, engine, tmp_path
) -> None:
    (folder := tmp_path / "site").mkdir()
    models = in_job(session, site.write_models, session, tiny, (0.0, 30.0), folder)
    published = replace(measured, command="python -m intraslice publish --site 'my <site>'")
    site.write_pages(folder, published, models, "guide.html")
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    pages = {"index.html", "de.html", "plotly.min.js", "README.md", "thumbnail.png"}
    assert files == pages | {"models/dense.gguf", "models/sliced-30.gguf", "wllama/index.js", "wllama/wllama.wasm"}
    for code, name in {"en": "index.html", "de": "de.html"}.items():
        text = (folder / name).read_text(encoding="utf-8")
        assert f'<html lang="{code}">' in text
        others = re.findall(r'<a href="([^"]+)" lang="(\w+)"', text)
        assert len(others) == len(LANGUAGES) - 1
        assert all((folder / link).is_file() for link, _ in others)
        assert text.count('<a href="guide.html">') == 1
        assert "my &lt;site&gt;" in text
        words = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", text, flags=re.S).split()
        assert 1_000 < len(words) < 1_800
        assert "src=" not in text.replace('src="plotly.min.js"', "")  # nothing is asked of another host


def test_the_command_writes_it_whole_or_not_at_all(tiny, engine, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "out"
    options = [*options_of(tiny), "--eval-tokens", "256", "--prompts", "w10", "--space", str(out)]
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

    monkeypatch.setattr(device_files, "require_deci_layers", refuse)
    options[-1] = str(tmp_path / "other")
    assert main(["publish", *options, "--sparsities", "0.3"]) == 2
    assert "llama.cpp does not support it" in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "other" in path.name]
