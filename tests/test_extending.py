"""The worked examples of docs/extending.md run as they stand there, and what is registered from outside is found."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import gradio as gr
import pytest
import torch
from calling import inputs_of
from refusing import refused
from test_house import copy_packages, lint_imports
from tiny_models import SHARED, entering, randomised
from tiny_page import SOMEBODY
from torch.testing import assert_close
from transformers import PreTrainedModel, SeedOssConfig, SeedOssForCausalLM

import intraslice as sl
from components import tabs
from components.frame import theme
from components.page import build_app
from components.ratios import panel as ratios_panel
from components.state.session import Session
from components.sweep import panel as sweep_panel
from components.sweep.views import SweepChoice
from intraslice.calibration.driver import calibrate
from intraslice.calibration.user_estimator import load_estimator
from intraslice.cli.parser import parser
from intraslice.core.registry import ESTIMATORS
from intraslice.evaluation.sweep import Texts, points, sweep
from intraslice.methods.registry import METHODS
from intraslice.modeling.families import FAMILIES, canonicalise
from intraslice.planning.ratios import make_plan

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r"^```python\n# ([\w/.]+)[^\n]*\n(.*?)^```$", TEXT, re.S | re.M))
COMMANDS = re.findall(r"^    python -m intraslice (.*energy.*)$", TEXT, re.M)  # of the examples
ENERGY = "intraslice/planning/estimators/energy.py"
RANDOM_HEADS = "intraslice/methods/random_heads.py"
FAMILY = "intraslice/modeling/families.py"
SUMMARY = "components/summary/panel.py"
MINE = "mine.py"
FILES = (ENERGY, RANDOM_HEADS, SUMMARY)
WIDE = {"COLUMNS": "9999"}  # so that argparse breaks no line of its help, which it does at hyphens too
NEIGHBOURS = {ENERGY: "uniform", RANDOM_HEADS: "baselines"}  # the last of its folder's import line


def run(path: str) -> ModuleType:
    """The example as a module, as if it were that file."""
    module = ModuleType(path.removesuffix(".py").replace("/", "."))
    exec(compile(EXAMPLES[path], path, "exec", dont_inherit=True), vars(module))
    return module


def inline(start: str) -> str:
    """The one expression between backticks that begins like this."""
    (found,) = re.findall(rf"`({re.escape(start)}[^`]*)`", TEXT)
    return found


@pytest.fixture
def energy(own_estimators) -> str:
    run(ENERGY)
    return "energy"


@pytest.fixture
def random_heads() -> Iterator[str]:
    run(RANDOM_HEADS)
    yield "random-heads"
    del METHODS["random-heads"]


@pytest.fixture
def own_session(tiny) -> Session:
    """A session that calibrates the tiny model now, with whatever is registered."""
    session = Session(evaluation_tokens=256)
    *_, last = session.prepare(tiny, SOMEBODY)
    assert last.kind == "ready", last.text
    return session


def test_every_example_is_found():
    assert set(EXAMPLES) == {*FILES, FAMILY, MINE}


def test_a_file_and_its_name_are_all_that_the_library_wants(tmp_path):
    """In a copy: the example's file, its name in the folder's `__init__`, lint, and the help of a new process."""
    copy_packages(tmp_path)
    (tmp_path / SUMMARY).parent.mkdir()
    (tmp_path / SUMMARY).with_name("__init__.py").touch()
    layers = tmp_path / "pyproject.toml"
    text = layers.read_text(encoding="utf-8").replace("| compare |", "| compare | summary |")
    layers.write_text(text, encoding="utf-8")
    for path in FILES:
        (tmp_path / path).write_text(EXAMPLES[path], encoding="utf-8")
    for path, neighbour in NEIGHBOURS.items():
        face, name = (tmp_path / path).with_name("__init__.py"), Path(path).stem
        text, count = re.subn(rf"^(from .* import .*{neighbour}\b)", rf"\1, {name}", face.read_text(), flags=re.M)
        assert count == 1
        face.write_text(text, encoding="utf-8")

    def call(*words: str) -> str:
        command, environment = [sys.executable, "-m", *words], os.environ | WIDE
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    call("ruff", "format", "--check", *FILES)
    call("ruff", "check", ".")
    linted = lint_imports(tmp_path)
    assert linted.returncode == 0, linted.stdout
    offered = call("intraslice", "sweep", "--help")
    assert "energy: energy that each head or neuron carries" in offered
    assert "random-heads: heads sampled at random" in offered


def test_the_commands_can_be_given(energy, random_heads):
    evaluate, swept = [parser().parse_args(words.split()) for words in COMMANDS]
    assert evaluate.estimator == energy
    assert (swept.methods, swept.estimators) == (["intraslice", random_heads], ["pca", energy])


def test_the_estimator_shares_a_plan_out_by_energy(energy, case):
    """Against the energies of what really enters the output maps."""
    linears = [linear for layer in case.dense.model.layers for linear in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    seen = [rows.double() for rows in entering(case.dense, linears, case.tokens)]
    stats = replace(case.stats)  # whose profile is made anew
    plan = eval(inline("sl.make_plan("), {"sl": sl, "stats": stats})
    assert abs(plan.removed_fraction - 0.3) < 0.01
    for name in set(ESTIMATORS) - {energy}:
        assert make_plan(stats.profile, sl.SliceConfig(0.3, name)).layers != plan.layers
    halves = stats.profile_for(sl.SliceConfig(0.3, energy, head_fraction=0.5))
    for index, kept in enumerate(plan.layers):
        found = stats.profile.layers[index].importances[energy]
        weight = case.dense.model.layers[index].self_attn.o_proj.weight.double()
        heads = (seen[2 * index].square().sum(0) * weight.square().sum(0)).view(9, 8).sum(1)
        neurons = seen[2 * index + 1].square().sum(0)
        assert_close(found.attention.double() / found.attention.sum(), heads / heads.sum(), rtol=1e-4, atol=0)
        assert_close(found.mlp.double() / found.mlp.sum(), neurons / neurons.sum(), rtol=1e-4, atol=0)
        assert_close(halves.layers[index].importances[energy].attention.view(9, 2).sum(1), found.attention)
        fallen = (found.mlp < plan.reasons.mlp_threshold).double().mean().item()
        assert kept.mlp_ratio == pytest.approx(fallen, abs=1.01 / len(neurons))


def test_a_function_in_a_file_is_an_estimator(case, tmp_path, monkeypatch, own_estimators):
    monkeypatch.chdir(tmp_path)
    Path(MINE).write_text(EXAMPLES[MINE], encoding="utf-8")
    config = eval(inline("sl.SliceConfig(0.3, load"), {"sl": sl, "load_estimator": load_estimator})
    stats = replace(case.stats)  # whose profile is made anew
    assert abs(make_plan(stats.profile, config).removed_fraction - 0.3) < 0.01
    found = stats.profile.layers[0].importances[config.estimator]
    assert (len(found.attention), len(found.mlp)) == (72, 132)


def test_the_method_samples_heads_and_removes_what_is_asked(random_heads, tiny_case):
    case = tiny_case("llama-mha")
    given = {"sl": sl, "model": case.dense, "stats": case.stats, "tokens": case.tokens}
    given["config"] = sl.SliceConfig(0.3)
    plan = eval(inline("sl.plan_by("), given)
    sliced = eval(inline("sl.slice_by("), given | {"plan": plan})
    assert abs(plan.removed_fraction - 0.3) < 0.01
    assert sum(p.numel() for p in sliced.parameters()) == plan.parameters.sliced_total
    assert len({layer.heads for layer in plan.layers}) > 1  # of equally many heads a layer
    assert len({len(layer.heads) for layer in plan.layers}) == 1
    for layer, kept in zip(sliced.model.layers, plan.layers, strict=True):
        assert (layer.self_attn.heads, layer.self_attn.dim) == (len(kept.heads), 8)
    assert eval(inline("sl.plan_by("), given) == plan  # the same heads every time
    assert "raise the cap" in refused(case.plan, 0.7, random_heads, cap=0.6)


def test_a_sweep_has_both(energy, random_heads, case, own_cache):
    texts = Texts(replace(case.stats), case.tokens, case.tokens[:4, :20])
    wanted = points(["intraslice", random_heads], ["pca", energy], [0.3])
    frame = sweep(case.loaded, texts, wanted, sl.SliceConfig(bias=1.0), progress=False)
    assert frame["method"].tolist() == ["intraslice", "intraslice", random_heads]
    assert frame["estimator"].tolist()[:2] == ["pca", energy]
    assert frame["removed_fraction"].tolist() == pytest.approx([0.3] * 3, abs=0.01)
    assert frame["perplexity"].nunique() == 3


def test_the_page_offers_and_shows_both(energy, random_heads, own_session, tiny):
    components = build_app(own_session).blocks.values()
    radio, *groups = [one for one in components if ("Energy", energy) in (getattr(one, "choices", None) or ())]
    assert radio.elem_id == "estimator"
    assert len(groups) == 1  # the Sweep tab's
    (methods,) = [one for one in components if ("Random heads", random_heads) in (getattr(one, "choices", None) or ())]
    assert methods.label == "Methods"
    settings = tiny.with_settings(estimator=energy)
    bars = json.loads(ratios_panel.show(own_session, settings, 0, SOMEBODY)["ratios"])
    drawn = [trace["y"] for trace in bars["data"] if trace["type"] == "bar"]
    plan = own_session.slice_plan(settings)
    assert "estimator: Energy." in bars["note"]
    assert drawn[1] == pytest.approx([layer.mlp_ratio for layer in plan.layers], rel=1e-4)
    *_, swept, _ = sweep_panel.sweep(own_session, tiny, SweepChoice([random_heads], [energy], [30]), SOMEBODY)
    assert [trace["name"] for trace in json.loads(swept["removed"])["data"]] == ["Random heads"]


@pytest.fixture
def seed_oss() -> Iterator[PreTrainedModel]:
    """A tiny model of transformers' own class, whose family is not among ours until the example registers it."""
    sizes = {"hidden_size": 48, "intermediate_size": 108, "num_attention_heads": 6, "num_key_value_heads": 2}
    model = randomised(SeedOssForCausalLM(SeedOssConfig(head_dim=8, **sizes, **SHARED)), 7)
    assert "'seed_oss' cannot be sliced" in refused(canonicalise, model)
    run(FAMILY)
    yield model
    del FAMILIES["seed_oss"]


def test_the_family_is_exact_at_full_rank_and_sliced_as_planned(seed_oss, as_loaded, own_cache, tmp_path):
    tokens = torch.randint(3, 256, (8, 32), generator=torch.Generator().manual_seed(7))
    mask = torch.ones_like(tokens)
    mask[1, :11] = 0
    expected = seed_oss(tokens).logits, seed_oss(tokens, attention_mask=mask).logits[mask.bool()]
    loaded = as_loaded(seed_oss)
    assert_close(loaded.model(tokens).logits, expected[0], atol=1e-5, rtol=0)
    padded = loaded.model(tokens, attention_mask=mask).logits[mask.bool()]
    assert_close(padded, expected[1], atol=1e-5, rtol=0)
    stats = calibrate(loaded, tokens, progress=False)
    plan = make_plan(stats.profile, sl.SliceConfig(0.4))
    sliced = sl.slice_model(loaded.model, plan, stats, tokens, progress=False)
    assert sum(p.numel() for p in sliced.parameters()) == plan.parameters.sliced_total
    sl.save(sliced, loaded.tokenizer, tmp_path / "sliced", {"source": "random weights"})
    assert torch.equal(sl.load(tmp_path / "sliced")[0](tokens).logits, sliced(tokens).logits)


@pytest.fixture
def summary(monkeypatch) -> ModuleType:
    panel = run(SUMMARY)
    monkeypatch.setitem(tabs.TABS, "summary", ("Summary", panel.build, panel.connect))
    return panel


def test_the_tab_is_in_the_page_and_follows_the_settings(summary, own_session, tiny):
    page = build_app(own_session)
    (tab,) = [one for one in page.blocks.values() if isinstance(one, gr.Tab) and one.id == "summary"]
    (table,) = [one for one in page.blocks.values() if one.elem_id == "summary"]
    assert (tab.label, table.parent) == ("Summary", tab)
    assert '"summary":"Summary"' in theme.script(tabs.labels())
    (listener,) = [function for function in page.fns.values() if list(function.outputs) == [table]]
    events = {event for _, event in page.fns[listener.trigger_after].targets}
    assert events >= {"release", "input", "change"}  # a setting is committed, a calibration ends, the tab is opened
    answer = listener.fn
    for percent in (20, 50):
        settings = tiny.with_settings(sparsity=percent, bias=1)
        kept = [len(layer.heads) for layer in own_session.slice_plan(settings).layers]
        shown = answer(*inputs_of(settings.settings, 0), "summary", SOMEBODY)
        assert [int(count) for count in re.findall(r"<td>(\d+) of 9</td>", shown)] == kept
        assert answer(*inputs_of(settings.settings, 0), "ratios", SOMEBODY) == gr.skip()
    assert min(kept) < 9
    assert answer(*inputs_of(tiny.settings._replace(sparsity=75, cap=60), 0), "summary", SOMEBODY) == gr.skip()
