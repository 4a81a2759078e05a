"""Whitened low rank against torch's own SVD; every factor counted; what no format holds is refused."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from intraslice.checkpoints.format import save
from intraslice.checkpoints.to_transformers import plain_model
from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError, UserError
from intraslice.methods.registry import plan_by, slice_by
from intraslice.methods.svd import low_rank
from intraslice.modeling.families import blocks
from intraslice.modeling.linear import LowRankMap
from intraslice.planning.budget import map_shapes, rank_for, saved_parameters
from intraslice.planning.sizes import LayerSizes


def made(case, sparsity: float):
    plan = plan_by("svd", case.loaded.model, case.stats, SliceConfig(sparsity))
    return plan, slice_by("svd", case.loaded.model, plan, case.stats, case.tokens, progress=False)


def test_a_case_by_hand():
    """`W = diag(3, 2)` on inputs of energies 1 and 4: the second direction carries 16, the first 9, so it stays."""
    left, right = low_rank(torch.diag(torch.tensor([3.0, 2.0])), torch.diag(torch.tensor([1.0, 4.0])), 1)
    assert_close(left @ right, torch.diag(torch.tensor([0.0, 2.0])))


def test_full_rank_is_exact():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 7, generator=generator).double()
    for shape in ((4, 7), (7, 7), (11, 7)):
        weight = torch.randn(shape, generator=generator)
        left, right = low_rank(weight, rows.T @ rows, min(shape))
        assert_close(left @ right, weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 8), (11, 8)])
def test_the_error_is_the_tail_of_the_singular_values(shape):
    """On the rows themselves, and below that of the plain SVD of the weight."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(60, 8, generator=generator).double() * torch.logspace(0, 2, 8)
    weight = torch.randn(shape, generator=generator)
    left, right = low_rank(weight, rows.T @ rows, 3)
    error = (rows @ (weight - left @ right).double().T).square().sum()
    values = torch.linalg.svdvals(rows @ weight.double().T)
    assert_close(error, values[3:].square().sum(), rtol=1e-5, atol=0)
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    assert error < (rows @ (weight - (u[:, :3] * s[:3]) @ v[:3]).double().T).square().sum()


def test_a_moment_that_is_not_positive_is_named():
    """As rounding leaves those of few tokens."""
    with pytest.raises(NumericalError, match="second-moment matrix is singular"):
        low_rank(torch.ones(3, 2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]), 1)


def test_ranks_by_hand():
    """A square map of 8 x 8 at one half keeps rank 2: two factors of 16 are half of 64."""
    assert rank_for((8, 8), 0.5) == 2
    assert saved_parameters((8, 8), 2) == 32
    assert rank_for((8, 8), 1.0) == 3  # of rank 4 the two factors would hold all 64
    assert rank_for((8, 8), 0.0) == 1
    sizes = LayerSizes(8, 2, 1, 4, 16, gated=False, attention_bias=False, mlp_bias=False, fixed=0)
    assert map_shapes(sizes) == {"q": (8, 8), "k": (4, 8), "v": (4, 8), "o": (8, 8), "up": (16, 8), "down": (8, 16)}


@torch.no_grad()
def test_nothing_goes_at_sparsity_zero(family_case):
    plan, model = made(family_case, 0.0)
    assert plan.removed_fraction == 0
    assert torch.equal(model(family_case.tokens).logits, family_case.loaded.model(family_case.tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("sparsity", [0.1, 0.4])
def test_the_plan_counts_both_factors(family_case, sparsity: float):
    plan, model = made(family_case, sparsity)
    assert plan.parameters.sliced_total == sum(p.numel() for p in model.parameters())
    assert plan.parameters.sliced_decoder == sum(p.numel() for p in model.model.layers.parameters())
    assert plan.removed_fraction == pytest.approx(sparsity, abs=0.01)
    assert plan.kv_bytes_per_token[0] == plan.kv_bytes_per_token[1]
    prompt = family_case.tokens[:1, :6]
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    settings["attention_mask"] = torch.ones_like(prompt)
    assert torch.equal(model.generate(prompt, **settings), model.generate(prompt, use_cache=False, **settings))


@torch.no_grad()
def test_maps_are_fitted_to_what_they_read(family_case):
    """Every map's error on the rows that reach it in the dense model is the tail of the singular values there."""
    case, read = family_case, {}
    _, model = made(case, 0.3)
    dense, narrow = blocks(case.loaded.model)[1], blocks(model)[1]
    pairs = [(dense.attention, narrow.attention, name) for name in ("qkv_proj", "o_proj")]
    up = "gate_up_proj" if dense.mlp.gated else "up_proj"
    pairs += [(dense.mlp, narrow.mlp, name) for name in (up, "down_proj")]
    handles = [
        getattr(module, name).register_forward_pre_hook(
            lambda _, inputs, name=name: read.update({name: inputs[0].flatten(0, 1).double()})
        )
        for module, _, name in pairs
    ]
    case.loaded.model(case.tokens)
    for handle in handles:
        handle.remove()
    for module, cut, name in pairs:
        linear, factors, rows = getattr(module, name), getattr(cut, name), read[name]
        assert isinstance(factors, LowRankMap)
        wanted, starts = linear(rows.float()).double(), 0
        found = factors(rows.float()).double()
        if linear.bias is not None:
            wanted, found = wanted - linear.bias, found - linear.bias
        for left, rank in zip(factors.left, factors.ranks, strict=True):
            own = slice(starts, starts + left.out_features)
            tail = torch.linalg.svdvals(wanted[:, own])[rank:].square().sum()
            assert_close((wanted - found)[:, own].square().sum(), tail, rtol=0.02, atol=1e-3)
            starts += left.out_features


def test_no_format_holds_it(tiny_case, tmp_path):
    case = tiny_case("llama-gqa")
    _, model = made(case, 0.3)
    for write in (
        lambda: save(model, case.loaded.tokenizer, tmp_path / "folder", {}),
        lambda: plain_model(model),
        lambda: blocks(model)[0].mlp.weights(),  # by which all others read a model
    ):
        with pytest.raises(UserError, match="no supported format can store it") as caught:
            write()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_it_takes_no_ratios_by_hand(tiny_case):
    case = tiny_case("llama-gqa")
    with pytest.raises(UserError, match="does not support locked ratios"):
        plan_by("svd", case.loaded.model, case.stats, SliceConfig(0.3, locked=((0, "mlp", 0.1),)))
