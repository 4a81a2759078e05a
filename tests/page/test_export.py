"""What is taken home is what the page shows: through the command line, the zip, the plan and the report."""

import json
import re
import shlex
import zipfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_page import SOMEBODY, content_of, in_job

from components.export import files as exports
from components.export import panel
from components.gradio_compat.requests import BYTES_PER_INODE
from components.limits import DOWNLOAD_SECONDS
from components.ratios.charts import ratio_chart
from components.state.request import Request
from components.state.session import Session
from components.sweep.views import SweepChoice
from components.ui import downloads as module_of_downloads
from components.ui.downloads import Downloads
from intraslice.__main__ import main
from intraslice.checkpoints.format import WEIGHTS
from intraslice.cli.parser import parser
from intraslice.cli.run import recipe_of
from intraslice.core.errors import UserError
from intraslice.evaluation.generation import generate_text
from intraslice.records import Recipe

PROMPT = "w10 w20 w30"
LOCKED = "1 mlp 7, 0 attention 55, 2 mlp neurons 77, 0 attention head 4 keep, 2 attention head 1 remove"
SETTINGS = {
    "as it opens": {},
    "by hand": {"sparsity": 41, "estimator": "fisher", "bias": 1.05, "cap": 77, "locked": LOCKED}
    | {"dtype": "bfloat16", "samples": 2},
    "the paper's order": {"sparsity": 50, "order": "sequential", "seed": 3, "dtype": "float32"},
    "recovered": {"sparsity": 45, "recovery": "distill", "dtype": "float32"},
    "for a runtime": {"shapes": "runtime", "cap": 100, "locked": "1 mlp 100, 0 attention head 3 remove"},
}


@pytest.fixture
def downloads() -> Downloads:
    return Downloads()


SLOW = ("as it opens", "the paper's order")  # what they set "by hand" and the library's tests set, too


@pytest.fixture(
    params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SETTINGS], scope="module"
)
def settings(request, tiny) -> Request:
    return tiny.with_settings(**SETTINGS[request.param])


def made(session: Session, settings: Request, downloads: Downloads) -> Path:
    return in_job(session, exports.write_checkpoint, session, settings, downloads).path


def test_the_command_lines_words_mean_the_pages_own_recipe(session, settings):
    def recipe_by(request: Request) -> Recipe:
        words = exports.command_arguments(request.recipe(session.evaluation_tokens), session.device)
        return recipe_of(parser().parse_args(words))

    assert recipe_by(settings) == settings.recipe(session.evaluation_tokens)
    uploaded = settings.with_settings(upload="/somewhere/private/mine.txt")
    assert recipe_by(uploaded).calibration.text == "mine.txt"


def test_the_command_lines_numbers_and_words_are_the_pages(session, settings, capsys, downloads, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(session.prepare(settings, "somebody"))[-1].kind == "ready"
    assert list(session.measure(settings, "somebody"))[-1].kind == "ready"
    evaluate, slice_, generate = exports.command_lines(session, settings, PROMPT).splitlines()
    assert "--eval-tokens" not in generate  # which has no use for it, and would say so
    results = {}
    for line in (evaluate, slice_, generate):
        python, minus_m, module, *words = shlex.split(line)
        assert (python, minus_m, module) == ("python", "-m", "intraslice")
        assert main([*words, "--json"]) == 0
        results[words[0]] = json.loads(capsys.readouterr().out)
    measured, plan = session.perplexities(settings), session.plan(settings)
    assert results["evaluate"]["perplexity"] == dict(zip(("dense", "sliced"), measured.values, strict=True))
    assert results["evaluate"]["parameters"]["sliced_total"] == plan.parameters_sliced
    assert results["evaluate"]["removed_fraction"] == pytest.approx(plan.removed)
    assert results["evaluate"]["ratios"] == [[layer.attention, layer.mlp] for layer in plan.layers]

    # One greedy text: of the page's model, of the command line, and of the zip through the snippet that goes with it.
    tokenizer = session.calibrated(settings).loaded.tokenizer
    text = "".join(generate_text(in_job(session, session.slice, settings), tokenizer, PROMPT))
    assert results["generate"]["text"]["sliced"] == text
    unpacked = tmp_path / exports.checkpoint_name(settings)
    written = unpacked.rename(tmp_path / "written")
    zipfile.ZipFile(made(session, settings, downloads)).extractall(tmp_path)
    snippet = exports.snippet(settings, PROMPT)
    assert re.findall(r"(?:import|from) .*", snippet) == ["import intraslice"]  # and not the page
    exec(snippet, {})
    assert capsys.readouterr().out == f"{text}\n"
    records = [json.loads((folder / "intraslice.json").read_text()) for folder in (unpacked, written)]
    assert records[0] == records[1]
    assert (unpacked / WEIGHTS).read_bytes() == (written / WEIGHTS).read_bytes()


def test_a_file_for_llama_cpp_is_of_the_pages_slice(session, tiny, downloads, monkeypatch) -> None:
    with pytest.raises(UserError, match="tokenizer"):  # words in a table are none that llama.cpp has
        in_job(session, exports.write_gguf_file, session, tiny, downloads)
    written = []

    def write(model, tokenizer, path, gguf_type, record, progress) -> SimpleNamespace:
        written.append((model, gguf_type, record))
        path.write_bytes(b"GGUF")
        return SimpleNamespace(padding_bytes=len(written[1:]) * 1_500_000)

    monkeypatch.setattr(exports, "write_gguf", write)
    path, words = in_job(session, exports.write_gguf_file, session, tiny, downloads)
    assert words == "no padding"
    assert path.name == f"{exports.checkpoint_name(tiny)}.gguf"
    assert written == [(in_job(session, session.slice, tiny), "f16", exports.plan_record(session, tiny))]
    *_, last = panel.gguf(session, downloads, tiny, "q4_0", SOMEBODY)
    assert written[1][1] == "q4_0"
    with pytest.raises(UserError, match="GGUF type must be one of f16, q8_0, q5_0, q4_0, got 'q2_k'"):
        in_job(session, exports.write_gguf_file, session, tiny, downloads, "q2_k")
    assert f"{path.stem}-q4_0.gguf, 0.0 MB, 1.5 MB of padding" in last["progress"]


def test_nothing_sliced_is_nothing_to_save_and_a_prompt_is_quoted(session, tiny, downloads) -> None:
    with pytest.raises(ValueError, match="0%"):
        made(session, tiny.with_settings(sparsity=0), downloads)
    nasty = """It's "so"; $(rm) \\ """
    line = exports.command_lines(session, tiny, nasty).splitlines()[2]
    assert shlex.split(line)[-1] == nasty
    assert repr(nasty) in exports.snippet(tiny, nasty)


def test_downloads_keep_what_is_fresh_then_the_newest_and_end_with_the_app(monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_EXPORTS", str(4 * BYTES_PER_INODE))  # two files, each in a folder
    downloads, clock = Downloads(), SimpleNamespace(monotonic=lambda: 1000.0)
    monkeypatch.setattr(module_of_downloads, "time", clock)
    put = partial(downloads.put, "file", lambda path: path.write_bytes(b"12345"))
    paths = [put(), put()]
    for size in (0, BYTES_PER_INODE):  # told before, or found once it is written
        with pytest.raises(UserError, match="Try again in 10 min"):
            put(size)
    clock.monotonic = lambda: 1000.0 + DOWNLOAD_SECONDS + 1
    paths.append(put())
    assert [path.exists() for path in paths] == [False, True, True]
    with pytest.raises(ZeroDivisionError):
        downloads.put("broken", lambda path: 1 / 0, 5)
    clock.monotonic = lambda: 1000.0 + 2 * DOWNLOAD_SECONDS + 2
    large = downloads.put("large", lambda path: path.write_bytes(bytes(2**20)), 2**20)
    assert [path.exists() for path in (*paths, large)] == [False, False, False, True]
    home = large.parent.parent
    assert {entry.name for entry in home.iterdir()} == {large.parent.name}
    del downloads, put
    assert not home.exists()


def test_the_report_stands_alone(session, tiny, downloads) -> None:
    list(session.measure(tiny, "somebody"))
    plan, measured = session.plan(tiny), session.perplexities(tiny)
    prompt = "</script><b>"
    path = Path(panel.report(session, downloads, tiny, 1, prompt, SweepChoice([], [], [], False, [])))
    assert path.name == f"{exports.checkpoint_name(tiny)}.html"
    text = re.sub(r"<script>/\*.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.S)  # without plotly.js
    assert not re.search(r"""\bsrc=|https?://|href="(?!data:,)|@import|url\((?!#)|fetch\(|XMLHttpRequest""", text)
    assert prompt not in text
    numbers = f"{measured.sliced.value:.2f}", f"{plan.layers[1].mlp:.1%}"
    for words in (*numbers, "windows of 32", "--eval-tokens 256", "pca"):
        assert words in text  # also without a script
    content = content_of(text)
    assert [len(steps) for steps in content["charts"].values()] == [1, 1]
    ratios, importances = (chart for (chart,) in content["charts"].values())
    assert ratios["data"][0]["y"] == ratio_chart(plan).data[0]["y"]
    assert ratios["table"]["rows"] == ratio_chart(plan).rows
    assert "Bars: planned ratio of each module" in ratios["note"]
    assert "Click" not in ratios["note"] + importances["note"]
    assert (ratios["layers"], content["layer"]) == (0, 1)  # nothing is chosen there
