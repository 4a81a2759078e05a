"""IntraSlice+: output maps that follow the dense residual stream."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from intraslice.config import SliceConfig
from intraslice.methods import plus_align
from intraslice.methods.plus_align import slice_aligned
from intraslice.planning.ratios import make_plan
from intraslice.progress import finish
from intraslice.slicing.driver import slice_model


@torch.no_grad()
def _weighted_error(dense, sliced, tokens) -> float:
    """Mean over tokens of the squared error of the last residual state, relative to the dense state."""
    states = []
    for model in (dense, sliced):
        handle = model.model.layers[-1].register_forward_hook(lambda _, __, output: states.append(output))
        model(tokens)
        handle.remove()
    return float(((states[1] - states[0]).square().sum(-1) / states[0].square().sum(-1)).mean())


def test_nothing_changes_at_sparsity_zero(family_case):
    plan = make_plan(family_case.stats.profile, SliceConfig(0.0))
    model = finish(slice_aligned(family_case.loaded.model, plan, family_case.stats, family_case.tokens))
    with torch.no_grad():
        expected = family_case.original(family_case.tokens).logits
        assert_close(model(family_case.tokens).logits, expected, atol=1e-4, rtol=1e-4)


def test_the_hidden_states_come_nearer_to_the_dense_ones_at_the_same_sizes(family_case, monkeypatch):
    """With little damping the fit must win on its own tokens, since the one-shot maps are among its candidates."""
    monkeypatch.setattr(plus_align, "DAMPING", 1e-4)
    dense, tokens = family_case.loaded.model, family_case.tokens
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    plan = make_plan(family_case.stats.profile, SliceConfig(0.4, order="one-shot"))
    one_shot = finish(slice_model(dense, plan, family_case.stats))
    fitted = finish(slice_aligned(dense, plan, family_case.stats, tokens))
    assert _weighted_error(dense, fitted, tokens) < 0.95 * _weighted_error(dense, one_shot, tokens)
    shapes = [{name: tensor.shape for name, tensor in model.state_dict().items()} for model in (one_shot, fitted)]
    assert shapes[0] == shapes[1]
    for name, tensor in dense.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_massive_token_keeps_its_say():
    """One token in a hundred, a thousand times as large: its own output is not given up for a little on the rest."""
    generator = torch.Generator().manual_seed(1)
    rows, state = torch.randn(1, 100, 4, generator=generator), torch.randn(1, 100, 3, generator=generator)
    rows[:, 0] *= 1000
    state[:, 0] *= 1000
    output_map = torch.nn.Linear(4, 3, bias=False).requires_grad_(False)
    output_map.weight.uniform_(-0.5, 0.5, generator=generator)
    target = output_map(rows)
    target[:, 1:] += rows[:, 1:] @ torch.randn(4, 3, generator=generator)  # all others want another map
    fit = plus_align._Fit(output_map)
    fit.add_(rows, target, state)
    change = (fit.solved()(rows) - target).norm(dim=-1)[0, 0] / target.norm(dim=-1)[0, 0]
    assert change < 0.25  # 1.6 where tokens weigh the inverse mean square


def test_a_fit_is_weighted_least_squares_with_a_bias():
    generator = torch.Generator().manual_seed(0)
    rows, state = torch.randn(2, 50, 5, generator=generator), torch.randn(2, 50, 3, generator=generator)
    output_map = torch.nn.Linear(5, 3).requires_grad_(False)
    target = torch.randn(2, 50, 3, generator=generator)
    fit = plus_align._Fit(output_map)
    for index in range(2):
        fit.add_(rows[index : index + 1], target[index : index + 1], state[index : index + 1])
    root = state.square().mean(-1, keepdim=True).pow(-0.25).flatten(0, 1)
    design = torch.cat([rows.flatten(0, 1), torch.ones(100, 1)], dim=1)
    best = torch.linalg.lstsq(design * root, target.flatten(0, 1) * root).solution
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plus_align, "DAMPING", 0.0)
        solved = fit.solved()
    assert_close(solved.weight, best[:5].T, atol=1e-4, rtol=1e-3)
    assert_close(solved.bias, best[5], atol=1e-4, rtol=1e-3)
