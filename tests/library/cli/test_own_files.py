"""Ratios, estimators and texts of one's own on the command line, and what a search writes."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch
from refusing import refused

import intraslice
from intraslice import compress
from intraslice.cli.parser import parser
from intraslice.cli.run import Run
from intraslice.search.evolution import SearchConfig

ENERGY = "def energy(layer):\n    return layer.attention_moment.diagonal(), layer.mlp_moment.diagonal()\n"


def test_a_plans_ratios_go_round_by_csv_and_by_json(run, home):
    planned = run("ratios --sparsity 0.4 --csv ratios.csv")
    (home / "ratios.json").write_text(json.dumps(planned))
    for file in ("ratios.csv", "ratios.json"):
        again = run(f"ratios --sparsity 0.4 --estimator uniform --ratios {file} --csv again.csv")
        assert all(again[key] == planned[key] for key in ("ratios", "layers", "parameters"))
        assert (home / "again.csv").read_text() == (home / "ratios.csv").read_text()


def test_a_few_ratios_stay_and_the_rest_makes_up_for_them(run, home):
    (home / "few.csv").write_text("layer,attention_ratio,mlp_ratio\n1,,0.05\n0,0.5,\n")
    given = run("ratios --ratios few.csv --lock 0 attention 25")
    assert sorted(given["locked"]) == [[0, "attention", 0.25], [1, "mlp", 0.05]]  # the word beside the file counts
    assert given["ratios"][1][1] == 0.05
    assert given["ratios"][0][0] == pytest.approx(0.25, abs=0.03)  # one step of the heads' widths
    assert given["removed_fraction"] == pytest.approx(run("ratios")["removed_fraction"], abs=0.02)


def test_an_estimator_of_ones_own_plans_sweeps_and_is_judged(run, home):
    (home / "mine.py").write_text(ENERGY)
    planned = run("ratios --estimator mine.py:energy")
    assert planned["estimator"].startswith("mine.py:energy@")
    assert planned["ratios"] != run("ratios")["ratios"]
    swept = run("sweep --methods intraslice --estimators pca mine.py:energy --sparsities 0.3 --no-speed")
    assert [row["estimator"] for row in swept["rows"]] == ["pca", planned["estimator"]]
    assert set(run("sensitivity")["rho"]) >= {"pca", planned["estimator"]}


def test_a_search_writes_importances_that_plan_as_it_found(run, monkeypatch):
    found = run("search --sparsities 0.4 0.2 --out measured.json --passes 3 --windows 1")
    assert [plan["sparsity"] for plan in found["plans"]] == [0.2, 0.4]
    assert found["plans"][0].keys() == {"sparsity", "ratios", "before", "after", "stayed", "passes", "changes"}
    assert sum(plan["stayed"] for plan in found["plans"]) > 0
    assert all(3 <= plan["passes"] < 6 for plan in found["plans"])
    # A search at one sparsity, as part of another command, is the same search.
    alone = run("search --sparsities 0.4 --out alone.json --passes 3")
    monkeypatch.setenv("INTRASLICE_MAX_CACHE_BYTES", "1000")  # what is found is not lost where nothing can be kept
    for line, searched in (
        ("ratios --estimator measured.json --sparsity 0.2", found),
        ("ratios --ratios search --passes 3 --sparsity 0.4", alone),
    ):
        for own, measured in zip(run(line)["ratios"], searched["plans"][0]["ratios"], strict=True):
            assert own == pytest.approx(measured, abs=0.08)


def test_a_depth_search_writes_ratios_that_shortgpt_slices_with(run, caplog):
    (found,) = run("search --depth --passes 2 --windows 1 --out d.csv --sparsities 0.4 --estimator fisher")["plans"]
    assert caplog.messages[-1] == "--estimator ignored: not used by --depth"
    assert {ratio for pair in found["ratios"] for ratio in pair} >= {0.0, 1.0}
    planned = run("ratios --method shortgpt --ratios d.csv --sparsity 0.4")
    pairs = zip(planned["ratios"], found["ratios"], strict=True)
    fixed = [(own, ratio) for plan, found in pairs for own, ratio in zip(plan, found, strict=True) if ratio in (0, 1)]
    assert len(fixed) == 2 * len(planned["ratios"]) - 2
    assert all(own == ratio for own, ratio in fixed)
    assert planned["removed_fraction"] == pytest.approx(0.4, abs=0.01)


def test_compress_searches_for_better_ratios_at_the_same_size(home, words, options, monkeypatch):
    planned = compress(home / "tiny", 0.3, **options)
    found = compress(home / "tiny", 0.3, ratios="search", passes=4, **options)
    assert found.record["requested"]["estimator"] == found.plan.config.estimator
    assert ".json@" in found.plan.config.estimator
    assert found.plan.layers != planned.plan.layers
    assert found.removed_fraction == pytest.approx(planned.removed_fraction, abs=0.02)
    divergences = [one.evaluate(progress=False).divergence.value for one in (found, planned)]
    assert divergences[0] < divergences[1]
    assert "ratios must be" in refused(compress, home / "tiny", 0.3, ratios="best", **options)
    assert "passes is the budget of a search" in refused(compress, home / "tiny", 0.3, passes=4, **options)
    monkeypatch.setattr(intraslice.api, "compress_loaded", lambda pipeline, loaded: pipeline)
    seeded = options | {"calibration": replace(options["calibration"], seed=1)}
    pipeline = compress(home / "tiny", 0.3, ratios="search", **seeded)
    line = Run(parser().parse_args(["evaluate", *words, "--ratios", "search", "--seed", "1"]))
    assert pipeline.ratio_search == line.ratio_search == 100.0
    assert pipeline._search_config(3) == line._search_config(3) != SearchConfig(3)


def test_a_folder_whose_record_has_only_its_source_is_evaluated_with_unknown_values(run, printed):
    loaded = intraslice.load_model("tiny")
    tokens = torch.arange(4 * 24).view(4, 24)
    stats = intraslice.calibrate(loaded, tokens, progress=False)
    plan = intraslice.make_plan(stats.profile, intraslice.SliceConfig(sparsity=0.4, order="one-shot"))
    sliced = intraslice.slice_model(loaded.model, plan, stats, progress=False)
    intraslice.save(sliced, loaded.tokenizer, "bare", {"source": loaded.source})
    run("slice --sparsity 0.4 --out full")
    bare, full = (run(f"evaluate --model {folder}") for folder in ("bare", "full"))
    assert bare.keys() == full.keys()
    assert bare["perplexity"]["sliced"] > 0
    assert bare["parameters"]["sliced_total"] == plan.parameters.sliced_total
    assert bare["parameters"]["dense_total"] is bare["protocol"]["calibration"] is bare["removed_fraction"] is None
    assert "calibrated on an unknown text" in printed("evaluate --model bare")


def test_text_that_the_calibration_read_whole_is_no_held_out_text(run, home, error_of):
    text = (home / "text.txt").read_text()
    (home / "other.txt").write_text(text.replace("w4", "w5"))
    (home / "renamed.txt").write_text(text)
    run("slice --sparsity 0.3 --eval other.txt --out sliced")
    run("evaluate --model sliced --eval other.txt")
    for file in ("text.txt", "renamed.txt"):
        assert f"calibrated on all of '{file}'" in error_of(f"evaluate --model sliced --eval {file}")
    swept = error_of("sweep --eval other.txt --sparsities 0.3 --also-eval text.txt")
    assert "calibrated on all of 'text.txt'" in swept


def test_a_record_has_the_names_of_texts_and_a_record_with_paths_is_still_read(run, home, words):
    path = str(home / "text.txt")
    run(f"slice --calibration {path} --eval {path} --out sliced")
    protocol = intraslice.load("sliced")[2]["protocol"]
    digest = f"sha256:{hashlib.sha256((home / 'text.txt').read_bytes()).hexdigest()}"
    assert (protocol["calibration"], protocol["eval"]) == ("text.txt", "text.txt")
    assert protocol.pop("calibration_digest") == protocol.pop("eval_digest") == digest
    loaded = intraslice.load_model("sliced")
    loaded.record["protocol"] = protocol | {"calibration": path, "eval": "default"}
    run = Run(parser().parse_args(["evaluate", *words, "--model", "sliced"]))
    assert "calibrated on all of 'text" in refused(run.windows, loaded)
