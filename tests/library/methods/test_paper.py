"""Method `paper` against the formulas of the paper, written out for small layers, and on tiny models."""

from dataclasses import replace

import pytest
import torch
from random_weights import attention_weights, mlp_weights
from random_weights import random64 as random
from torch.testing import assert_close

from intraslice.core.config import SliceConfig
from intraslice.core.fit_config import INTRASLICE_FIT, PAPER_FIT
from intraslice.methods.registry import METHODS
from intraslice.modeling.mlp import SlicedMLP
from intraslice.planning.ratios import make_plan
from intraslice.slicing import iterative_mlp, sequential
from intraslice.slicing.attention import OutputMoments, cut_queries_and_keys
from intraslice.slicing.mlp import fitted_moment, keep_best, rank_neurons
from intraslice.slicing.one_shot import fit_attention

RIDGE = 0.01
HIDDEN, HEADS, DIM, NEURONS, TOKENS = 5, 2, 4, 16, 60


def damped(moment: torch.Tensor) -> torch.Tensor:
    return moment + RIDGE * moment.diagonal().mean() * torch.eye(len(moment), dtype=moment.dtype)


def test_attention_of_two_heads_by_the_formulas_of_the_paper():
    weights = attention_weights(HIDDEN, (0, 1), [(0, 1)] * 2, DIM, bias=False, dtype=torch.float64)
    rows = random(TOKENS, HEADS * DIM, seed=3) * torch.arange(1, 9)
    products = torch.tensor([[4.0, 1.0, 0.0, 1.0], [1.0, 2.0, 1.0, 3.0]], dtype=torch.float64)
    cut = cut_queries_and_keys(weights, products, (0, 1), 2)
    moments = OutputMoments(rows.T @ rows, rows.T @ rows, rows.mean(0), rows.mean(0), TOKENS)
    sliced = fit_attention(weights, cut, moments, 2, 0, PAPER_FIT)[0].weights()

    moment = rows.T @ rows
    axes = [torch.linalg.eigh(block).eigenvectors[:, -2:] for block in (moment[:4, :4], moment[4:, 4:])]
    narrow = rows @ torch.block_diag(*axes)
    coefficients = torch.linalg.solve(damped(narrow.T @ narrow), narrow.T @ rows)
    expected = narrow @ coefficients @ weights.output.flatten(1).T

    values = torch.block_diag(*(value.T for value in sliced.value @ torch.linalg.pinv(weights.value)))
    actual = rows @ values @ sliced.output.flatten(1).T
    assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    # Pairs (0, 2) and (1, 3): head 0 has products 4 + 0 and 1 + 1, head 1 has 1 + 1 and 2 + 3.
    assert_close(sliced.query[0], weights.query[0][[0, 2]])
    assert_close(sliced.query[1], weights.query[1][[1, 3]])


def test_mlp_by_the_formulas_of_the_paper():
    weights = mlp_weights(HIDDEN, NEURONS, dtype=torch.float64, bias=False)
    rows = random(TOKENS, NEURONS, seed=4) * torch.linspace(0.2, 2, NEURONS)
    fisher = torch.linspace(100, 1, NEURONS, dtype=torch.float64)
    ranked = rank_neurons(weights, fitted_moment(weights, rows.T @ rows, rows.mean(0), TOKENS), fisher, PAPER_FIT)
    sliced = keep_best(weights, ranked, rows.mean(0), 8)

    moment = damped(rows.T @ rows)
    scores = moment.diagonal() * weights.down.square().sum(0)
    order = scores.argsort(descending=True)
    kept, cut = order[:8].sort().values, order[8:]
    repair = torch.linalg.solve(moment[kept][:, kept], moment[kept][:, cut])
    assert_close(sliced.down, weights.down[:, kept] + weights.down[:, cut] @ repair.T, atol=1e-5, rtol=1e-5)
    assert_close(sliced.up, weights.up[kept])


def test_first_iterative_step_by_hand(monkeypatch):
    """Adam's first step changes each weight by the learning rate, against the sign of its gradient."""
    monkeypatch.setattr(iterative_mlp, "STEPS", 1)
    dense = SlicedMLP(mlp_weights(HIDDEN, NEURONS, dtype=torch.float32, bias=False))
    batch, cut = random(TOKENS, HIDDEN, seed=5).float(), torch.arange(2, 14)
    weights = dense.weights()
    activations = dense.activate(batch @ weights.gate[cut].T) * (batch @ weights.up[cut].T)
    moment = activations.T @ activations
    learned = iterative_mlp.learn(dense, cut, moment, 8, batch, lambda: None)

    chosen = moment.diagonal().topk(8).indices.sort().values
    # A slice of this MLP has 8 neurons, so the second one has the remaining 4 and half the learning rate.
    assert iterative_mlp.learned_components(NEURONS, NEURONS) == 8
    axes = torch.linalg.solve(damped(moment)[chosen][:, chosen], damped(moment)[chosen]).T
    axes[chosen] = torch.eye(8)
    targets = activations @ axes @ torch.linalg.inv(damped(axes.T @ axes))
    for index, rows in enumerate((torch.arange(8), torch.arange(8, 12))):
        own = torch.isin(chosen, rows).nonzero().flatten()
        start = (rows[:, None] == chosen[own]).float()
        maps = [start.clone().requires_grad_() for _ in range(2)]
        made = dense.activate(batch @ weights.gate[cut][rows].T @ maps[0]) * (batch @ weights.up[cut][rows].T @ maps[1])
        (made - targets[:, own]).square().mean().backward()
        for learned_map, own_map in zip((learned.gate, learned.up), maps, strict=True):
            step = 1e-3 * 0.5**index * own_map.grad / (own_map.grad.abs() + 1e-8 / len(own))
            assert_close(learned_map[rows][:, own], start - step, atol=1e-5, rtol=0)
        others = torch.tensor([column for column in range(8) if column not in own.tolist()], dtype=torch.long)
        assert not learned.up[rows][:, others].any()


@pytest.mark.parametrize("bias", [False, True])
def test_refinement_that_loses_on_held_out_sequences_is_refused(monkeypatch, bias):
    dense = SlicedMLP(mlp_weights(HIDDEN, NEURONS, dtype=torch.float32, bias=bias))
    inputs, order = (
        random(8, 20, HIDDEN, seed=6).float(),
        torch.randperm(NEURONS, generator=torch.Generator().manual_seed(0)),
    )

    def refined() -> SlicedMLP | None:
        return iterative_mlp.refine(dense, order, 12, inputs, 0, lambda: None)

    accepted = refined()
    assert accepted is None or accepted.neurons == 12

    def useless(dense, cut, moment, components, batch, pause) -> iterative_mlp.Projections:
        nothing = torch.zeros(len(cut), components)
        return iterative_mlp.Projections(nothing, nothing)

    monkeypatch.setattr(iterative_mlp, "learn", useless)
    assert refined() is None


def test_paper_fixes_its_settings_and_the_profile_scores_heads_by_energy_alone(tiny_case):
    case, method = tiny_case("llama-gqa"), METHODS["paper"]
    configured = method.configured(SliceConfig(0.3))
    assert configured.fit == PAPER_FIT
    assert (configured.order, configured.bias, configured.gradient_group) == ("sequential", 1.0, 8)
    assert method.configured(SliceConfig(0.3, bias=1.2)).bias == 1.2
    assert METHODS["paper-direct"].configured(SliceConfig()).fit == replace(PAPER_FIT, iterative_from=None)
    assert SliceConfig().fit == INTRASLICE_FIT
    with pytest.raises(ValueError, match="sensitive_scores"):
        make_plan(case.stats.profile, configured)


@pytest.mark.parametrize("family", ["llama-gqa", "phi3"])
def test_iterative_variant_changes_no_size(tiny_case, family, monkeypatch):
    monkeypatch.setattr(sequential, "SKIPPED", 0)
    case, tried = tiny_case(family), []

    def counted(*arguments):
        tried.append(iterative_mlp.refine(*arguments))
        return tried[-1]

    monkeypatch.setattr(sequential, "refine", counted)
    plan = case.plan(0.5, "paper")
    model = case.cut(plan, "paper")
    assert tried
    assert [layer.mlp.neurons for layer in model.model.layers] == [layer.neurons for layer in plan.layers]
    with torch.no_grad():
        assert model(case.tokens[:2]).logits.isfinite().all()
