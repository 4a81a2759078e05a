"""The paper's table on a tiny model: its numbers are the sweep's, and what is not the paper's protocol is said."""

from __future__ import annotations

import json

import pytest

from intraslice import data
from intraslice.__main__ import main
from intraslice.cli import paper
from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.errors import UserError

FEW = ["--sequences", "4", "--length", "24", "--device", "cpu", "--dtype", "float32"]


@pytest.fixture
def words(tmp_path, tiny_llama_gqa, word_tokenizer, monkeypatch) -> list[str]:
    """A tiny model and a text of its words, with which the command can be run."""
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "cache"))
    tiny_llama_gqa().save_pretrained(tmp_path / "tiny")
    vocabulary = [f"w{index}" for index in range(4, 256)]
    word_tokenizer(vocabulary).save_pretrained(tmp_path / "tiny")
    documents = [" ".join(vocabulary[(7 * start + 3 * step) % 252] for step in range(30)) for start in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents))
    text = str(tmp_path / "text.txt")
    return ["--model", str(tmp_path / "tiny"), "--calibration", text, "--eval", text, *FEW]


def test_the_table_has_what_a_sweep_finds_beside_the_published(words, capsys):
    chosen = ["--methods", "crossmodule", "intraslice", "--sparsities", "0.2", "0.3"]
    assert main(["paper", *words, *chosen, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    # All windows of the held-out fifth, which has 360 tokens.
    assert found["protocol"]["eval_tokens"] == 360
    assert main(["sweep", *words, *chosen, "--estimators", "pca", "--no-speed", "--eval-tokens", "360", "--json"]) == 0
    swept = json.loads(capsys.readouterr().out)["rows"]
    for row, point in zip(found["rows"], swept, strict=True):
        assert {name: row[name] for name in ("method", "sparsity", "perplexity", "removed_fraction")}.items() <= (
            point.items()
        )
        assert row["times_dense"] == point["perplexity"] / point["dense_perplexity"]
    published = {(row["method"], row["sparsity"]): row["published_times_dense"] for row in found["rows"]}
    assert published[("intraslice", 0.3)] == pytest.approx(7.11 / 5.47)
    assert published[("intraslice", 0.2)] is None
    assert [line.split(",")[0].split(":")[0] for line in found["differences"]] == [
        "text",
        "windows of 24 tokens",
        "calibrated on 4 x 24 tokens",
    ]
    assert main(["paper", *words, *chosen]) == 0
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("|")
    ]
    assert head == ["perplexity (times dense)", "dense", "20%", "30%"]
    assert [row[0] for row in rows] == [
        f"{name}, {where}" for name in ("Cross-module", "IntraSlice") for where in ("here", "published")
    ]
    assert rows[3] == ["IntraSlice, published", "5.47", "", "7.11 (1.30)"]
    assert rows[2][3].startswith(f"{found['rows'][3]['perplexity']:.2f} ({found['rows'][3]['times_dense']:.2f})")


def arguments(*words: str) -> Run:
    """A command line of it, parsed and validated."""
    return Run(parser().parse_args(["paper", "--device", "cpu", *words]))


@pytest.fixture
def no_wikitext(monkeypatch) -> None:
    """WikiText-2 cannot be had; the default text is there."""

    def read(text: str, *_: str) -> list[str]:
        if text == "wikitext2":
            raise UserError("wikitext2 is not here")
        return ["a text"]

    monkeypatch.setattr(data, "read_documents", read)


def test_without_wikitext_the_default_model_takes_what_is_here(no_wikitext):
    run = paper._with_available_texts(arguments())
    assert {name: getattr(run.arguments, name) for name in paper.SMALL} == paper.SMALL
    assert run.recipe.calibration.text == run.recipe.evaluation.text == "default"
    assert len(paper._differences(run.recipe.protocol(), 200_000)) == 4


@pytest.mark.parametrize("words", [["--model", "meta-llama/Llama-2-7b-hf"], ["--sequences", "16"]])
def test_without_wikitext_nothing_else_is_measured_in_its_place(no_wikitext, words):
    with pytest.raises(UserError, match="wikitext2 is not here"):
        paper.paper(arguments(*words))


def test_with_wikitext_it_is_the_paper_s_protocol(monkeypatch):
    monkeypatch.setattr(data, "read_documents", lambda *_: ["a text"])
    run = arguments()
    assert paper._with_available_texts(run) is run
    calibration = run.recipe.calibration
    assert (calibration.text, calibration.sequences, calibration.length) == ("wikitext2", 128, 2048)
    assert run.recipe.evaluation.window == 2048
    assert paper._differences(run.recipe.protocol() | {"eval_tokens": 339_968}, 341_469) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (["--sparsities", "0.3", "1.5"], "fraction of the decoder layers' parameters, such as 0.3), got 1.5"),
        (["--length", "600"], "the model's maximum context length"),
        (["--sequences", "900000000"], "GiB is free"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(words, wrong, named, capsys, monkeypatch):
    monkeypatch.setattr(Run, "calibrate", lambda *_: pytest.fail("it was begun"))
    assert main(["paper", *words, *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err.splitlines()[-1]


def test_what_is_out_of_reach_is_said_in_its_cell():
    row = dict.fromkeys(paper.ROW_KEYS) | {"method": "flap", "sparsity": 0.8, "note": "too much"}
    beside = paper._with_published(row | {"dense_perplexity": 10.0})
    assert beside["times_dense"] is None
    assert paper._cell(beside) == "out of reach"


def test_it_explains_itself(capsys):
    with pytest.raises(SystemExit) as left:
        main(["paper", "--help"])
    assert left.value.code == 0
    assert "one per row of the table" in capsys.readouterr().out
