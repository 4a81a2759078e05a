"""Recovery after every slicing method: what is trained, towards what, what it leaves alone, and where it is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny_models import VOCABULARY
from torch import nn
from torch.testing import assert_close

from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress
from intraslice.core.registry import RECOVERIES
from intraslice.loading import load_model
from intraslice.methods.registry import METHODS, plan_by, slice_by
from intraslice.planning.ratios import make_plan
from intraslice.recovery import distill as distilling
from intraslice.recovery import recover
from intraslice.recovery.distill import Distillation, Lesson, low_rank_updates, sampled_head
from intraslice.slicing.driver import slice_model


@torch.no_grad()
def divergence(dense, sliced, tokens) -> float:
    tables = [model(tokens).logits.log_softmax(-1) for model in (dense, sliced)]
    return float((tables[0].exp() * (tables[0] - tables[1])).sum(-1).mean())


@pytest.fixture
def family_case(tiny_case):
    """One is enough; what is trained in others has tests below."""
    return tiny_case("phi")


@pytest.fixture
def sliced(family_case):
    plan = make_plan(family_case.stats.profile, SliceConfig(0.4, order="one-shot"))
    return slice_model(family_case.loaded.model, plan, family_case.stats, progress=False)


@pytest.mark.parametrize(("rows", "columns"), [(5, 7), (7, 5), (1, 1)])
def test_a_merged_update_is_what_was_trained(rows, columns) -> None:
    module, states = nn.Linear(columns, rows).requires_grad_(False), torch.randn(2, 3, columns)
    plain, generator = module(states), torch.Generator().manual_seed(3)
    with low_rank_updates([module], 8, seed=0) as (left, right):
        assert_close(module(states), plain)
        left.data = torch.randn(left.shape, generator=generator)
        trained = module(states)
        trained.sum().backward()
        assert all(factor.grad.any() for factor in (left, right))
    assert not torch.allclose(trained, plain)
    assert_close(module(states), trained.detach(), rtol=1e-4, atol=1e-5)
    assert not module._forward_hooks


def test_weights_that_require_gradients_get_none(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    plan = make_plan(case.stats.profile, SliceConfig(0.4, order="one-shot"))
    sliced = copy.deepcopy(slice_model(case.loaded.model, plan, case.stats, progress=False)).requires_grad_(True)
    Distillation().recover(case.loaded.model, sliced, case.tokens, 1, progress=False)
    assert all(weight.requires_grad and weight.grad is None for weight in sliced.parameters())


@pytest.mark.parametrize("size", [60, VOCABULARY])
@pytest.mark.parametrize("recovery", ["distill", "distill-ce"])
def test_a_gradient_is_that_of_the_divergence_and_with_ce_of_half_the_loss_on_the_text(
    tiny_case, recovery, size
) -> None:
    """Against autograd over all logits at once, with a part of the vocabulary or all of it as likely tokens."""
    case = tiny_case("llama-gqa")
    dense, sequence = case.loaded.model, case.tokens[0]
    plan = make_plan(case.stats.profile, SliceConfig(0.4, order="one-shot"))
    sliced = slice_model(dense, plan, case.stats, progress=False)
    weight = sliced.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        hidden = dense.model(sequence[None], use_cache=False).last_hidden_state[0]
    weight.requires_grad_(True)
    others = torch.tensor([token for token in range(VOCABULARY) if token not in sequence])
    likely = torch.cat([sequence.unique(), others])[:size].sort().values
    head = sampled_head(dense.lm_head, likely, torch.Generator().manual_seed(0))
    RECOVERIES[recovery]._add_gradients_(sliced, Lesson(sequence, hidden, likely), head, scale=0.25)
    streamed, weight.grad = weight.grad, None

    tokens = torch.cdist(head.weight, dense.lm_head.weight).argmin(-1)
    assert tokens[:size].tolist() == likely.tolist()
    assert len(tokens.unique()) == min(3 * size // 2, VOCABULARY)
    stand_for = torch.ones(len(tokens))
    stand_for[size:] = (VOCABULARY - size) / max(len(tokens) - size, 1)
    log_probs, target = (
        (model(sequence[None]).logits[0, :, tokens] + stand_for.log()).log_softmax(-1) for model in (sliced, dense)
    )
    divergence = (target.exp() * (target - log_probs)).sum(-1).mean()
    columns = torch.tensor([tokens.tolist().index(token) for token in sequence[1:]])
    hard = -log_probs[:-1].gather(1, columns[:, None]).sum() / len(sequence)
    (0.25 * (divergence + (0.5 if recovery == "distill-ce" else 0.0) * hard)).backward()
    assert_close(streamed, weight.grad, atol=1e-7, rtol=1e-4)


def test_what_does_not_fit_into_memory_is_not_begun(family_case, sliced, monkeypatch) -> None:
    monkeypatch.setattr(distilling, "available_bytes", lambda device: 1000)
    before = {name: tensor.clone() for name, tensor in sliced.state_dict().items()}
    with pytest.raises(UserError, match="free on cpu; slice without recovery"):
        Distillation().recover(family_case.loaded.model, sliced, family_case.tokens, 1, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sliced.state_dict().items())


def test_weights_that_are_not_finite_are_an_error(family_case, sliced) -> None:
    with pytest.raises(NumericalError, match="diverged"):
        Distillation(learning_rate=float("nan")).recover(
            family_case.loaded.model, sliced, family_case.tokens, 1, progress=False
        )


def test_modules_shared_with_the_dense_model_are_left_alone(family_case) -> None:
    dense = family_case.loaded.model
    plan = make_plan(family_case.stats.profile, SliceConfig(0.0, order="one-shot"))
    uncut = slice_model(dense, plan, family_case.stats, progress=False)
    events: list[Progress] = []
    assert Distillation().recover(dense, uncut, family_case.tokens, 3, progress=events.append) is uncut
    assert events == []


def test_after_a_cancellation_the_weights_are_those_before(family_case, sliced) -> None:
    dense, tokens = family_case.loaded.model, family_case.tokens
    before = {name: tensor.clone() for name, tensor in sliced.state_dict().items()}
    untrained = divergence(dense, sliced, tokens)

    def cancel(event: Progress) -> None:
        if (event.stage, event.done) == ("distill", 2):
            assert divergence(dense, sliced, tokens) != untrained
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Distillation().recover(dense, sliced, tokens, 3, progress=cancel)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sliced.state_dict().items())
    assert not any(parameter.requires_grad for parameter in sliced.parameters())


@pytest.fixture(params=[False, True], ids=["no-bias", "bias"])
def head(request) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 500, bias=request.param).requires_grad_(False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_likely_tokens_have_the_heads_logits_and_a_sample_no_token_twice(head) -> None:
    likely, hidden = torch.tensor([3, 20, 21, 400], dtype=torch.int32), torch.randn(7, 6)
    sampled = sampled_head(head, likely, generator())
    assert_close(sampled(hidden)[:, :4], head(hidden)[:, likely])
    assert sampled(hidden).shape == (7, 6)
    assert sampled.positions(torch.tensor([400, 3, 21])).tolist() == [3, 0, 2]
    likely = torch.arange(0, 300, 3)
    first, again, other = (sampled_head(head, likely, generator(seed)) for seed in (0, 0, 1))
    assert len(first.weight.unique(dim=0)) == 150
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_the_sum_over_all_tokens_is_estimated_without_bias(head) -> None:
    draws, hidden = generator(2), torch.randn(5, 6)
    likely = head(hidden).exp().sum(0).topk(100).indices.sort().values
    sums = torch.stack([sampled_head(head, likely, draws)(hidden).exp().sum(-1) for _ in range(400)])
    exact = head(hidden).exp().sum(-1)
    assert_close(sums.mean(0), exact, rtol=0.01, atol=0)
    assert (sums.std(0) < 0.1 * exact).all()
    assert (sums.std(0) > 0).all()


UNTRAINED = [name for name, method in METHODS.items() if method.recovery(SliceConfig()) == "none"]


def sliced_by(name: str, case, tokens=None, **config):
    plan = plan_by(name, case.loaded.model, case.stats, SliceConfig(0.4, **config))
    return slice_by(name, case.loaded.model, plan, case.stats, case.tokens, tokens, progress=False)


def same_weights(first, second) -> bool:
    return all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


# What is trained differs between the methods only where the residual stream is sliced.
TELLING = [("intraslice", "phi"), ("intraslice", "smollm3"), ("crossmodule", "llama-gqa")]
OTHERS = [(name, "llama-gqa") for name in UNTRAINED if name not in ("intraslice", "crossmodule")]


@pytest.mark.parametrize(
    ("name", "family"), [*TELLING, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)]
)
def test_every_method_gets_nearer_to_the_dense_model_and_nothing_else_changes(tiny_case, name, family):
    case = tiny_case(family)
    dense, sliced = case.loaded.model, sliced_by(name, case)
    shared = {id(parameter) for parameter in dense.parameters()}
    maps = {
        key
        for key, weight in sliced.named_parameters()
        if key.startswith("model.layers.") and weight.ndim == 2 and weight.numel() and id(weight) not in shared
    }
    maps = {key for key in maps if "shortcuts" not in key}
    assert any(not key.endswith(("o_proj.weight", "down_proj.weight")) for key in maps)  # what reads, as well
    for key in maps:  # slicing fits random tokens as well as it can be done
        sliced.get_parameter(key).mul_(0.5)
    before = [{key: tensor.clone() for key, tensor in model.state_dict().items()} for model in (dense, sliced)]
    far = divergence(dense, sliced, case.tokens)
    strong = Distillation(learning_rate=0.03)  # the steps are few
    assert strong.recover(dense, sliced, case.tokens, 3, progress=False) is sliced
    assert divergence(dense, sliced, case.tokens) < far
    assert all(torch.equal(tensor, before[0][key]) for key, tensor in dense.state_dict().items())
    for key, tensor in sliced.state_dict().items():
        assert torch.equal(tensor, before[1][key]) == (key not in maps), key
    assert not any(parameter.requires_grad for parameter in sliced.parameters())


@pytest.mark.parametrize("name", ["wanda", pytest.param("crossmodule", marks=pytest.mark.slow)])
def test_the_config_names_the_recovery_that_follows_slicing(tiny_case, name):
    case = tiny_case("llama-gqa")
    more = case.tokens[:4].flip(1)
    by_config = sliced_by(name, case, more, recovery="distill", epochs=2)
    by_hand = recover(case.loaded.model, sliced_by(name, case), more, "distill", epochs=2, progress=False)
    assert same_weights(by_config, by_hand)
    assert not same_weights(by_config, sliced_by(name, case))
    assert same_weights(sliced_by(name, case, more, recovery="distill", epochs=0), sliced_by(name, case))


def test_intraslice_plus_is_another_name(tiny_case):
    case = tiny_case("llama-mha")
    alias = sliced_by("intraslice+", case, iterative=True, recovery="distill", epochs=1)  # the first is ignored
    assert same_weights(alias, sliced_by("intraslice", case, order="one-shot", recovery="distill", epochs=1))


def test_offloaded_weights_are_refused_before_anything_is_sliced(folder):
    offloaded, tokens = load_model(str(folder), device_map="disk"), torch.arange(96).view(4, 24) + 3
    stats = calibrate(offloaded, tokens, progress=False)
    with pytest.raises(UserError, match="in memory; load the model without a device map"):
        plan_by("intraslice", offloaded.model, stats, SliceConfig(0.3, recovery="distill"))
    with pytest.raises(UserError, match="in memory"):
        recover(offloaded.model, offloaded.model, tokens)


def test_quantised_weights_are_refused(tiny_case):
    case = tiny_case("llama-gqa")
    sliced = sliced_by("wanda", case)
    down = sliced.model.layers[0].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UserError, match="floating-point"):
        recover(case.loaded.model, sliced, case.tokens)


def test_a_plan_says_which_recovery_follows(tiny_case):
    case = tiny_case("llama-gqa")
    config = SliceConfig(0.3, recovery="distill", epochs=3)
    for name in METHODS:
        plan = plan_by(name, case.loaded.model, case.stats, config)
        assert (plan.recovery, plan.epochs) == ("distill", 3)
        expected = "distill" if name == "intraslice+" else "none"
        assert plan_by(name, case.loaded.model, case.stats, replace(config, recovery="none")).recovery == expected
