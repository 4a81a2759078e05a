"""Jobs that share one dense model: they take turns at every progress call, or one of them is cancelled there."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch
from stopping import Stopped, stop_at
from tiny_models import FAMILIES
from torch import nn
from transformers import PreTrainedModel

from intraslice.calibration.driver import CalibrationStats, calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.progress import Progress, ProgressCallback, ignore_progress
from intraslice.diagnostics.sensitivity import measure_sensitivity
from intraslice.diagnostics.shift import ShiftReport, measure_shift
from intraslice.evaluation.perplexity import perplexity
from intraslice.loading import load_model
from intraslice.methods.crossmodule import find_axes
from intraslice.methods.registry import plan_by, slice_by
from intraslice.modeling.families import blocks
from intraslice.modeling.offload import is_offloaded

Job = Callable[[Any, ProgressCallback], Any]  # what it does with a tiny case

pytestmark = pytest.mark.usefixtures("own_cache")


def slicing(method: str, **config: Any) -> Job:
    return lambda case, progress: case.cut(case.plan(method=method, **config), method, progress=progress)


def shift(case, progress: ProgressCallback) -> ShiftReport:
    methods = {"itself": case.dense, "sliced": case.sliced(method="crossmodule")}
    return measure_shift(case.dense, methods, case.tokens[:3], progress=progress)


def axes(case, progress: ProgressCallback) -> dict[int, list]:
    find_axes(case.dense, case.stats, progress=progress)
    return {read: found.tolist() for read, found in case.stats.residual_axes.items()}


JOBS: dict[str, Job] = {
    "calibration": lambda case, progress: calibrate(case.loaded, case.tokens[:4], progress=progress),
    "one-shot": slicing("intraslice"),
    "sequential": slicing("intraslice", order="sequential"),
    "cross-module one-shot": slicing("crossmodule"),
    "cross-module sequential": slicing("crossmodule", order="sequential"),
    "axes": axes,
    "plus": slicing("intraslice+", epochs=1),
    "wanda": slicing("wanda"),
    "modegpt": slicing("modegpt"),
    "shift": shift,
    "sensitivity": lambda case, progress: measure_sensitivity(
        case.loaded, case.stats, case.tokens[:4], 0.3, progress=progress
    ),
    "perplexity": lambda case, progress: perplexity(case.dense, case.tokens, progress=progress),
}


def with_own_stats(case):
    """The case with statistics that keep nothing yet of what methods add to them."""
    return replace(case, stats=replace(case.stats))


def contents(result: Any) -> Any:
    """A value that is equal for equal results."""
    if isinstance(result, PreTrainedModel):
        return {name: tensor.tolist() for name, tensor in result.state_dict().items()}
    if isinstance(result, CalibrationStats):
        return [{name: tensor.tolist() for name, tensor in vars(layer).items()} for layer in result.layers]
    return result.frame().to_csv() if isinstance(result, ShiftReport) else result


def left_behind(model: PreTrainedModel) -> list[str]:
    """Modules of the model with a hook, and parameters that want a gradient or have one."""
    hooked = [name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    return hooked + [name for name, p in model.named_parameters() if p.requires_grad or p.grad is not None]


def in_turns(case, jobs: dict[str, Job]) -> dict[str, Any]:
    """Every job's result, in threads of which one runs at a time: each hands on the turn at every call of its callback.

    Asserts at each turn that nothing is left on the dense model, and no random number drawn.
    """
    random, waiting, turn = torch.get_rng_state(), list(jobs), threading.Condition()

    def check(name: str) -> None:
        assert not left_behind(case.dense), name
        assert torch.equal(torch.get_rng_state(), random), name

    def run(name: str) -> Any:
        def hand_on(_: Progress) -> None:
            check(name)
            with turn:
                waiting.append(waiting.pop(0))
                turn.notify_all()
                turn.wait_for(lambda: waiting[0] == name)

        with turn:
            turn.wait_for(lambda: waiting[0] == name)
        try:
            result = contents(jobs[name](case, hand_on))
            check(name)
            return result
        finally:
            with turn:
                waiting.remove(name)
                turn.notify_all()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return dict(zip(jobs, pool.map(run, jobs), strict=True))


@pytest.mark.parametrize(
    "name", ["llama-gqa", *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "llama-gqa")]
)
def test_jobs_that_take_turns_give_what_each_gives_alone(tiny_case, monkeypatch, tmp_path, name):
    case = tiny_case(name)
    refused = {"cross-module one-shot", "cross-module sequential", "shift"} if name == "gemma3" else set()
    jobs = {name: job for name, job in JOBS.items() if name not in refused}
    alone = {name: contents(job(with_own_stats(case), ignore_progress)) for name, job in jobs.items()}
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))  # else results would be read from the first one
    together = in_turns(with_own_stats(case), jobs)
    for name, result in together.items():
        assert result == alone[name], name


def anatomy(model: PreTrainedModel) -> dict[str, Any]:
    """What makes a model: its modules, what they run, and its tensors with their values."""
    modules = {name: (id(part), part.training, vars(part).get("forward")) for name, part in model.named_modules()}
    tensors = {name: (id(tensor), tensor.tolist()) for name, tensor in model.state_dict(keep_vars=True).items()}
    return modules | tensors


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("gradients", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_job_that_is_cancelled_leaves_the_model_as_it_was(tiny_case, monkeypatch, tmp_path, name, gradients):
    case = with_own_stats(tiny_case("phi"))
    before = anatomy(case.dense)
    with torch.set_grad_enabled(gradients):
        for call in (1, 4, 19):
            with suppress(Stopped):  # some end before that call
                JOBS[name](case, stop_at(call))
            assert not left_behind(case.dense)
            assert anatomy(case.dense) == before
            assert torch.is_grad_enabled() == gradients
        again = contents(JOBS[name](case, ignore_progress))
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))
    assert again == contents(JOBS[name](with_own_stats(case), ignore_progress))


@pytest.mark.parametrize("name", ["sequential", "cross-module sequential", "shift", "sensitivity"])
def test_between_two_progress_calls_no_more_than_one_layer_is_passed(case, monkeypatch, name):
    """So the time between two calls does not grow with the model's depth."""
    monkeypatch.setattr("intraslice.modeling.hidden_states.TOKENS_PER_BATCH", 96)  # of 48 a sequence
    seen = {"reads": 0, "writes": 0}
    counts = []

    def note(_: Progress) -> None:
        counts.extend(seen.values())
        seen.update(reads=0, writes=0)

    def counting(kind: str) -> Callable:
        def count(_: nn.Module, inputs: tuple) -> None:
            seen[kind] += len(inputs[0])

        return count

    maps = {
        "reads": [(layer.attention.qkv_proj, layer.mlp.gate_up_proj) for layer in blocks(case.dense)],
        "writes": [(layer.attention.o_proj, layer.mlp.down_proj) for layer in blocks(case.dense)],
    }
    hooks = [part.register_forward_pre_hook(counting(kind)) for kind, layers in maps.items() for part in chain(*layers)]
    try:
        JOBS[name](case, note)
    finally:
        for hook in hooks:
            hook.remove()
    assert 0 < max(counts) <= 2 * 2  # a batch through attention and MLP


def test_weights_on_disk_are_there_again_once_a_job_is_cancelled(folder, case):
    model = load_model(str(folder), device_map="disk").model
    plan = plan_by("intraslice", model, case.stats, SliceConfig(0.4))
    were_in_memory = []

    def cancel(_: Progress) -> None:
        were_in_memory.append(not any(p.is_meta for p in model.model.layers[0].mlp.parameters()))
        if len(were_in_memory) == 5:
            raise Stopped

    with pytest.raises(Stopped):
        slice_by("intraslice", model, plan, case.stats, case.tokens, progress=cancel)
    assert were_in_memory[-1]
    assert is_offloaded(model)
    assert all(p.is_meta for p in model.model.layers[0].mlp.parameters())
