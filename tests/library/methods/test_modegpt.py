"""MoDeGPT against small cases by hand, the decompositions it is named after, and what every method must hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.methods.layer_ratios import leverage_scores
from intraslice.methods.modegpt import entropic_ratios, narrow_values, pair_norms
from intraslice.methods.registry import plan_by, slice_by
from intraslice.modeling.families import blocks


def made(case, sparsity: float, **config):
    plan = plan_by("modegpt", case.loaded.model, case.stats, SliceConfig(sparsity, **config))
    return plan, slice_by("modegpt", case.loaded.model, plan, case.stats, case.tokens, progress=False)


def test_shares_by_hand():
    """With a temperature of 1 and importances 0 and ln 3 the first layer gives three times as much."""
    assert entropic_ratios([0.0, float(torch.tensor(3.0).log())], 0.3, 1.0) == pytest.approx([0.45, 0.15])
    assert entropic_ratios([0.2, 0.9, 0.1], 0.3, 1e9) == pytest.approx([0.3] * 3)


def test_leverage_scores_by_hand():
    """Of neurons of energies 4 and 1 that never fire together, and of one that two others copy."""
    apart = leverage_scores(torch.diag(torch.tensor([4.0, 1.0])))
    ridge = 0.01 * 2.5
    assert_close(apart, torch.tensor([4 / (4 + ridge), 1 / (1 + ridge)]), rtol=1e-6, atol=0)
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows, rows[:, :1]], 1)
    scores = leverage_scores(rows.T @ rows)
    assert_close(scores, torch.tensor([0.5, 1.0, 1.0, 0.5]), rtol=2e-2, atol=0)


def test_cr_scores_by_hand():
    """Two queries read one key, whose first pair turns and whose second does not."""
    queries = torch.tensor([[1.0, 4.0, 3.0, 0.0], [3.0, 5.0, 2.0, 1.0]])
    keys = torch.tensor([[1.0, 1.0, 3.0, 9.0]])
    scores = pair_norms(queries, keys, torch.tensor([0, 0]), torch.tensor([[0, -1]]))
    turned, singles = ((1 + 3 + 3 + 2) * (1 + 3)) ** 0.5, [((4 + 5) * 1) ** 0.5, ((0 + 1) * 9) ** 0.5]
    assert_close(scores, torch.tensor([[turned, singles[0], turned, singles[1]]]).expand(2, -1))


@torch.no_grad()
def test_values_are_the_singular_vectors_of_the_whitened_product(tiny_case):
    """Head group by head group, against torch's own SVD of `W_o W_v C^1/2`, whose tail is the error."""
    case, dim = tiny_case("llama-gqa"), 4
    block, stats = blocks(case.loaded.model)[1], case.stats.layers[1]
    weights = block.attention.weights()
    value, bias, output = narrow_values(weights, stats.value_moment, dim)
    assert bias is None
    for group, moment in enumerate(stats.value_moment.double()):
        readers = (weights.kv_head == group).nonzero().flatten()
        # What heads read by the dense map is `v`, by the new one `back v`: both from the dense values.
        back = torch.linalg.lstsq(weights.value[group].T.double(), value[group].T.double()).solution.T
        dense = weights.output[:, readers].double().movedim(1, 0).flatten(0, 1)
        narrow = output[:, readers].double().movedim(1, 0).flatten(0, 1) @ back
        root = torch.linalg.cholesky(moment)
        wanted = torch.linalg.svdvals(dense @ root)[dim:].square().sum()
        assert_close(((dense - narrow) @ root).square().sum(), wanted, rtol=1e-3, atol=0)


@torch.no_grad()
def test_what_it_ranks_by_is_what_passes(family_case):
    """Values, rotated queries and keys, and the cosine of a layer's input and output, from the layer's own tensors."""
    case, tokens, seen = family_case, family_case.tokens[:5], []
    stats = calibrate(case.loaded, tokens, progress=False).layers[1]
    block = blocks(case.loaded.model)[1]

    def hook(_: torch.nn.Module, inputs: tuple, keywords: dict) -> None:
        hidden = keywords["hidden_states"] if "hidden_states" in keywords else inputs[0]
        seen.append(block.attention.project(hidden, keywords["position_embeddings"]))

    handle = block.attention.register_forward_pre_hook(hook, with_kwargs=True)
    case.loaded.model(tokens)
    handle.remove()
    states = case.original(
        tokens, output_hidden_states=True
    ).hidden_states  # which leaves hooks of transformers' behind
    query, key, value = seen[0]
    assert_close(stats.query_energy, query.square().sum((0, 2)), atol=1e-3, rtol=1e-4)
    assert_close(stats.key_energy, key.square().sum((0, 2)), atol=1e-3, rtol=1e-4)
    rows = value.transpose(0, 1).flatten(1, 2)
    assert_close(stats.value_moment, rows.mT @ rows, atol=1e-3, rtol=1e-4)
    cosines = torch.cosine_similarity(states[1], states[2], dim=-1)
    assert_close(stats.influence, (1 - cosines).sum(), atol=1e-2, rtol=1e-4)


@torch.no_grad()
def test_nothing_goes_at_sparsity_zero(family_case):
    plan, model = made(family_case, 0.0)
    assert plan.removed_fraction == 0
    assert_close(model(family_case.tokens).logits, family_case.loaded.model(family_case.tokens).logits)


@torch.no_grad()
@pytest.mark.parametrize("module", ["attention", "mlp"])
def test_whole_modules_are_exact(family_case, module: str):
    """Where only the other kind is cut, this kind's modules are the dense ones."""
    locked = tuple((layer, module, 0.0) for layer in range(3))
    plan, model = made(family_case, 0.1, locked=locked)
    name = {"attention": "self_attn", "mlp": "mlp"}[module]
    for layer, dense in zip(model.model.layers, family_case.loaded.model.model.layers, strict=True):
        for own, other in zip(getattr(layer, name).parameters(), getattr(dense, name).parameters(), strict=True):
            assert own is other
    step = max(size.parameters(size.heads, size.kv_heads, 2, 0) - size.fixed for size in family_case.stats.sizes)
    assert abs(plan.parameters.sliced_decoder - 0.9 * plan.parameters.dense_decoder) <= step / 2 + 1


@torch.no_grad()
def test_a_module_may_go_whole(family_case):
    """An attention and an MLP of ratio 1 write what their biases are, and no more."""
    plan, model = made(family_case, 0.5, locked=((0, "attention", 1.0), (2, "mlp", 1.0)))
    first, last = model.model.layers[0].self_attn, model.model.layers[2].mlp
    assert (first.heads, last.neurons) == (0, 0)
    assert plan.parameters.sliced_decoder == sum(p.numel() for p in model.model.layers.parameters())
    assert model(family_case.tokens[:2]).logits.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("sparsity", [0.2, 0.4])
def test_the_plan_counts_the_model(family_case, sparsity: float):
    plan, model = made(family_case, sparsity)
    assert plan.parameters.sliced_total == sum(p.numel() for p in model.parameters())
    assert plan.parameters.sliced_decoder == sum(p.numel() for p in model.model.layers.parameters())
    assert plan.removed_fraction == pytest.approx(sparsity, abs=0.01)
    prompt = family_case.tokens[:1, :6]
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    settings["attention_mask"] = torch.ones_like(prompt)
    assert torch.equal(model.generate(prompt, **settings), model.generate(prompt, use_cache=False, **settings))
    for layer, kept in zip(model.model.layers, plan.layers, strict=True):
        attention = layer.self_attn
        dim = family_case.stats.sizes[0].query_dim(kept.dim)
        assert (attention.heads, attention.dim, attention.value_dim) == (len(kept.heads), dim, kept.dim)


@torch.no_grad()
def test_narrower_values_beat_dropping_channels(tiny_case):
    """At attention alone, KL to the dense model is below that of a model whose last value channels are zeroed."""
    case = tiny_case("llama-biased")
    plan, model = made(case, 0.15, locked=tuple((layer, "mlp", 0.0) for layer in range(3)))
    logits = case.loaded.model(case.tokens).logits.log_softmax(-1)

    def divergence(other: Tensor) -> Tensor:
        return (logits.exp() * (logits - other.log_softmax(-1))).sum(-1).mean()

    found = divergence(model(case.tokens).logits)
    zeroed = slice_to_first_channels(case, plan)
    assert 0 < found < divergence(zeroed)


@torch.no_grad()
def slice_to_first_channels(case, plan) -> Tensor:
    """Logits of the dense model whose heads write from their first value channels alone."""
    handles = []
    for block, kept in zip(blocks(case.loaded.model), plan.layers, strict=True):
        mask = (torch.arange(block.attention.value_dim) < kept.dim).float().repeat(block.attention.heads)
        handles.append(block.attention.o_proj.register_forward_pre_hook(lambda *call, mask=mask: (call[1][0] * mask,)))
    logits = case.loaded.model(case.tokens).logits
    for handle in handles:
        handle.remove()
    return logits


def test_what_is_out_of_reach_is_refused(tiny_case):
    with pytest.raises(UserError, match="the sparsity cannot be reached"):
        made(tiny_case("llama-gqa"), 0.5, locked=tuple((layer, "mlp", 0.0) for layer in range(3)))
