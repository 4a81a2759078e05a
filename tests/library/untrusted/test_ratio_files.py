"""Files of ratios: what is written is read to the last digit, and what is no ratio is named by its row."""

import json
from pathlib import Path

import pytest
from refusing import refused

from intraslice.untrusted.layer_files import MAX_CHARACTERS, ratios_csv, read_ratios

HEAD = "layer,attention_ratio,mlp_ratio\n"


def written(home: Path, text: str, name: str = "mine.csv") -> Path:
    (home / name).write_text(text, encoding="utf-8")
    return home / name


def test_what_is_written_is_read_again_and_what_is_left_empty_not_given(tmp_path):
    ratios = [(1 / 3, 0.1 + 0.2), (0.0, 1.0)]
    text = ratios_csv(ratios)
    assert text.splitlines()[:2] == ["layer,attention_ratio,mlp_ratio", f"0,{1 / 3!r},{0.1 + 0.2!r}"]
    locks = read_ratios(written(tmp_path, text))
    assert locks == ((0, "attention", 1 / 3), (0, "mlp", 0.1 + 0.2), (1, "attention", 0.0), (1, "mlp", 1.0))
    assert read_ratios(written(tmp_path, HEAD + "7,,0.25\n3, 0.5 ,\n")) == ((7, "mlp", 0.25), (3, "attention", 0.5))
    assert read_ratios(written(tmp_path, "\ufeffmlp_ratio,layer,why\n0.5,2,so\n")) == ((2, "mlp", 0.5),)


@pytest.mark.parametrize(
    "wrap", [lambda rows: rows, lambda rows: {"layers": rows}, lambda rows: {"plan": {"layers": rows}}]
)
def test_json_is_a_list_of_layers_or_a_plan_that_has_one(tmp_path, wrap):
    """As `ratios --json` and the page's plan have it: layers in their order, and more beside the ratios."""
    rows = [{"attention_ratio": 0.1, "mlp_ratio": 0.2, "heads": [0, 1]}, {"mlp_ratio": 0.3, "attention_ratio": None}]
    locks = read_ratios(written(tmp_path, json.dumps(wrap(rows)), "mine.JSON"))
    assert locks == ((0, "attention", 0.1), (0, "mlp", 0.2), (1, "mlp", 0.3))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column layer"),
        ("layer,ratio\n0,0.3\n", "no column attention_ratio or mlp_ratio"),
        (HEAD, "expected a row for at least one layer"),
        (HEAD + "0,,\n", "expected a row for at least one layer"),
        (HEAD + "0,0.1,0.2\n1,much,0.2\n", "row 2 (layer 1): attention_ratio must be a number from 0 to 1, got 'much'"),
        (HEAD + "0,0.1,1.5\n", "row 1 (layer 0): mlp_ratio must be a number from 0 to 1, got 1.5"),
        (HEAD + "0,-0.1,\n", "attention_ratio must be a number from 0 to 1, got -0.1"),
        (HEAD + "0,nan,\n", "attention_ratio must be a number from 0 to 1, got nan"),
        (HEAD + "0,inf,\n", "attention_ratio must be a number from 0 to 1, got inf"),
        (HEAD + "0,0.1,0.2\n,0.1,\n", "row 2: layer must be a whole number from 0 to 2,147,483,647, got nothing"),
        (HEAD + "1.5,0.1,\n", "row 1: layer must be a whole number from 0 to 2,147,483,647, got 1.5"),
        (HEAD + "-1,0.1,\n", "row 1: layer must be a whole number from 0 to 2,147,483,647, got -1"),
        (HEAD + "2,0.1,\n3,0.1,\n2,,0.1\n", "row 3: layer 2 is in row 1 already"),
        (HEAD + "0,0.1,\n" * MAX_CHARACTERS, "over 1,048,576 characters"),
        ("{", "cannot be read as ratios"),
        ("[" * 100_000, "cannot be read as ratios"),
        *((text, "no list of layers") for text in ("3", '{"plan": 3}', "[3]")),
        ('[{"mlp_ratio": true}]', "row 1 (layer 0): mlp_ratio must be a number from 0 to 1, got True"),
        ('[{"mlp_ratio": [0.1]}]', "row 1 (layer 0): mlp_ratio must be a number from 0 to 1, got [0.1]"),
        ('[{"layer": "a", "mlp_ratio": 0.1}]', "row 1: layer must be a whole number from 0 to 2,147,483,647, got 'a'"),
    ],
)
def test_what_is_no_ratio_is_named_by_its_row(tmp_path, text, words):
    name = "mine.csv" if not text or text.startswith("layer") else "mine.json"
    message = refused(read_ratios, written(tmp_path, text, name))
    assert words in message
    assert message.startswith(name)
    assert len(message) < 300


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    for name in ("none.csv", "bytes.csv", "."):
        assert "cannot be read as ratios" in refused(read_ratios, tmp_path / name)
