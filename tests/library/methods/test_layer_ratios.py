"""The rival methods against small cases by hand, and the decompositions, scores and layers they name."""

import copy
import math

import pytest
import torch
from tiny_models import entering
from torch import nn
from torch.testing import assert_close

from intraslice.calibration.driver import calibrate
from intraslice.core.linalg import damp, damp_by_channel
from intraslice.methods.baselines import magnitude_scores
from intraslice.methods.flatllm import proportional_fractions
from intraslice.methods.layer_ratios import leverage_scores
from intraslice.methods.modegpt import entropic_ratios, narrow_values, pair_norms
from intraslice.methods.registry import METHODS
from intraslice.modeling.families import blocks, canonicalise


def made(method: str, case, sparsity: float, **config):
    plan = case.plan(sparsity, method, **config)
    return plan, case.cut(plan, method)


def test_shares_leverage_and_cr_scores_by_hand():
    """With a temperature of 1 and importances 0 and ln 3 the first layer gives three times as much."""
    assert entropic_ratios([0.0, float(torch.tensor(3.0).log())], 0.3, 1.0) == pytest.approx([0.45, 0.15])
    assert entropic_ratios([0.2, 0.9, 0.1], 0.3, 1e9) == pytest.approx([0.3] * 3)
    apart = leverage_scores(torch.diag(torch.tensor([4.0, 1.0])))
    ridge = 0.01 * 2.5
    assert_close(apart, torch.tensor([4 / (4 + ridge), 1 / (1 + ridge)]), rtol=1e-6, atol=0)
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    rows = torch.cat([rows, rows[:, :1]], 1)
    scores = leverage_scores(rows.T @ rows)
    assert_close(scores, torch.tensor([0.5, 1.0, 1.0, 0.5]), rtol=2e-2, atol=0)
    queries = torch.tensor([[1.0, 4.0, 3.0, 0.0], [3.0, 5.0, 2.0, 1.0]])
    keys = torch.tensor([[1.0, 1.0, 3.0, 9.0]])
    scores = pair_norms(queries, keys, torch.tensor([0, 0]), torch.tensor([[0, -1]]))
    turned, singles = ((1 + 3 + 3 + 2) * (1 + 3)) ** 0.5, [((4 + 5) * 1) ** 0.5, ((0 + 1) * 9) ** 0.5]
    assert_close(scores, torch.tensor([[turned, singles[0], turned, singles[1]]]).expand(2, -1))


def test_values_are_the_singular_vectors_of_the_whitened_product(case):
    """Head group by head group, against torch's own SVD of `W_o W_v C^1/2`, whose tail is the error."""
    dim = 4
    block, stats = blocks(case.dense)[1], case.stats.layers[1]
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


def test_what_it_ranks_by_is_what_passes(family_case):
    """Values, rotated queries and keys, their products, and a layer's cosine, from the layer's own tensors."""
    case, tokens, seen = family_case, family_case.tokens[:5], []
    stats = calibrate(case.loaded, tokens, progress=False).layers[1]
    block = blocks(case.dense)[1]

    def hook(_: torch.nn.Module, inputs: tuple, keywords: dict) -> None:
        hidden = keywords["hidden_states"] if "hidden_states" in keywords else inputs[0]
        seen.append(block.attention.project(hidden, keywords["position_embeddings"]))

    handle = block.attention.register_forward_pre_hook(hook, with_kwargs=True)
    case.dense(tokens)
    handle.remove()
    states = case.original(tokens, output_hidden_states=True).hidden_states
    query, key, value = seen[0]
    assert_close(stats.query_energy, query.square().sum((0, 2)), atol=1e-3, rtol=1e-4)
    assert_close(stats.key_energy, key.square().sum((0, 2)), atol=1e-3, rtol=1e-4)
    products = (query * key[:, block.attention.kv_head]).abs().sum((0, 2))
    assert_close(stats.channel_products, products, atol=1e-3, rtol=1e-4)
    rows = value.transpose(0, 1).flatten(1, 2)
    assert_close(stats.value_moment, rows.mT @ rows, atol=1e-3, rtol=1e-4)
    cosines = torch.cosine_similarity(states[1], states[2], dim=-1)
    assert_close(stats.influence, (1 - cosines).sum(), atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("module", ["attention", "mlp"])
def test_whole_modules_are_exact(family_case, module: str):
    """Where only the other kind is cut, this kind's modules are the dense ones."""
    locked = tuple((layer, module, 0.0) for layer in range(3))
    plan, model = made("modegpt", family_case, 0.1, locked=locked)
    name = {"attention": "self_attn", "mlp": "mlp"}[module]
    for layer, dense in zip(model.model.layers, family_case.dense.model.layers, strict=True):
        for own, other in zip(getattr(layer, name).parameters(), getattr(dense, name).parameters(), strict=True):
            assert own is other
    step = max(size.parameters(size.heads, size.kv_heads, 2, 0) - size.fixed for size in family_case.stats.sizes)
    assert abs(plan.parameters.sliced_decoder - 0.9 * plan.parameters.dense_decoder) <= step / 2 + 1


def test_fractions_ratios_and_comparable_scores_by_hand():
    """Shares of 1:3:8 of 1.5 modules: the largest is whole, and the others divide 0.5 in the ratio 1:3."""
    assert proportional_fractions([1.0, 3.0, 8.0], 0.5) == pytest.approx([0.125, 0.375, 1.0])
    assert proportional_fractions([1.0, 2.0], 0.3) == pytest.approx([0.2, 0.4])
    assert proportional_fractions([0.1, 5.0, 9.0], 1.0) == [1.0] * 3
    assert proportional_fractions([0.0, 0.0], 0.4) == pytest.approx([0.4, 0.4])
    first, second = METHODS["flatllm"].layer_ratios([1.0, 1 - math.sqrt(0.5)], 0.4)
    assert (first, second) == pytest.approx((0.2, 0.6))
    ratios = METHODS["shortgpt"].layer_ratios
    assert ratios([0.3, 0.1, 0.2, 0.4], 0.5) == [0.0, 1.0, 1.0, 0.0]
    assert ratios([0.3, 0.1, 0.2, 0.4], 0.3125) == [0.0, 1.0, 0.25, 0.0]
    assert ratios([0.3, 0.1], 1.0) == [1.0, 1.0]
    assert ratios([0.3, 0.1], 0.0) == [0.0, 0.0]
    scores = torch.tensor([3.0, 1.0, 2.0, 6.0])
    assert METHODS["wanda"].comparable(scores).tolist() == [0.5, 0.0, 0.25, 0.75]
    assert_close(METHODS["flap"].comparable(scores), (scores - 3) / scores.std())
    assert METHODS["flap"].comparable(torch.ones(3)).tolist() == [0, 0, 0]


def test_values_lose_their_last_principal_axes(case):
    """`W_o W_v` becomes `W_o Q Q^T W_v`; the lost energy of the values is the sum of the last eigenvalues."""
    plan, model = made("flatllm", case, 0.3)
    parts = zip(blocks(case.dense), model.model.layers, plan.layers, case.stats.layers, strict=True)
    for block, layer, kept, stats in parts:
        dense, sliced = block.attention.weights(), layer.self_attn.weights()
        assert torch.equal(sliced.query, dense.query)
        assert torch.equal(sliced.key, dense.key)
        values, vectors = torch.linalg.eigh(stats.value_moment.double())
        axes = vectors[..., -kept.dim :]
        for head, group in enumerate(dense.kv_head.tolist()):
            projection = axes[group] @ axes[group].T
            expected = dense.output[:, head].double() @ projection @ dense.value[group].double()
            assert_close((sliced.output[:, head] @ sliced.value[group]).double(), expected, atol=1e-4, rtol=1e-4)
        lost = stats.value_moment.double() - axes @ (axes.mT @ stats.value_moment.double())
        assert_close(lost.diagonal(dim1=-2, dim2=-1).sum(-1), values[..., : -kept.dim].sum(-1), atol=1e-3, rtol=1e-3)


def test_the_model_is_the_one_without_these_layers(case):
    dense = case.dense
    count = len(dense.model.layers)
    plan, model = made("shortgpt", case, 1 / count)
    (gone,) = (index for index, layer in enumerate(plan.layers) if layer.attention_ratio == 1)
    influence = [layer.influence.item() for layer in case.stats.layers]
    assert influence[gone] == min(influence)
    shorter = copy.deepcopy(dense)
    shorter.model.layers = nn.ModuleList(layer for index, layer in enumerate(shorter.model.layers) if index != gone)
    for index, layer in enumerate(shorter.model.layers):
        layer.self_attn.layer_idx = index
    assert_close(model(case.tokens).logits, shorter(case.tokens).logits)
    assert sum(p.numel() for p in model.model.layers[gone].parameters()) < 0.01 * plan.parameters.dense_decoder


def test_after_a_removed_layer_hidden_states_keep_their_norm(every_family_case):
    """As if the embedding and the layers before the gap wrote more, which is how Prune&Comp says it."""
    case, tokens = every_family_case, every_family_case.tokens
    locked = tuple((layer, module, float(layer)) for layer in (0, 1) for module in ("attention", "mlp"))
    config = {"sparsity": 1 / len(case.stats.layers), "locked": locked}
    (plan, plain), (_, rescaled) = made("shortgpt", case, **config), made("shortgpt-rescaled", case, **config)
    assert [bool(layer.heads or layer.neurons) for layer in plan.layers] == [True, False, True]
    assert sum(p.numel() for p in rescaled.parameters()) == sum(p.numel() for p in plain.parameters())
    states = case.original(tokens, output_hidden_states=True).hidden_states[1:3]
    norms = [state.norm(dim=-1, keepdim=True) for state in states]
    energies = [
        state.square().sum((0, 1)) / (state / norm).square().sum((0, 1))
        for state, norm in zip(states, norms, strict=True)
    ]
    growth = (energies[1].median() / energies[0].median()).sqrt()
    assert growth == pytest.approx(norms[1].mean() / norms[0].mean(), rel=0.1)
    handle = plain.model.layers[1].register_forward_hook(lambda module, inputs, output: output * growth)
    expected = plain(tokens).logits
    handle.remove()
    assert_close(rescaled(tokens).logits, expected, atol=1e-3, rtol=1e-3)
    assert rescaled.lm_head.weight is case.dense.lm_head.weight


def test_without_a_bias_rivals_take_as_much_of_either_kind(case):
    plan, _ = made("magnitude", case, 0.4)
    assert plan.reasons.bias == 1
    ratios = [sum(kind) for kind in zip(*((own.attention_ratio, own.mlp_ratio) for own in plan.layers), strict=True)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.1)


def test_magnitude_without_repair_is_the_dense_model_with_the_rest_zeroed(family_case):
    plan, model = made("magnitude", family_case, 0.4)
    zeroed = copy.deepcopy(family_case.dense)
    for block, layer in zip(blocks(zeroed), plan.layers, strict=True):
        heads, neurons = magnitude_scores(block)
        output = block.attention.o_proj.weight.unflatten(1, (block.attention.heads, -1))
        assert set(layer.heads) == set(heads.topk(len(layer.heads)).indices.tolist())
        output[:, [head for head in range(len(heads)) if head not in layer.heads]] = 0
        block.mlp.down_proj.weight[:, neurons.argsort(descending=True)[layer.neurons :]] = 0
    assert_close(model(family_case.tokens).logits, zeroed(family_case.tokens).logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["wanda", "flap", "modegpt"])
def test_mlps_are_refitted_with_the_ridge_of_their_method(case, method: str):
    """`W_down[:, kept] + W_down[:, cut] (S_kk^-1 S_kc)^T`; baselines have the ridge of `intraslice`."""
    _, model = made(method, case, 0.4)
    dense, sliced = (blocks(each)[0].mlp.weights() for each in (case.dense, model))
    is_kept = (dense.up[:, None] == sliced.up).all(-1).any(1)
    moment = (damp if method == "modegpt" else damp_by_channel)(case.stats.layers[0].mlp_moment).double()
    repair = torch.linalg.solve(moment[is_kept][:, is_kept], moment[is_kept][:, ~is_kept])
    expected = dense.down[:, is_kept].double() + dense.down[:, ~is_kept].double() @ repair.T
    assert_close(sliced.down.double(), expected, atol=1e-4, rtol=1e-4)


def test_activation_scores_are_those_of_the_rows(tiny_case):
    """Both scores, from the rows that enter the output maps of a layer."""
    case = tiny_case("phi3")
    block, stats = blocks(case.dense)[1], case.stats.layers[1]
    linears = {"attention": block.attention.o_proj, "mlp": block.mlp.down_proj}
    rows = dict(zip(linears, entering(case.dense, [*linears.values()], case.tokens), strict=True))
    wanda = {name: linears[name].weight.abs().sum(0) * rows[name].norm(dim=0) for name in rows}
    flap = {name: linears[name].weight.square().sum(0) * rows[name].var(0, correction=0) for name in rows}
    for name, wanted in (("wanda", wanda), ("flap", flap)):
        heads, neurons = METHODS[name].scores(block, stats, case.stats.tokens)
        assert_close(heads, wanted["attention"].view(block.attention.heads, -1).sum(1), atol=1e-5, rtol=1e-3)
        assert_close(neurons, wanted["mlp"], atol=1e-5, rtol=1e-3)


def test_magnitude_scores_by_hand(tiny_llama_gqa):
    model = tiny_llama_gqa()
    layer = model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    shared = attention.k_proj.weight[8:16].square().sum() + attention.v_proj.weight[8:16].square().sum()
    fourth = attention.q_proj.weight[24:32].square().sum() + attention.o_proj.weight[:, 24:32].square().sum()
    fourth = fourth + shared / 3
    neuron = mlp.gate_proj.weight[5].square().sum() + mlp.up_proj.weight[5].square().sum()
    neuron = neuron + mlp.down_proj.weight[:, 5].square().sum()
    canonicalise(model)
    heads, neurons = magnitude_scores(blocks(model)[0])
    assert_close(heads[3], fourth)
    assert_close(neurons[5], neuron)
