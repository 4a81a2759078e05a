"""The snapshot that the page opens with is what calibrating the default model gives today."""

from __future__ import annotations

import json

import pytest
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from components.ratios.estimator_check import measure as verdict
from components.state.request import Request, parse
from components.state.session import Session
from components.state.settings import Settings
from components.state.snapshots import plan as snapshot
from intraslice.calibration.driver import calibrate
from intraslice.core.progress import Progress
from intraslice.data import calibration_tokens
from intraslice.loading import LoadedModel
from intraslice.planning.profile import LayerProfile

LAYER = 17


class Operations(TorchDispatchMode):
    """Notes all operations of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **kwargs or {})


def one_layer(default_model: LoadedModel, patient: bool) -> LayerProfile:
    """What the estimator reads of a layer, from the calibration in the cache, or from one that takes minutes."""
    config = parse(Settings()).calibration.config
    tokens = calibration_tokens(default_model.tokenizer, config, config.text)

    def be_patient(_: Progress) -> None:
        if not patient:
            pytest.skip("the default model is not calibrated in this cache; -m slow does it, in minutes")

    return calibrate(default_model, tokens, progress=be_patient).profile.layers[LAYER]


@pytest.mark.parametrize("patient", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["cached", "made"])
def test_a_layer_of_the_snapshot_can_be_made_again(default_model, patient):
    kept, own = snapshot.load()[0].layers[LAYER], one_layer(default_model, patient)
    assert {"pca", "fisher"} <= kept.importances.keys()
    for name, importances in kept.importances.items():
        # Sums of squared gradients: other kernels round them otherwise, the order of units stays.
        assert_close(importances.attention, own.importances[name].attention.float(), rtol=0.02, atol=1e-9)
        assert_close(importances.mlp, own.importances[name].mlp.float(), rtol=0.02, atol=1e-9)
    assert kept.sizes == own.sizes
    assert (kept.table.dim == own.table.dim).float().mean() > 0.99


def test_the_kept_sensitivity_has_every_module_once():
    record = json.loads(verdict.FILE.read_text(encoding="utf-8"))
    layers = len(snapshot.load()[0].layers)
    modules = [(one["layer"], one["module"]) for one in record["modules"]]
    assert modules == [(layer, module) for layer in range(layers) for module in ("attention", "mlp")]
    assert "tokens" in record["measured_on"]


@pytest.mark.parametrize(("dtype", "bytes_per_value"), [("float32", 4), ("bfloat16", 2)])
def test_its_plans_count_bytes_in_the_precision_of_the_page(dtype, bytes_per_value):
    plan = Session().plan(parse(Settings(dtype=dtype)))
    kept = snapshot.load()[0].layers
    assert plan.provisional
    assert plan.bytes_per_value == bytes_per_value
    assert plan.kv_dense == bytes_per_value * sum(2 * layer.sizes.kv_heads * layer.sizes.dim for layer in kept)


def test_a_slider_move_runs_no_operation_of_torch():
    """Each gives up the interpreter lock, which the handler of a slider then waits for beside every job."""
    session, requests = Session(), [parse(Settings(sparsity=sparsity)) for sparsity in (10, 37)]

    def move(request: Request) -> None:
        assert session.plan(request)
        assert session.importances(request, LAYER)

    move(requests[0])  # caches what all settings share
    with Operations() as operations:
        move(requests[1])
    assert operations.seen == []
