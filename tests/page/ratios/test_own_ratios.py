"""Users' ratios and estimators on the page: uploads become locks, and untrusted clients run nothing."""

import json

import pytest

from components.ratios import overrides, ratio_files
from components.state import choices
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS

HEAD = "layer,attention_ratio,mlp_ratio\n"


def test_a_file_takes_the_place_of_all_locks_and_the_total_holds(session, tiny, tmp_path):
    (tmp_path / "few.json").write_text(json.dumps([{"layer": 2, "mlp_ratio": 0.125}]))
    settings = tiny.with_settings(sparsity=40, locked="0 mlp 10")
    edited = overrides.load(session, settings, str(tmp_path / "few.json"))
    assert edited == {"locked": "2 mlp 12.5", "table": "2 mlp 12.5", "problem": ""}
    plan = session.slice_plan(settings.with_settings(locked=edited["locked"]))
    assert plan.layers[2].mlp_ratio == 0.125
    assert plan.removed_fraction == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "0,0.1,0.1\n1,0.1,lots\n", "row 2 (layer 1): mlp_ratio must be a number from 0 to 1, got 'lots'"),
        (HEAD + "9,0.1,0.1\n", "Layer 9 does not exist, so it cannot be locked; layers are 0 to 2"),
        (HEAD + "".join(f"{layer},0.9,0.9\n" for layer in range(3)), "more than the sparsity"),
        ("nothing", "no column layer"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(session, tiny, tmp_path, text, words):
    (tmp_path / "mine.csv").write_text(text)
    edited = overrides.load(session, tiny, str(tmp_path / "mine.csv"))
    assert edited.keys() == {"problem"}
    assert words in edited["problem"].replace("&#x27;", "'")


def test_a_call_from_outside_may_give_both(tiny, tmp_path):
    (tmp_path / "mine.csv").write_text(HEAD + "0,0.1,0.2\n")
    both = ratio_files.with_ratios(tiny.with_settings(locked="0 mlp 5, 1 mlp 6"), str(tmp_path / "mine.csv"))
    assert both.settings.locked == "0 attention 10, 0 mlp 5, 1 mlp 6"
    assert ratio_files.with_ratios(tiny, None) == tiny


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A file that leaves a mark when it is run, named to the page."""
    text = f"from pathlib import Path\n\nPath({str(tmp_path / 'run')!r}).touch()\n\n\n"
    text += "def energy(layer):\n    return layer.attention_moment.diagonal(), layer.mlp_moment.diagonal()\n"
    (tmp_path / "mine.py").write_text(text)
    monkeypatch.setenv(choices.OWN_ESTIMATORS, f"{tmp_path / 'mine.py'}:energy")
    yield tmp_path
    for name in [name for name in ESTIMATORS if name.startswith("mine.py")]:
        del ESTIMATORS[name]


def test_a_local_page_offers_an_estimator_of_ones_own(own, monkeypatch):
    for name in ("SPACE_ID", "INTRASLICE_HOSTED"):
        monkeypatch.delenv(name, raising=False)
    choices.offer_own_estimators()
    assert (own / "run").exists()
    assert [entry.label for entry in ESTIMATORS.values() if "mine" in entry.label] == ["energy (mine.py)"]


@pytest.mark.parametrize("name", ["SPACE_ID", "INTRASLICE_HOSTED"])
def test_a_hosted_page_runs_nobodys_file(own, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    before = set(ESTIMATORS)
    with pytest.raises(UserError, match="a hosted page runs none"):
        choices.offer_own_estimators()
    assert not (own / "run").exists()
    assert set(ESTIMATORS) == before
