"""What the page shows at once: the precomputed layer, and what the disk has from before."""

import gc
import html
import json
import math
import re
import shutil
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import divergences_at_once, losses_at_once
from tiny_page import in_job, precomputed_for, stepwise
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from components import make_snapshots
from components.activations import panel as activations_panel
from components.activations.measure import ShiftViews
from components.compare.models import Columns
from components.estimator.measure import EstimatorCheckCache
from components.frame import handlers
from components.ratios import panel as ratios_panel
from components.ratios.charts import ratio_chart
from components.spectra import panel as spectra_panel
from components.spectra.measure import SpectraViews
from components.state import request
from components.state.choices import ESTIMATORS
from components.state.precomputed import PERPLEXITY, SENSITIVITY, Measurements, Precomputed
from components.state.request import DENSE, Request, parse
from components.state.session import Session
from components.state.settings import Settings
from components.state.views import Perplexities, Provenance, Reading
from components.sweep import panel as sweep_panel
from components.ui import screen
from intraslice.calibration.driver import calibrate
from intraslice.core.progress import Progress
from intraslice.diagnostics.sensitivity import Sensitivity
from intraslice.evaluation.perplexity import DenseStates
from intraslice.loading import LoadedModel, load_model
from intraslice.planning.profile import LayerProfile
from intraslice.pretrained.sources import DEFAULT
from intraslice.token_windows import calibration_tokens

OPENING = Session().opening.with_settings(dtype="bfloat16")
FOUND = Precomputed().find(PERPLEXITY, OPENING.calibration, Measurements)
STORED = FOUND.value


def test_what_is_stored_has_every_whole_percentage_of_every_estimator_and_every_module_once() -> None:
    for estimator in ESTIMATORS:
        curve = STORED.curve(OPENING.with_settings(estimator=estimator).slicing)
        assert list(map(round, (100 * sparsity for sparsity in sorted(curve)))) == list(range(61))
        errors = [STORED.at(replace(OPENING.slicing, estimator=estimator, sparsity=s)).ratio_error for s in curve]
        assert all(0 < error < 1 for error in errors[1:])
        assert curve[0] == STORED.dense[0] < curve[0.2] < curve[0.4] < curve[0.6]
    found = Precomputed().find(SENSITIVITY, OPENING.calibration, Sensitivity)
    modules = [(one.layer, one.module) for one in found.value.modules]
    assert modules == [(layer, module) for layer in range(len(PROFILE.layers)) for module in ("attention", "mlp")]
    assert found.value.tokens == found.entry.tokens


def test_only_the_settings_that_were_measured_have_a_measurement() -> None:
    measured = STORED.at(OPENING.slicing)
    assert measured.perplexity == pytest.approx(STORED.dense[0] * measured.ratio, rel=1e-3)
    for changed in ({"sparsity": 20.5}, {"cap": 70}, {"bias": 1.1}, {"locked": "3 mlp 0"}, {"shapes": "runtime"}):
        assert STORED.at(OPENING.with_settings(**changed).slicing) is None
    between = Session().perplexities(OPENING.with_settings(sparsity=20.5))
    ends = [STORED.at(replace(OPENING.slicing, sparsity=sparsity)).perplexity for sparsity in (0.2, 0.21)]
    assert between.expected == pytest.approx(math.sqrt(math.prod(ends)))
    assert Session().perplexities(OPENING.with_settings(seed=1)) == Perplexities()


def test_a_setting_that_changes_no_size_has_the_measurement_of_the_same_slice() -> None:
    session, asked = Session(), OPENING.with_settings(sparsity=25, estimator="pca")
    measured, ratio = STORED.at(asked.slicing).perplexity, session.plan(asked).layers[7].mlp
    for changes_nothing in ({"cap": 70}, {"cap": 67}, {"locked": f"7 mlp {100 * ratio}"}):
        assert session.perplexities(asked.with_settings(**changes_nothing)).sliced.value == measured
    for changes in ({"cap": 60}, {"locked": "15 attention 0"}, {"estimator": "fisher", "cap": 60}, {"cap": 26}):
        assert not session.perplexities(asked.with_settings(**changes)).sliced


def test_all_tabs_open_with_the_default_model_before_it_is_loaded() -> None:
    session, measured = Session(), STORED.at(OPENING.slicing)
    text = handlers.initial_texts(session, OPENING)
    assert f"<b>{STORED.dense[0]:.1f}</b> → <b>{measured.perplexity:.1f}</b>" in text("headline")
    assert ", precomputed on " in text("headline")
    assert 'data-press="measure-here"' in text("headline")
    assert all(number in text("readout") for number in ("134.5 M", f"{measured.divergence:.2f}"))
    assert "Output error was chosen by measurement. At 30% the others have a higher KL: PCA-aware +" in text("readout")
    label = "Precomputed: SmolLM2-135M-Instruct (Q4_1) on 32 x 512 tokens"
    assert f'data-source="{label}' in text("readout")  # for the lesson
    shown = ratios_panel.show(session, OPENING, 12, "somebody")
    shown |= spectra_panel.show(SpectraViews(session), OPENING, 12, "somebody")
    shown |= activations_panel.show(ShiftViews(session), OPENING, 12, "somebody")
    assert label in shown.pop("summary")
    charts = {name: json.loads(chart) for name, chart in shown.items()}
    assert all(chart["data"] for chart in charts.values())
    assert {name for name, chart in charts.items() if label in chart["protocol"]} == {"ratios", "variance", "ranks"}
    costs = Columns(session).cached_costs(OPENING).columns
    expected = {"dense": STORED.dense[0], "intraslice": measured.perplexity}
    assert {name: cost.perplexity for name, cost in costs.items()} == expected


@pytest.fixture
def known(tiny, tmp_path, own_cache, one_by_one) -> Session:
    """With an empty cache, a sequence and a window at a time, and perplexities of the tiny model that no run gives."""
    digest = load_model(tiny.settings.model, tiny.calibration.dtype).weights_digest
    layer = precomputed_for(tmp_path / "layer", tiny, digest, perplexity=STORED)
    return stepwise(Session(evaluation_tokens=256, precomputed=layer))


def test_the_browser_is_told_what_was_measured_and_on_what(known, tiny) -> None:
    def told(request: Request = tiny) -> dict:
        readout = screen.texts(known.view(request, "somebody"))["readout"]
        return json.loads(html.unescape(re.search('data-measured="(.*?)"', readout)[1]))

    list(known.prepare(tiny, "somebody"))
    stored, before = STORED.at(tiny.slicing), told()
    found = [before[name] for name in ("source", "perplexity", "kl")]
    assert found == ["before", stored.perplexity, stored.divergence]
    list(known.measure(tiny, "somebody"))
    here, calibrated = told(), known.calibrated(tiny)
    assert (here["source"], here["kl"]) == ("here", None)
    models = calibrated.loaded.model, in_job(known, known.slice, tiny)
    perplexities = [losses_at_once(model, calibrated.windows).mean().exp().item() for model in models]
    assert [here["dense"], here["perplexity"]] == pytest.approx(perplexities, rel=1e-3)
    sizes = [sum(one.numel() for one in model.parameters()) for model in models]
    layers = sum(one.numel() for one in models[0].model.layers.parameters())
    assert (here["parameters"], here["removed"]) == (sizes[1], pytest.approx((sizes[0] - sizes[1]) / layers, abs=1e-3))
    in_job(known, known.readings.losses, tiny.slice_key("intraslice"), calibrated, compared=True)
    kl = divergences_at_once(*models, calibrated.windows).mean().item()
    assert told()["kl"] == pytest.approx(kl, rel=0.03)  # bfloat16
    about = tiny.settings.model, Path(tiny.settings.text).name, 256, 32, tiny.calibration.dtype
    assert tuple(here[name] for name in ("model", "text", "tokens", "window", "dtype")) == about
    picked = sweep_panel.pick(SimpleNamespace(pick=here["setting"]))
    own = tiny.settings._replace(dtype=tiny.calibration.dtype)._asdict()
    del own["upload"]
    assert picked | own == picked
    assert "upload" not in picked
    other = tiny.with_settings(length=16)  # in other windows: these numbers are not compared
    list(known.measure(other, "somebody"))
    assert len({told(other)["key"], here["key"], before["key"]}) == 3


def test_a_release_measures_what_is_precomputed_no_more_and_nothing_worse_replaces_it(known, tiny) -> None:
    expected, shown = STORED.at(tiny.slicing), []
    shown += [known.perplexities(tiny) for _ in known.prepare(tiny, "somebody")]
    assert not list(handlers.measure_live(known, tiny, 0, None, "somebody"))
    shown += [known.perplexities(tiny) for _ in handlers.on_prepared(known, tiny, 0, None, "somebody")]
    before, own = (next(group) for _, group in groupby(shown))
    assert (before.source.kind, before.sliced.value) == ("before", expected.perplexity)
    assert own.source == Provenance("here", 8, 8)
    assert own.sliced.value != expected.perplexity
    assert own.costs.divergence == expected.divergence  # KL and speed are not measured here


def test_what_was_measured_is_known_after_a_restart_without_slicing(fresh, tiny, monkeypatch) -> None:
    in_job(fresh, fresh.measure_perplexities, tiny)
    measured = fresh.perplexities(tiny)
    again = stepwise(Session(evaluation_tokens=256))
    monkeypatch.setattr(again, "_sliced", None)
    in_job(again, again.calibrations.calibrate, tiny.calibration)
    assert again.perplexities(tiny) == measured
    other = tiny.with_settings(cap=75)
    assert again.perplexities(other).sliced is None
    assert again.perplexities(other).dense == measured.dense


def test_numbers_of_other_weights_are_not_shown_and_plans_say_whose_they_are(default_model, monkeypatch) -> None:
    session, key = Session(), OPENING.calibration
    (manifest,) = session.precomputed.manifests.values()
    digests = {"float32": default_model.weights_digest, "bfloat16": load_model(DEFAULT, "bfloat16").weights_digest}
    assert manifest.weights | digests == manifest.weights  # `default` is one set of weights everywhere
    monkeypatch.setattr(request, "_identities", {})
    known, other = (f"{digest}-config-tokenizer" for digest in (manifest.weights[key.dtype], "0" * 64))
    for identity, is_shown in (("", True), (known, True), (other, False)):
        key.note_identity(identity)
        assert (session.perplexities(OPENING).source.kind == "before") == is_shown
        assert (session.perplexities(OPENING.with_settings(sparsity=20.5)).expected is not None) == is_shown
        views = [SpectraViews(session).view(OPENING, 0), ShiftViews(session).view(OPENING, "somebody")]
        assert {view is not None for view in (*views, EstimatorCheckCache(session).cached(OPENING))} == {is_shown}
        shown = ratio_chart(session.plan(OPENING)).caption()
        assert "Precomputed: SmolLM2-135M-Instruct (Q4_1) on 32 x 512 tokens" in shown


def test_numbers_die_with_the_weights_that_they_are_of(fresh, tiny, tmp_path) -> None:
    """A folder of the same name gets a training step, and goes back: no number of one is shown of the other."""
    folder = Path(shutil.copytree(tiny.settings.model, tmp_path / "model"))
    asked = tiny.with_settings(model=str(folder))
    whole = (folder / "model.safetensors").read_bytes()

    def measured() -> Perplexities:
        """After all that holds the model is gone from memory."""
        fresh._caches.models._entries.clear()
        fresh._caches.calibrations._entries.clear()
        gc.collect()
        in_job(fresh, fresh.calibrations.calibrate, asked.calibration)
        before.append(fresh.perplexities(asked).sliced)
        in_job(fresh, fresh.measure_perplexities, asked)
        return fresh.perplexities(asked)

    before: list[Reading | None] = []
    first = measured()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.up_proj.weight"][3] = 0  # one neuron
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    second = measured()
    (folder / "model.safetensors").write_bytes(whole)
    assert measured() == first
    assert second.dense != first.dense
    assert second.sliced != first.sliced
    assert before == [None, None, first.sliced]


@pytest.mark.slow
def test_a_point_can_be_measured_again() -> None:
    session = Session()
    list(session.prepare(OPENING, "somebody"))
    calibrated = session.calibrated(OPENING)
    states = DenseStates(calibrated.loaded.model)
    dense = in_job(session, session.readings.losses, OPENING.slice_key(DENSE), calibrated)
    line = make_snapshots.measure_line(calibrated, OPENING.slicing, dense, states)
    stored = STORED.at(OPENING.slicing)
    assert line.perplexity == pytest.approx(stored.perplexity, rel=0.01)
    assert line.divergence == pytest.approx(stored.divergence, rel=0.03)


LAYER = 17
PROFILE = Precomputed().source(OPENING.calibration).profile


class NoOperations(TorchDispatchMode):
    """Refuses all operations of torch."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        pytest.fail(str(func))


def one_layer(default_model: LoadedModel, patient: bool) -> LayerProfile:
    """What the estimator reads of a layer, from the calibration in the cache, or from one that takes minutes."""
    config = parse(Settings()).calibration.config
    tokens = calibration_tokens(default_model.tokenizer, config, config.text)

    def be_patient(_: Progress) -> None:
        if not patient:
            pytest.skip("the default model is not calibrated in this cache; -m slow does it, in minutes")

    return calibrate(default_model, tokens, progress=be_patient).profile.layers[LAYER]


@pytest.mark.parametrize("patient", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["cached", "made"])
def test_a_layer_of_the_profile_can_be_made_again(default_model, patient):
    kept, own = PROFILE.layers[LAYER], one_layer(default_model, patient)
    assert {"pca", "fisher"} <= kept.importances.keys()
    for name, importances in kept.importances.items():
        # Sums of squared gradients: other kernels round them otherwise, the order of units stays.
        assert_close(importances.attention, own.importances[name].attention.float(), rtol=0.02, atol=1e-9)
        assert_close(importances.mlp, own.importances[name].mlp.float(), rtol=0.02, atol=1e-9)
    assert kept.sizes == own.sizes
    assert (kept.table.dim == own.table.dim).float().mean() > 0.99


@pytest.mark.parametrize(("dtype", "bytes_per_value"), [("float32", 4), ("bfloat16", 2)])
def test_its_plans_count_bytes_in_the_precision_of_the_page(dtype, bytes_per_value):
    plan = Session().plan(parse(Settings(dtype=dtype)))
    assert plan.source.kind == "before"
    assert plan.bytes_per_value == bytes_per_value
    assert plan.kv[0] == bytes_per_value * sum(2 * one.sizes.kv_heads * one.sizes.dim for one in PROFILE.layers)


def test_a_slider_move_runs_no_operation_of_torch():
    """Each gives up the interpreter lock, which the handler of a slider then waits for beside every job."""
    session, requests = Session(), [parse(Settings(sparsity=sparsity)) for sparsity in (10, 37)]

    def move(request: Request) -> None:
        assert session.plan(request)
        assert session.importances(request, LAYER)["attention"].rules

    move(requests[0])  # caches what all settings share
    with NoOperations():
        move(requests[1])
