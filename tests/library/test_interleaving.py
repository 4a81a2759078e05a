"""Jobs take turns on one model: between two steps nothing of a job is left on it, whoever goes on or gives up."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from intraslice.core.config import SliceConfig
from intraslice.core.progress import Progress, finish, stepwise
from intraslice.diagnostics.sensitivity import measure_sensitivity
from intraslice.diagnostics.shift import ShiftReport, measure_shift
from intraslice.evaluation.perplexity import perplexity
from intraslice.loading import load_model
from intraslice.methods.registry import plan_by, slice_by
from intraslice.modeling.families import blocks
from intraslice.modeling.offload import is_offloaded

Job = Generator[Progress, None, Any]

pytestmark = pytest.mark.usefixtures("own_cache")


def slicing(method: str, **config: Any) -> Callable[..., Job]:
    def start(case) -> Job:
        model = case.loaded.model
        plan = plan_by(method, model, case.stats, SliceConfig(0.4, **config))
        return slice_by(method, model, plan, case.stats, case.tokens)

    return start


def shift(case) -> Job:
    methods = {"itself": case.loaded.model, "sliced": finish(slicing("crossmodule", order="one-shot")(case))}
    tokens = case.tokens[:3]
    return stepwise(lambda progress: measure_shift(case.loaded.model, methods, tokens, progress=progress))


def sensitivity(case) -> Job:
    tokens = case.tokens[:4]
    return stepwise(lambda progress: measure_sensitivity(case.loaded, case.stats, tokens, 0.4, progress=progress))


JOBS: dict[str, Callable[..., Job]] = {
    "one-shot": slicing("intraslice", order="one-shot"),
    "sequential": slicing("intraslice", order="sequential"),
    "refined": slicing("intraslice", order="sequential", iterative=True, iterative_above=0.0),
    "cross-module one-shot": slicing("crossmodule", order="one-shot"),
    "cross-module sequential": slicing("crossmodule", order="sequential"),
    "plus": slicing("intraslice+", epochs=1),
    "wanda": slicing("wanda"),
    "shift": shift,
    "sensitivity": sensitivity,
    "perplexity": lambda case: stepwise(lambda progress: perplexity(case.loaded.model, case.tokens, progress=progress)),
}


def contents(result: Any) -> Any:
    """What two results have in common if they are the same."""
    if isinstance(result, PreTrainedModel):
        return {name: tensor.tolist() for name, tensor in result.state_dict().items()}
    return result.frame().to_csv() if isinstance(result, ShiftReport) else result


def left_behind(model: PreTrainedModel) -> list[str]:
    """Modules of the model with a hook, and parameters that want a gradient or have one."""
    hooked = [name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    return hooked + [name for name, p in model.named_parameters() if p.requires_grad or p.grad is not None]


def in_turns(jobs: dict[str, Job], after_step: Callable[[str], None]) -> dict[str, Any]:
    """Run one step of each job after the other until all have ended: what each returns."""
    results: dict[str, Any] = {}
    while len(results) < len(jobs):
        for name, job in jobs.items():
            if name not in results:
                try:
                    next(job)
                except StopIteration as stop:
                    results[name] = contents(stop.value)
                after_step(name)
    return results


def test_jobs_that_take_turns_give_what_each_gives_alone(family_case, monkeypatch, tmp_path):
    alone = {name: contents(finish(start(family_case))) for name, start in JOBS.items()}
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))  # else sensitivity would only be read
    jobs = {name: start(family_case) for name, start in JOBS.items()}
    random = torch.get_rng_state()

    def untouched(name: str) -> None:
        assert not left_behind(family_case.loaded.model), name
        assert torch.is_grad_enabled(), name
        assert torch.equal(torch.get_rng_state(), random), name

    together = in_turns(jobs, untouched)
    for name, result in together.items():
        assert result == alone[name], name


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("gradients", [True, False])
def test_a_job_that_is_given_up_leaves_nothing_behind(tiny_case, name, gradients):
    case = tiny_case("phi")
    with torch.set_grad_enabled(gradients):
        for steps in (1, 2, 5, 11, 23, 47):
            job = JOBS[name](case)
            for _, _ in zip(range(steps), job, strict=False):
                pass
            job.close()
            assert not left_behind(case.loaded.model)
            assert torch.is_grad_enabled() == gradients


@pytest.mark.parametrize("name", ["sequential", "cross-module sequential", "shift", "sensitivity"])
def test_no_step_passes_more_than_one_layer(tiny_case, monkeypatch, name):
    """Which is what makes steps short, whatever the model."""
    monkeypatch.setattr("intraslice.modeling.hidden_states.TOKENS_A_BATCH", 96)  # of 48 a sequence
    case, seen = tiny_case("llama-gqa"), []
    job = JOBS[name](case)
    readers = [
        part for layer in blocks(case.loaded.model) for part in (layer.attention.qkv_proj, layer.mlp.gate_up_proj)
    ]
    hooks = [part.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0]))) for part in readers]
    try:
        for _ in job:
            assert sum(seen) <= 2 * 2  # a batch through attention and MLP
            seen.clear()
    finally:
        for hook in hooks:
            hook.remove()


def test_weights_on_disk_are_there_again_once_a_job_is_given_up(folder, tiny_case):
    case = tiny_case("llama-gqa")
    model = load_model(str(folder), device_map="disk").model
    plan = plan_by("intraslice", model, case.stats, SliceConfig(0.4))
    job = slice_by("intraslice", model, plan, case.stats, case.tokens)
    for _, _ in zip(range(5), job, strict=False):
        pass
    assert not all(p.is_meta for p in model.model.layers[0].mlp.parameters())
    job.close()
    assert is_offloaded(model)
    assert all(p.is_meta for p in model.model.layers[0].mlp.parameters())
