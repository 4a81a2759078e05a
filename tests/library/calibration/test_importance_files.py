"""A file of importances as an estimator: what it plans, what is none, what fits another model."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from intraslice.calibration.user_estimator import load_estimator
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.ratios import make_plan
from intraslice.untrusted.layer_files import importances_json, read_importances


@pytest.fixture
def registered():
    """What a test registers is gone after it."""
    before = set(ESTIMATORS)
    yield
    for name in set(ESTIMATORS) - before:
        del ESTIMATORS[name]


def test_a_file_of_importances_plans_as_what_it_was_made_of(tiny_case, tmp_path, registered) -> None:
    case = tiny_case("llama-gqa")
    own = [
        {module: getattr(layer.importances["fisher"], module).tolist() for module in ("attention", "mlp")}
        for layer in case.stats.profile.layers
    ]
    (tmp_path / "mine.json").write_text(importances_json(own))
    estimator = load_estimator(str(tmp_path / "mine.json"))
    assert load_estimator(f"{tmp_path / 'mine.json'}@{estimator.name.partition('@')[2]}") is estimator
    profile = replace(case.stats).profile  # made anew
    for sparsity in (0.2, 0.5):
        plans = [make_plan(profile, SliceConfig(sparsity, name)) for name in (estimator.name, "fisher")]
        assert plans[0].layers == plans[1].layers


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
    with pytest.raises(UserError, match=words) as caught:
        read_importances(tmp_path / "mine.json")
    assert "\n" not in str(caught.value)


def test_importances_of_another_model_are_refused(tiny_case, tmp_path, registered) -> None:
    case = tiny_case("llama-gqa")
    for name, layers in (("few.json", [{"attention": [1.0] * 4, "mlp": [1.0]}]), ("wide.json", [])):
        own = layers or [{"attention": [1.0] * 5, "mlp": [1.0] * 7}] * 100
        (tmp_path / name).write_text(importances_json(own))
        estimator = load_estimator(str(tmp_path / name))
        profile = replace(case.stats).profile  # for which they do not matter, unless somebody asks for them
        with pytest.raises(UserError, match=f"{name}.*were computed for this model"):
            profile.importances(estimator.name, "mlp")
        del ESTIMATORS[estimator.name]
