"""Ratios and an estimator of one's own on the command line: they go round, and give what was asked."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import pytest
import torch

import intraslice
from intraslice import CalibrationConfig, EvaluationConfig, UserError, compress
from intraslice.__main__ import main
from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.core.registry import ESTIMATORS

WORDS = ["--model", "tiny", "--calibration", "text.txt", "--eval", "text.txt", "--sequences", "16", "--length", "24"]
WORDS += ["--eval-tokens", "96", "--device", "cpu", "--dtype", "float32", "--json"]
ENERGY = "def energy(layer):\n    return layer.attention_moment.diagonal(), layer.mlp_moment.diagonal()\n"


@pytest.fixture
def home(tmp_path, tiny_llama_gqa, word_tokenizer, monkeypatch) -> Path:
    """A folder with a tiny model and its text; the working directory."""
    vocabulary = [f"w{index}" for index in range(4, 256)]
    tiny_llama_gqa().save_pretrained(tmp_path / "tiny")
    word_tokenizer(vocabulary).save_pretrained(tmp_path / "tiny")
    draw = random.Random(0)
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(draw.choices(vocabulary, k=30)) for _ in range(60)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def run(home, capsys):
    def answer(command: str, *more: str) -> dict:
        assert main([command, *WORDS, *more]) == 0
        return json.loads(capsys.readouterr().out)

    return answer


@pytest.fixture
def refused(home, capsys):
    def line(command: str, *more: str) -> str:
        assert main([command, *WORDS, *more]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    return line


def test_a_plans_ratios_go_round_by_csv_and_by_json(run, home):
    planned = run("ratios", "--sparsity", "0.4", "--csv", "ratios.csv")
    (home / "ratios.json").write_text(json.dumps(planned))
    for file in ("ratios.csv", "ratios.json"):
        again = run("ratios", "--sparsity", "0.4", "--estimator", "uniform", "--ratios", file, "--csv", "again.csv")
        assert again["ratios"] == planned["ratios"]
        assert again["layers"] == planned["layers"]
        assert again["parameters"] == planned["parameters"]
        assert (home / "again.csv").read_text() == (home / "ratios.csv").read_text()


def test_a_few_ratios_stay_and_the_rest_makes_up_for_them(run, home):
    (home / "few.csv").write_text("layer,attention_ratio,mlp_ratio\n1,,0.05\n0,0.5,\n")
    given = run("ratios", "--ratios", "few.csv", "--lock", "0", "attention", "25")
    assert given["ratios"][1][1] == 0.05
    assert given["ratios"][0][0] == 0.25  # by the word beside the file
    assert given["removed_fraction"] == pytest.approx(run("ratios")["removed_fraction"], abs=0.02)


def test_bad_files_of_ratios_are_refused_by_their_row(refused, home):
    (home / "bad.csv").write_text("layer,attention_ratio,mlp_ratio\n0,0.3,0.3\n1,0.3,lots\n")
    bad = refused("evaluate", "--ratios", "bad.csv")
    assert "bad.csv, row 2 (layer 1): mlp_ratio must be a number from 0 to 1, got 'lots'" in bad
    assert "none.csv cannot be read as ratios" in refused("evaluate", "--ratios", "none.csv")
    (home / "deep.csv").write_text("layer,mlp_ratio\n30,0.3\n")
    assert "layer 30 does not exist, so it cannot be locked; layers are 0 to 2" in refused(
        "ratios", "--ratios", "deep.csv"
    )
    (home / "much.csv").write_text("layer,attention_ratio,mlp_ratio\n" + "".join(f"{i},0.9,0.9\n" for i in range(3)))
    assert "the locked ratios remove 8" in refused("ratios", "--ratios", "much.csv")
    assert "no ratios to write" in refused("ratios", "--method", "crossmodule", "--csv", "there.csv")
    assert "does not exist" in refused("ratios", "--csv", "nowhere/there.csv")


def test_an_estimator_of_ones_own_plans_sweeps_and_is_judged(run, home):
    (home / "mine.py").write_text(ENERGY)
    try:
        planned = run("ratios", "--estimator", "mine.py:energy")
        assert planned["estimator"].startswith("mine.py:energy@")
        assert planned["ratios"] != run("ratios")["ratios"]
        swept = run(
            "sweep",
            "--methods",
            "intraslice",
            "--estimators",
            "pca",
            "mine.py:energy",
            "--sparsities",
            "0.3",
            "--no-speed",
        )
        assert [row["estimator"] for row in swept["rows"]] == ["pca", planned["estimator"]]
        assert set(run("sensitivity")["rho"]) >= {"pca", planned["estimator"]}
    finally:
        for name in [name for name in ESTIMATORS if name.startswith("mine.py")]:
            del ESTIMATORS[name]


def test_a_search_writes_importances_that_plan_as_it_found(run, refused, home):
    few = ["--passes", "3", "--windows", "1"]
    found = run("search", "--sparsities", "0.4", "0.2", "--out", "measured.json", *few)
    assert [plan["sparsity"] for plan in found["plans"]] == [0.2, 0.4]
    assert sum(plan["stayed"] for plan in found["plans"]) > 0
    assert all(3 <= plan["passes"] < 6 for plan in found["plans"])
    try:
        planned = run("ratios", "--estimator", "measured.json", "--sparsity", "0.2")
        for own, measured in zip(planned["ratios"], found["plans"][0]["ratios"], strict=True):
            assert own == pytest.approx(measured, abs=0.08)
        # a search at one sparsity, as part of another command, is the same search
        alone = run("search", "--sparsities", "0.4", "--out", "measured.json", "--passes", "3")
        planned = run("ratios", "--ratios", "search", "--passes", "3", "--sparsity", "0.4")
        for own, measured in zip(planned["ratios"], alone["plans"][0]["ratios"], strict=True):
            assert own == pytest.approx(measured, abs=0.08)
    finally:
        for name in [name for name in ESTIMATORS if ".json@" in name]:
            del ESTIMATORS[name]
    old = run("exchange", "--sparsities", "0.4", "--out", "measured.json", "--exchanges", "12", "--windows", "1")
    assert old["plans"][0]["passes"] >= 12 / 16
    assert "--out must be a .json file" in refused("search", "--out", "nowhere/there.json")
    assert "passes must be a number from 0" in refused("search", "--out", "there.json", "--passes", "-1")
    assert "--ratios search works with" in refused("sweep", "--ratios", "search")
    assert not (home / "there.json").exists()


def test_a_depth_search_writes_ratios_that_shortgpt_slices_with(run, refused, home):
    depth = ["search", "--depth", "--passes", "2", "--windows", "1", "--out", "depth.csv"]
    (found,) = run(*depth, "--sparsities", "0.4")["plans"]
    assert {ratio for pair in found["ratios"] for ratio in pair} >= {0.0, 1.0}
    planned = run("ratios", "--method", "shortgpt", "--ratios", "depth.csv", "--sparsity", "0.4")
    pairs = zip(planned["ratios"], found["ratios"], strict=True)
    fixed = [(own, ratio) for plan, found in pairs for own, ratio in zip(plan, found, strict=True) if ratio in (0, 1)]
    assert len(fixed) == 2 * len(planned["ratios"]) - 2
    assert all(own == ratio for own, ratio in fixed)
    assert planned["removed_fraction"] == pytest.approx(0.4, abs=0.01)
    assert "--out must be a .csv file" in refused("search", "--depth", "--out", "there.json", "--sparsities", "0.4")
    assert "--depth requires one sparsity, such as --sparsities 0.3, got 4" in refused(*depth)
    assert "requires that no ratio is locked" in refused(*depth, "--sparsities", "0.4", "--lock", "1", "mlp", "5")


def test_compress_searches_with_the_seed_of_the_calibration_as_the_command_line_does(home, monkeypatch):
    monkeypatch.setattr(intraslice.api, "compress_loaded", lambda pipeline, loaded: pipeline)
    calibration = CalibrationConfig("text.txt", 16, 24, seed=1)
    pipeline = compress(home / "tiny", 0.3, ratios="search", passes=4, calibration=calibration, progress=False)
    words = ["evaluate", "--ratios", "search", "--passes", "4", "--seed", "1", "--sequences", "16"]
    assert pipeline.ratio_search == Run(parser().parse_args(words)).ratio_search


def test_compress_searches_for_better_ratios_at_the_same_size(home):
    text = CalibrationConfig("text.txt", 16, 24)
    options = {"order": "one-shot", "dtype": "float32", "device": "cpu", "progress": False, "calibration": text}
    options["evaluation"] = EvaluationConfig("text.txt", 96, 24)
    planned = compress(home / "tiny", 0.3, **options)
    try:
        found = compress(home / "tiny", 0.3, ratios="search", passes=4, **options)
        assert found.made["asked"]["estimator"] == found.plan.config.estimator
        assert ".json@" in found.plan.config.estimator
    finally:
        for name in [name for name in ESTIMATORS if ".json@" in name]:
            del ESTIMATORS[name]
    assert found.plan.layers != planned.plan.layers
    assert found.removed_fraction == pytest.approx(planned.removed_fraction, abs=0.02)
    divergences = [one.evaluate(progress=False).divergence.value for one in (found, planned)]
    assert divergences[0] < divergences[1]
    with pytest.raises(UserError, match="ratios must be"):
        compress(home / "tiny", 0.3, ratios="best", **options)
    with pytest.raises(UserError, match="passes is the budget of a search"):
        compress(home / "tiny", 0.3, passes=4, **options)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("none.py:energy", "cannot be read"),
        ("mine.py:nothing", "does not define"),
        ("mine.py", "write mine.py:FUNCTION"),
    ],
)
def test_an_estimator_that_is_none_is_one_line(home, word, said, capsys):
    (home / "mine.py").write_text(ENERGY)
    with pytest.raises(SystemExit) as caught:
        main(["ratios", *WORDS, "--estimator", word])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_folder_whose_record_has_only_its_source_is_evaluated_with_unknown_values(run, home, capsys):
    loaded = intraslice.load_model("tiny")
    tokens = torch.arange(4 * 24).view(4, 24)
    stats = intraslice.calibrate(loaded, tokens, progress=False)
    plan = intraslice.make_plan(stats.profile, intraslice.SliceConfig(sparsity=0.4, order="one-shot"))
    sliced = intraslice.slice_model(loaded.model, plan, stats, progress=False)
    intraslice.save(sliced, loaded.tokenizer, "bare", {"source": loaded.source})
    run("slice", "--sparsity", "0.4", "--out", "full")
    bare, full = (run("evaluate", "--model", folder) for folder in ("bare", "full"))
    assert bare.keys() == full.keys()
    assert bare["perplexity"]["sliced"] > 0
    assert bare["parameters"]["sliced_total"] == plan.parameters.sliced_total
    assert bare["parameters"]["dense_total"] is bare["protocol"]["calibration"] is bare["removed_fraction"] is None
    words = [word for word in WORDS if word != "--json"]
    assert main(["evaluate", *words, "--model", "bare"]) == 0
    assert "calibrated on an unknown text" in capsys.readouterr().out


def test_text_that_the_calibration_read_whole_is_no_held_out_text(home, capsys):
    text = (home / "text.txt").read_text()
    (home / "other.txt").write_text(text.replace("w4", "w5"))
    (home / "renamed.txt").write_text(text)
    words = [*WORDS, "--sparsity", "0.3", "--eval", "other.txt"]
    assert main(["slice", *words, "--out", "sliced"]) == 0
    for file in ("text.txt", "renamed.txt"):
        assert main(["evaluate", *WORDS, "--model", "sliced", "--eval", file]) == 2
        assert f"calibrated on all of '{file}'" in capsys.readouterr().err
    assert main(["evaluate", *words, "--model", "sliced"]) == 0
    capsys.readouterr()
    assert main(["sweep", *words[:-4], "--eval", "other.txt", "--sparsities", "0.3", "--also-eval", "text.txt"]) == 2
    assert "calibrated on all of 'text.txt'" in capsys.readouterr().err


def test_a_record_has_the_names_of_texts_and_a_record_with_paths_is_still_read(home, capsys):
    paths = {option: str(home / "text.txt") for option in ("--calibration", "--eval")}
    assert main(["slice", *WORDS, *(word for pair in paths.items() for word in pair), "--out", "sliced"]) == 0
    protocol = intraslice.load("sliced")[2]["protocol"]
    digest = f"sha256:{hashlib.sha256((home / 'text.txt').read_bytes()).hexdigest()}"
    assert (protocol["calibration"], protocol["eval"]) == ("text.txt", "text.txt")
    assert protocol.pop("calibration_digest") == protocol.pop("eval_digest") == digest
    loaded = intraslice.load_model("sliced")
    loaded.made["protocol"] = protocol | {"calibration": paths["--calibration"], "eval": "default"}
    run = Run(parser().parse_args(["evaluate", *WORDS, "--model", "sliced"]))
    with pytest.raises(UserError, match="calibrated on all of 'text"):
        run.windows(loaded)
