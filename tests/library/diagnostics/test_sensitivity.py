"""Measured sensitivity against plain slicing and plain losses; stopped and gone on; killed half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import losses_at_once

from intraslice.config import SliceConfig
from intraslice.diagnostics import sensitivity
from intraslice.diagnostics.sensitivity import cut_alone, measure_sensitivity
from intraslice.errors import UserError
from intraslice.planning.ratios import make_plan
from intraslice.progress import Progress, finish
from intraslice.slicing.driver import slice_model

pytestmark = pytest.mark.usefixtures("own_cache")


def evaluation(case):
    return case.tokens[:4, :20]


def test_each_module_s_loss_is_that_of_a_model_with_it_alone_sliced(family_case):
    model, tokens = family_case.loaded.model, evaluation(family_case)
    events: list[Progress] = []
    measured = finish(measure_sensitivity(family_case.loaded, family_case.stats, tokens, 0.4), events.append)
    dense = losses_at_once(model, tokens)
    assert measured.dense_loss == pytest.approx(dense.mean().item(), rel=1e-5)
    assert measured.tokens == dense.numel()
    assert [(loss.layer, loss.module) for loss in measured.modules] == [
        (i, m) for i in range(3) for m in ("attention", "mlp")
    ]
    assert list(dict.fromkeys(event.done for event in events)) == list(range(7))
    plan = make_plan(family_case.stats.profile, SliceConfig(0.0, order="one-shot"))
    for loss in measured.modules:
        layers = list(plan.layers)
        layers[loss.layer] = cut_alone(
            layers[loss.layer], family_case.stats.profile.layers[loss.layer], loss.module, 0.4
        )
        sliced = finish(slice_model(model, replace(plan, layers=tuple(layers)), family_case.stats))
        increase = losses_at_once(sliced, tokens) - dense
        standard_error = (increase.std() / increase.numel() ** 0.5).item()
        assert loss.increase == pytest.approx(increase.mean().item(), abs=1e-5)
        assert loss.standard_error == pytest.approx(standard_error, rel=1e-2, abs=1e-6)
        counts = [sum(p.numel() for p in counted.parameters()) for counted in (model, sliced)]
        assert loss.removed == counts[0] - counts[1] > 0


def test_no_forward_starts_before_its_own_layer(tiny_case):
    case = tiny_case("llama-gqa")
    calls = []
    hooks = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(case.loaded.model.model.layers)
    ]
    finish(measure_sensitivity(case.loaded, case.stats, evaluation(case)))
    for hook in hooks:
        hook.remove()
    # Once for the dense loss, once for the next layer's inputs, and for both modules of each layer up to its own
    # (a sliced layer is a copy that carries the hook).
    assert [calls.count(index) for index in range(3)] == [4, 6, 8]


def test_a_module_cut_alone_has_the_sizes_of_its_ratio(tiny_case):
    profile = tiny_case("llama-gqa").stats.profile.layers[0]
    dense = make_plan(tiny_case("llama-gqa").stats.profile, SliceConfig(0.0)).layers[0]
    mlp = cut_alone(dense, profile, "mlp", 0.5)
    assert (mlp.neurons, mlp.heads, mlp.dim) == (68, dense.heads, dense.dim)  # 66 go, rounded down to 64
    attention = cut_alone(dense, profile, "attention", 0.5)
    assert attention.neurons == 132
    assert len(attention.heads) * attention.dim == pytest.approx(36, abs=6)


@pytest.fixture
def count_measurements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, str]]:
    done: list[tuple[int, str]] = []
    slice_alone = sensitivity._slice_alone

    def counted(model, stats, layer, module, ratio):
        done.append((layer, module))
        return slice_alone(model, stats, layer, module, ratio)

    monkeypatch.setattr(sensitivity, "_slice_alone", counted)
    return done


@pytest.mark.parametrize("stop", [1, 2, 3, 6])
def test_a_stopped_run_goes_on_where_it_was(tiny_case, count_measurements, stop):
    case = tiny_case("llama-gqa")
    unbroken = finish(measure_sensitivity(case.loaded, case.stats, evaluation(case), 0.3))
    for file in (Path(os.environ["INTRASLICE_CACHE"]) / "sensitivity").iterdir():
        file.unlink()
    count_measurements.clear()
    job = measure_sensitivity(case.loaded, case.stats, evaluation(case), 0.3)
    while next(job).done < stop:
        pass
    job.close()
    first = len(count_measurements)
    events: list[Progress] = []
    resumed = finish(measure_sensitivity(case.loaded, case.stats, evaluation(case), 0.3), events.append)
    assert events[0] == Progress("sensitivity", stop, 6)
    assert first == stop
    assert count_measurements == [(i, m) for i in range(3) for m in ("attention", "mlp")]
    assert [vars(loss) for loss in resumed.modules] == [pytest.approx(vars(loss)) for loss in unbroken.modules]
    assert resumed.dense_loss == unbroken.dense_loss


@pytest.mark.parametrize("change", ["ratio", "tokens", "weights", "calibration"])
def test_another_run_starts_anew(tiny_case, count_measurements, change):
    case = tiny_case("llama-gqa")
    loaded, stats, tokens, ratio = case.loaded, case.stats, evaluation(case), 0.3
    finish(measure_sensitivity(loaded, stats, tokens, ratio))
    finish(measure_sensitivity(loaded, stats, tokens, ratio))
    assert len(count_measurements) == 6
    if change == "ratio":
        ratio = 0.4
    elif change == "tokens":
        tokens = tokens - 1
    elif change == "weights":
        loaded = replace(loaded, fingerprint="other")
    else:
        stats = replace(stats, layers=[replace(layer, attention_sum=layer.attention_sum + 1) for layer in stats.layers])
    finish(measure_sensitivity(loaded, stats, tokens, ratio))
    assert len(count_measurements) == 12


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_leaves_a_record_to_go_on_from(tiny_case, folder, count_measurements, tmp_path):
    script = f"""
import os, signal, torch
from intraslice.calibration.driver import calibrate
from intraslice.progress import finish
from intraslice.loading import load_model
from intraslice.diagnostics.sensitivity import measure_sensitivity
loaded = load_model({str(folder)!r})
tokens = torch.arange(96).view(4, 24) + 3
stats = finish(calibrate(loaded, tokens))
for event in measure_sensitivity(loaded, stats, tokens[:2]):
    if event.done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    from intraslice.calibration.driver import calibrate
    from intraslice.loading import load_model

    loaded, tokens = load_model(str(folder)), torch.arange(96).view(4, 24) + 3
    resumed = finish(measure_sensitivity(loaded, finish(calibrate(loaded, tokens)), tokens[:2]))
    assert len(resumed.modules) == 6
    assert count_measurements == [(1, "mlp"), (2, "attention"), (2, "mlp")]


@pytest.mark.parametrize("ratio", [0.0, -0.1, 0.96, float("nan")])
def test_a_ratio_out_of_range_is_refused(tiny_case, ratio):
    case = tiny_case("llama-gqa")
    with pytest.raises(UserError, match="ratio"):
        finish(measure_sensitivity(case.loaded, case.stats, evaluation(case), ratio))
