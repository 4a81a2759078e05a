"""Recovery after every slicing method: what is trained, towards what, what it leaves alone, and where it is refused."""

import copy

import pytest
import torch
from refusing import refused
from tiny_models import VOCABULARY, divergences_at_once
from torch import nn
from torch.testing import assert_close

from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError
from intraslice.core.progress import Progress
from intraslice.methods.registry import METHODS
from intraslice.recovery import distill as distilling
from intraslice.recovery import recover
from intraslice.recovery.distill import Distillation, Lesson, low_rank_updates, sampled_head


def divergence(dense, sliced, tokens) -> float:
    return float(divergences_at_once(dense, sliced, tokens).mean())


@pytest.fixture
def phi(tiny_case):
    return tiny_case("phi")


@pytest.fixture
def sliced(phi):
    """One is enough; what is trained in others has tests below."""
    return phi.sliced()


def values(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def are_as(model, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


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


def test_weights_that_require_gradients_get_none(case) -> None:
    sliced = copy.deepcopy(case.sliced()).requires_grad_(True)
    Distillation().recover(case.dense, sliced, case.tokens, 1, progress=False)
    assert all(weight.requires_grad and weight.grad is None for weight in sliced.parameters())


@pytest.mark.parametrize("size", [60, VOCABULARY])
def test_a_gradient_is_that_of_the_divergence(case, size) -> None:
    """Against autograd over all logits at once, with a part of the vocabulary or all of it as likely tokens."""
    dense, sliced, sequence = case.dense, case.sliced(), case.tokens[0]
    weight = sliced.model.layers[0].mlp.down_proj.weight
    hidden = dense.model(sequence[None], use_cache=False).last_hidden_state[0]
    weight.requires_grad_(True)
    others = torch.tensor([token for token in range(VOCABULARY) if token not in sequence])
    likely = torch.cat([sequence.unique(), others])[:size].sort().values
    head = sampled_head(dense.lm_head, likely, torch.Generator().manual_seed(0))
    Distillation()._add_gradients_(sliced, Lesson(sequence, hidden, likely), head, scale=0.25)
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
    (0.25 * divergence).backward()
    assert_close(streamed, weight.grad, atol=1e-7, rtol=1e-4)


def test_what_does_not_fit_into_memory_or_is_quantised_is_not_begun(phi, sliced, monkeypatch) -> None:
    before = values(sliced)
    with monkeypatch.context() as patch:
        patch.setattr(distilling, "available_bytes", lambda device: 1000)
        assert "free on cpu; slice without recovery" in refused(recover, phi.dense, sliced, phi.tokens, progress=False)
    assert are_as(sliced, before)
    quantised = copy.deepcopy(sliced)  # which shares no module with the dense model
    down = quantised.model.layers[0].mlp.down_proj
    down.weight = nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    assert "floating-point" in refused(recover, phi.dense, quantised, phi.tokens)


def test_weights_that_are_not_finite_are_an_error(phi, sliced) -> None:
    with pytest.raises(NumericalError, match="diverged"):
        Distillation(learning_rate=float("nan")).recover(phi.dense, sliced, phi.tokens, 1, progress=False)


def test_modules_shared_with_the_dense_model_are_left_alone(phi) -> None:
    uncut = phi.sliced(0.0)
    events: list[Progress] = []
    assert Distillation().recover(phi.dense, uncut, phi.tokens, 3, progress=events.append) is uncut
    assert events == []


def test_after_a_cancellation_the_weights_are_those_before(phi, sliced) -> None:
    dense, tokens, before = phi.dense, phi.tokens, values(sliced)
    untrained = divergence(dense, sliced, tokens)

    def cancel(event: Progress) -> None:
        if (event.stage, event.done) == ("distill", 2):
            assert divergence(dense, sliced, tokens) != untrained
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Distillation().recover(dense, sliced, tokens, 3, progress=cancel)
    assert are_as(sliced, before)
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
    return case.cut(case.plan(method=name, **{"order": "sequential"} | config), name, tokens)


# What is trained differs between the methods only where the residual stream is sliced.
TELLING = [("intraslice", "phi"), ("intraslice", "smollm3"), ("crossmodule", "llama-gqa")]
OTHERS = [(name, "llama-gqa") for name in UNTRAINED if name not in ("intraslice", "crossmodule")]


@pytest.mark.parametrize(
    ("name", "family"), [*TELLING, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)]
)
def test_every_method_gets_nearer_to_the_dense_model_and_nothing_else_changes(tiny_case, name, family):
    case = tiny_case(family)
    dense, sliced = case.dense, sliced_by(name, case)
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
    before, dense_before = values(sliced), values(dense)
    far = divergence(dense, sliced, case.tokens)
    strong = Distillation(learning_rate=0.03)  # the steps are few
    assert strong.recover(dense, sliced, case.tokens, 3, progress=False) is sliced
    assert divergence(dense, sliced, case.tokens) < far
    assert are_as(dense, dense_before)
    for key, tensor in sliced.state_dict().items():
        assert torch.equal(tensor, before[key]) == (key not in maps), key
    assert not any(parameter.requires_grad for parameter in sliced.parameters())


@pytest.mark.parametrize("name", ["wanda", pytest.param("crossmodule", marks=pytest.mark.slow)])
def test_the_config_names_the_recovery_that_follows_slicing(case, name):
    more = case.tokens[:4].flip(1)
    by_config = sliced_by(name, case, more, recovery="distill", epochs=2)
    by_hand = recover(case.dense, sliced_by(name, case), more, "distill", epochs=2, progress=False)
    assert are_as(by_config, values(by_hand))
    assert not are_as(by_config, values(sliced_by(name, case)))
    assert are_as(sliced_by(name, case, more, recovery="distill", epochs=0), values(sliced_by(name, case)))


def test_intraslice_plus_is_another_name(case):
    alias = sliced_by("intraslice+", case, order="sequential", recovery="distill", epochs=1)  # the order is ignored
    assert are_as(alias, values(sliced_by("intraslice", case, order="one-shot", recovery="distill", epochs=1)))


def test_a_plan_says_which_recovery_follows(case):
    for name in METHODS:
        plan = case.plan(0.3, name, recovery="distill", epochs=3)
        assert (plan.recovery, plan.epochs) == ("distill", 3)
        expected = "distill" if name == "intraslice+" else "none"
        assert case.plan(0.3, name).recovery == expected
