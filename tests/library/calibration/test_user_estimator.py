"""An estimator from a file of one's own: named by its version, and planned by as a built-in one of its formula."""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from refusing import refused

from intraslice.calibration.user_estimator import load_estimator
from intraslice.core.config import SliceConfig
from intraslice.core.registry import ESTIMATORS
from intraslice.diagnostics.sensitivity import compare_ranks, measure_sensitivity
from intraslice.planning.ratios import make_plan
from intraslice.untrusted.layer_files import importances_json, read_importances

FISHER = """
def heads(layer):
    by_head = layer.attention_gradients.unflatten(-1, (layer.sizes.heads, -1)).sum(-1)
    return by_head.square().sum(0), layer.mlp_gradients.square().sum(0)
"""

pytestmark = pytest.mark.usefixtures("own_estimators")


def written(folder: Path, text: str) -> Path:
    (folder / "mine.py").write_text(text, encoding="utf-8")
    return folder / "mine.py"


def require_same_plans(profile, name: str) -> None:
    for sparsity in (0.2, 0.5):
        plans = [make_plan(profile, SliceConfig(sparsity, estimator)) for estimator in (name, "fisher")]
        assert plans[0].layers == plans[1].layers


def test_it_plans_and_is_judged_as_the_built_in_one_of_its_formula(tmp_path, case, own_cache):
    own = load_estimator(f"{written(tmp_path, FISHER)}:heads")
    stats = replace(case.stats)  # whose profile is made anew
    require_same_plans(stats.profile, own.name)
    found = measure_sensitivity(case.loaded, stats, case.tokens[:4, :20], 0.3, progress=False)
    rho = compare_ranks(found, stats.profile).rho
    assert rho[own.name] == rho["fisher"]


def test_another_version_of_the_file_is_another_estimator(tmp_path):
    first = load_estimator(f"{written(tmp_path, FISHER)}:heads")
    assert load_estimator(f"{written(tmp_path, FISHER)}:heads") is first
    assert first.label == "heads (mine.py)"
    path = written(tmp_path, FISHER + "\n")
    second = load_estimator(f"{path}:heads")
    assert second.name != first.name
    assert second.name.startswith("mine.py:heads@")
    digest = first.name.partition("@")[2]
    assert f"expected {digest}; leave out @{digest}" in refused(load_estimator, f"{path}:heads@{digest}")
    assert load_estimator(f"{path}:heads@{second.name.partition('@')[2]}") is second


def test_a_version_of_the_same_moment_and_length_is_not_the_bytecode_of_the_one_before(tmp_path, case, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    found = []
    for factor in (2, 3):
        path = written(tmp_path, FISHER.replace("square()", f"square().mul({factor})"))
        os.utime(path, (1e9, 1e9))
        own = load_estimator(f"{path}:heads")
        found.append(replace(case.stats).profile.importances(own.name, "mlp")[0])
    torch.testing.assert_close(found[1], 1.5 * found[0])


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        (FISHER, "mine.py:tails", "does not define a function 'tails'"),
        ("heads = 3", "mine.py:heads", "does not define a function 'heads'"),
        ("def heads(layer", "mine.py:heads", "cannot be run (SyntaxError"),
        ("import nothing_of_that_name", "mine.py:heads", "cannot be run (ModuleNotFoundError"),
        (FISHER, "mine.py:no name", "path.py:function or path.json"),
        (FISHER, "mine.txt:heads", "path.py:function or"),
        (FISHER, "my own.py:heads", "spaces in its name"),
        (None, "none.py:heads", "cannot be read"),
    ],
)
def test_what_is_no_estimator_is_refused_in_one_line(tmp_path, text, name, words):
    if text is not None:
        (tmp_path / name.partition(":")[0]).write_text(text)
    assert words in refused(load_estimator, f"{tmp_path / name}")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return layer.nothing", "failed (AttributeError"),
        ("return layer.mlp_gradients.sum(0)", "returns a pair (attention importances, MLP importances)"),
        ("return 2 * [layer.mlp_gradients[0].square()]", "returns shape (132,) for attention"),
        ("return abs(layer.attention_gradients[0]), abs(layer.mlp_gradients)", "returns shape (16, 132) for mlp"),
        ("return -abs(layer.attention_gradients[0]), layer.mlp_gradients[0].square()", "attention importances below 0"),
        ("return abs(layer.attention_gradients[0]), layer.mlp_gradients[0] / 0", "mlp importances below 0 or not"),
    ],
)
def test_what_it_answers_is_looked_at(tmp_path, case, body, words):
    own = load_estimator(f"{written(tmp_path, f'def heads(layer):{chr(10)}    {body}')}:heads")
    message = refused(getattr, replace(case.stats), "profile")
    assert words in message
    assert own.name in message
    assert own.name not in replace(case.stats).profile.estimators  # later calibrations work


def test_a_file_of_importances_plans_as_what_it_was_made_of(case, tmp_path) -> None:
    own = [
        {module: getattr(layer.importances["fisher"], module).tolist() for module in ("attention", "mlp")}
        for layer in case.stats.profile.layers
    ]
    (tmp_path / "mine.json").write_text(importances_json(own))
    estimator = load_estimator(str(tmp_path / "mine.json"))
    assert load_estimator(f"{tmp_path / 'mine.json'}@{estimator.name.partition('@')[2]}") is estimator
    require_same_plans(replace(case.stats).profile, estimator.name)  # made anew


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read as importances"),
        ("[1, 2]", "no list of layers"),
        ('{"layers": []}', "no list of layers"),
        ("[" * 100_000, "cannot be read as importances"),
        (json.dumps({"layers": [{"attention": [1.0]}]}), "layer 0: mlp is not a list"),
        (json.dumps({"layers": [{"attention": [-1.0], "mlp": [1]}]}), "layer 0: attention is not a list"),
        ('{"layers": [{"attention": [NaN], "mlp": [1]}]}', "layer 0: attention is not a list"),
        ('{"layers": [{"attention": [1e999], "mlp": [1]}]}', "layer 0: attention is not a list"),
    ],
)
def test_what_is_no_file_of_importances_is_refused_in_one_line(tmp_path, text, words) -> None:
    (tmp_path / "mine.json").write_text(text)
    assert words in refused(read_importances, tmp_path / "mine.json")


def test_importances_of_another_model_are_refused(case, tmp_path) -> None:
    for name, layers in (("few.json", [{"attention": [1.0] * 4, "mlp": [1.0]}]), ("wide.json", [])):
        own = layers or [{"attention": [1.0] * 5, "mlp": [1.0] * 7}] * 100
        (tmp_path / name).write_text(importances_json(own))
        estimator = load_estimator(str(tmp_path / name))
        profile = replace(case.stats).profile  # for which they do not matter, unless somebody asks for them
        assert re.search(f"{name}.*were computed for this model", refused(profile.importances, estimator.name, "mlp"))
        del ESTIMATORS[estimator.name]
