"""Distillation: updates of the sliced model's own linear maps, trained to match the dense model's distributions."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import VOCABULARY
from torch import nn
from torch.testing import assert_close

from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.core.progress import Progress
from intraslice.core.registry import RECOVERIES
from intraslice.planning.ratios import make_plan
from intraslice.recovery import distill as distilling
from intraslice.recovery.distill import Distillation, low_rank_updates, sampled_head
from intraslice.slicing.driver import slice_model


@torch.no_grad()
def divergence(dense, sliced, tokens) -> float:
    tables = [model(tokens).logits.log_softmax(-1) for model in (dense, sliced)]
    return float((tables[0].exp() * (tables[0] - tables[1])).sum(-1).mean())


@pytest.fixture
def sliced(family_case):
    plan = make_plan(family_case.stats.profile, SliceConfig(0.4, order="one-shot"))
    return slice_model(family_case.loaded.model, plan, family_case.stats, progress=False)


def test_the_distributions_come_nearer_and_nothing_else_changes(family_case, sliced) -> None:
    dense, tokens = family_case.loaded.model, family_case.tokens
    shared = {id(parameter) for parameter in dense.parameters()}
    unshared = {name for name, parameter in sliced.named_parameters() if id(parameter) not in shared}
    trained = {name for name in unshared if name.startswith("model.layers.") and sliced.get_parameter(name).ndim == 2}
    assert any(not name.endswith(("o_proj.weight", "down_proj.weight")) for name in trained)  # what reads, as well
    for name in trained:  # least squares leaves nothing to gain on random tokens, so spoil it
        sliced.get_parameter(name).mul_(0.5)
    dense_before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    before = {name: tensor.clone() for name, tensor in sliced.state_dict().items()}
    before_training = divergence(dense, sliced, tokens)
    Distillation(learning_rate=0.03).recover(dense, sliced, tokens, 3, progress=False)  # the steps are few
    assert divergence(dense, sliced, tokens) < before_training
    for name, tensor in sliced.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in trained), name
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, dense_before[name]), name
    assert not any(parameter.requires_grad for parameter in sliced.parameters())


def test_the_change_of_a_matrix_has_the_rank_of_its_update(tiny_case) -> None:
    case = tiny_case("llama-gqa")
    plan = make_plan(case.stats.profile, SliceConfig(0.4, order="one-shot"))
    sliced = slice_model(case.loaded.model, plan, case.stats, progress=False)
    shared = {id(parameter) for parameter in case.loaded.model.parameters()}
    matrices = [weight for weight in sliced.model.layers.parameters() if weight.ndim == 2 and id(weight) not in shared]
    before = [weight.clone() for weight in matrices]
    Distillation(rank=2, learning_rate=0.03).recover(case.loaded.model, sliced, case.tokens, 3, progress=False)
    changes = [weight - old for weight, old in zip(matrices, before, strict=True)]
    assert {int(torch.linalg.matrix_rank(change, rtol=1e-3)) for change in changes} == {2}


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


def test_after_an_exception_updates_are_dropped() -> None:
    module = nn.Linear(4, 3).requires_grad_(False)
    before = module.weight.clone()

    def fail() -> None:
        with low_rank_updates([module], 2, seed=0) as (left, _):
            left.data.fill_(1.0)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert torch.equal(module.weight, before)
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
    RECOVERIES[recovery]._add_gradients_(sliced, sequence, hidden, head, scale=0.25)
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


def test_weights_that_are_not_finite_are_an_error(family_case, sliced) -> None:
    with pytest.raises(NumericalError, match="diverged"):
        Distillation(learning_rate=float("nan")).recover(
            family_case.loaded.model, sliced, family_case.tokens, 3, progress=False
        )


def test_what_does_not_fit_into_memory_is_not_begun(family_case, sliced, monkeypatch) -> None:
    monkeypatch.setattr(distilling, "available_bytes", lambda device: 1000)
    before = {name: tensor.clone() for name, tensor in sliced.state_dict().items()}
    with pytest.raises(UserError, match="free on cpu; slice without recovery"):
        Distillation().recover(family_case.loaded.model, sliced, family_case.tokens, 1, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in sliced.state_dict().items())


def test_modules_shared_with_the_dense_model_are_left_alone(family_case) -> None:
    dense = family_case.loaded.model
    plan = make_plan(family_case.stats.profile, SliceConfig(0.0, order="one-shot"))
    uncut = slice_model(dense, plan, family_case.stats, progress=False)
    events: list[Progress] = []
    assert Distillation().recover(dense, uncut, family_case.tokens, 3, progress=events.append) is uncut
    assert events == []


def test_without_epochs_it_stays_at_the_fits(family_case, sliced) -> None:
    events: list[Progress] = []
    assert (
        Distillation().recover(family_case.loaded.model, sliced, family_case.tokens, 0, progress=events.append)
        is sliced
    )
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


def test_the_dense_model_gains_nothing_from_the_text(family_case) -> None:
    """The control: KL from itself is at its minimum, so that no part of a gain can be the text."""
    dense, tokens = family_case.loaded.model, family_case.tokens
    control = copy.deepcopy(dense)
    Distillation().recover(dense, control, tokens, 1, progress=False)
    assert divergence(dense, control, tokens) < 2e-4  # Adam also scales up gradients that are rounding errors
    losses = [float(model(tokens, labels=tokens).loss) for model in (dense, control)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
