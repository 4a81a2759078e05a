"""One contract for all families: exact at full rank, as small as planned, itself with caches, batches and padding."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

from intraslice.core.config import SliceConfig
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.hidden_states import cache_keyword
from intraslice.modeling.mlp import SlicedMLP
from intraslice.planning.profile import LayerProfile
from intraslice.planning.ratios import make_plan
from intraslice.slicing.driver import slice_model

LENGTHS = (23, 14, 9)  # of the padded batch: longer and shorter than the sliding window of 8
ORDERS = ("sequential", "one-shot")


def sliced(case, sparsity: float = 0.4, order: str = "sequential", **config) -> tuple[PreTrainedModel, object]:
    plan = make_plan(case.stats.profile, SliceConfig(sparsity, bias=1.0, order=order, **config))
    return slice_model(case.loaded.model, plan, case.stats, case.tokens, progress=False), plan


def padded_batch(case, side: str) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask of three texts of different lengths."""
    tokens, mask = torch.zeros(3, LENGTHS[0], dtype=torch.long), torch.zeros(3, LENGTHS[0], dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        place = slice(LENGTHS[0] - length, None) if side == "left" else slice(length)
        tokens[row, place], mask[row, place] = case.tokens[row, :length], 1
    return tokens, mask


def positions(mask: Tensor) -> Tensor:
    """Positions counted from each text's own first token, as `generate` does."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


@torch.no_grad()
def greedy_without_cache(model: PreTrainedModel, tokens: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        following = model(tokens, use_cache=False).logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, following], 1)
    return tokens


def generate(model: PreTrainedModel, tokens: Tensor, mask: Tensor, steps: int = 12) -> Tensor:
    """Greedy, with the cache that transformers takes by itself; never stopped early."""
    return model.generate(
        tokens, attention_mask=mask, max_new_tokens=steps, do_sample=False, eos_token_id=None, pad_token_id=0
    )


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-4)


# Full rank


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_full_rank_is_transformers_own_model(every_family_case, side):
    tokens, mask = padded_batch(every_family_case, side)
    canonical, original = (
        model(tokens, attention_mask=mask, position_ids=positions(mask)).logits
        for model in (every_family_case.loaded.model, every_family_case.original)
    )
    assert original.std() > 0.1  # far from trivial
    close(canonical[mask.bool()], original[mask.bool()])


def test_full_rank_generates_the_same(every_family_case):
    tokens, mask = padded_batch(every_family_case, "left")
    assert torch.equal(
        generate(every_family_case.loaded.model, tokens, mask), generate(every_family_case.original, tokens, mask)
    )


def test_full_rank_has_the_same_number_of_parameters(every_family_case):
    canonical, original = (
        sum(p.numel() for p in m.parameters()) for m in (every_family_case.loaded.model, every_family_case.original)
    )
    assert (
        canonical
        == original
        == every_family_case.stats.profile.dense_decoder + every_family_case.stats.other_parameters
    )


@torch.no_grad()
@pytest.mark.parametrize("order", ORDERS)
def test_sparsity_zero_is_exact(every_family_case, order):
    model, plan = sliced(every_family_case, 0.0, order)
    tokens = every_family_case.tokens[:2]
    assert torch.equal(model(tokens).logits, every_family_case.loaded.model(tokens).logits)
    assert plan.removed_fraction == 0
    assert plan.kv_bytes_per_token[0] == plan.kv_bytes_per_token[1]


# Smaller


def unique_values(tensors: list[Tensor]) -> int:
    """How many values are stored: tied tensors count once, and a view counts all that it keeps alive."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(stored.values()) // tensors[0].itemsize


def largest_step(layer: LayerProfile) -> int:
    """Parameters of the coarsest single decisions in a layer: eight neurons, and one channel less for the heads.

    A channel less can make every head narrower by two, or take a whole head and its key/value head away.
    """
    costs = [layer.sizes.parameters(*shape, 0) for shape in layer.shapes]
    return 8 * layer.sizes.neuron_cost + max(abs(more - less) for less, more in pairwise(costs))


@pytest.mark.parametrize(
    ("estimator", "order"),
    [("pca", "sequential"), ("output-error", "one-shot"), ("fisher", "one-shot"), ("uniform", "one-shot")],
)
def test_tensors_shrink_as_planned(every_family_case, estimator, order):
    model, plan = sliced(every_family_case, 0.4, order, estimator=estimator)
    state = model.state_dict()
    decoder = [tensor for name, tensor in state.items() if name.startswith("model.layers.")]
    assert sum(t.numel() for t in decoder) == unique_values(decoder) == plan.parameters.sliced_decoder
    assert unique_values(list(state.values())) == plan.parameters.sliced_total
    assert plan.parameters.dense_total == sum(p.numel() for p in every_family_case.original.parameters())
    for layer, sliced_layer in zip(plan.layers, model.model.layers, strict=True):
        attention, mlp = sliced_layer.self_attn, sliced_layer.mlp
        assert isinstance(attention, SlicedAttention)
        assert isinstance(mlp, SlicedMLP)
        assert (attention.heads, attention.kv_heads) == (len(layer.heads), layer.kv_heads)
        assert attention.value_dim == layer.dim
        assert attention.dim == (layer.dim if attention.norms is None else every_family_case.stats.sizes[0].dim)
        assert mlp.neurons == layer.neurons


@pytest.mark.parametrize("estimator", ["pca", "output-error", "fisher", "uniform"])
def test_what_is_asked_is_removed(every_family_case, estimator):
    """Within 0.01, or half of the coarsest step where tiny sizes are coarser (uniform: all layers step at once)."""
    profile = every_family_case.stats.profile
    together = len(profile.layers) if estimator == "uniform" else 1
    step = together * max(largest_step(layer) for layer in profile.layers) / profile.dense_decoder
    for sparsity in (0.1, 0.25, 0.4, 0.5):
        plan = make_plan(profile, SliceConfig(sparsity, estimator=estimator))
        assert abs(plan.removed_fraction - sparsity) <= max(0.01, step / 2)


# Sliced and right


@pytest.fixture(scope="module")
def sliced_model(every_family_case) -> PreTrainedModel:
    return sliced(every_family_case)[0]


def test_cached_generation_is_uncached_generation(every_family_case, sliced_model):
    prompt = every_family_case.tokens[:2, :11]
    cached = generate(sliced_model, prompt, torch.ones_like(prompt))
    assert torch.equal(cached, greedy_without_cache(sliced_model, prompt, 12))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_each_text_its_own_result(every_family_case, sliced_model, side):
    tokens, mask = padded_batch(every_family_case, side)
    together = sliced_model(tokens, attention_mask=mask, position_ids=positions(mask)).logits
    for row, length in enumerate(LENGTHS):
        alone = sliced_model(every_family_case.tokens[row : row + 1, :length]).logits[0]
        close(together[row][mask[row].bool()], alone)


def test_a_left_padded_batch_generates_what_each_text_does(every_family_case, sliced_model):
    tokens, mask = padded_batch(every_family_case, "left")
    together = generate(sliced_model, tokens, mask)
    for row, length in enumerate(LENGTHS):
        alone = every_family_case.tokens[row : row + 1, :length]
        assert torch.equal(
            together[row, LENGTHS[0] :], generate(sliced_model, alone, torch.ones_like(alone))[0, length:]
        )


@torch.no_grad()
@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_chunked_prefill_fills_the_cache_alike(every_family_case, sliced_model, cache_class):
    tokens = every_family_case.tokens[:2, :20]
    options = {"max_cache_len": 24} if cache_class is StaticCache else {}
    cache = {cache_keyword(sliced_model): cache_class(config=sliced_model.config, **options)}
    parts = [sliced_model(part, **cache, use_cache=True).logits for part in tokens.split([9, 6, 1, 4], dim=1)]
    close(torch.cat(parts, 1), sliced_model(tokens, use_cache=False).logits)


def test_the_cache_is_smaller_by_what_the_plan_says(every_family_case):
    model, plan = sliced(every_family_case)
    tokens = every_family_case.tokens[:1, :6]
    cache = getattr(model(tokens, use_cache=True), cache_keyword(model))
    stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert stored == 6 * plan.kv_bytes_per_token[1] < 6 * plan.kv_bytes_per_token[0]


def test_slicing_leaves_the_dense_model_alone(every_family_case):
    dense = every_family_case.loaded.model
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    model, _ = sliced(every_family_case)
    after = dense.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in dense.modules())
    assert model.get_input_embeddings().weight is dense.get_input_embeddings().weight
    assert model.lm_head.weight is dense.lm_head.weight
    for sliced_layer, dense_layer in zip(model.model.layers, dense.model.layers, strict=True):
        assert sliced_layer is not dense_layer
        assert sliced_layer.input_layernorm.weight is dense_layer.input_layernorm.weight
