"""One contract for all families and methods: exact at full rank, small as planned, itself with caches and padding."""

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from models import TELLING, TinyCase
from opened import MADE
from safetensors.torch import load_file
from tiny_models import FAMILIES
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache

import intraslice
from intraslice.checkpoints.format import WEIGHTS
from intraslice.core.config import SliceConfig
from intraslice.methods.registry import Plan
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.counts import kv_bytes_per_token, parameters_of
from intraslice.modeling.hidden_states import cache_keyword
from intraslice.modeling.mlp import SlicedMLP
from intraslice.planning.profile import LayerProfile
from intraslice.planning.ratios import make_plan

LENGTHS = (23, 14, 9)  # of the padded batch: longer and shorter than the sliding window of 8
ORDERS = ("sequential", "one-shot")
# Two layers without attention, of which one is but its residual stream, and two without MLP.
HOLLOW = {"sparsity": 0.75, "cap": 1.0, "locked": ((0, "attention", 1.0), (1, "mlp", 1.0))}
HOLLOW["locked"] += ((2, "attention", 1.0), (2, "mlp", 1.0))
# All families by intraslice; what makes other modules by those families that tell, each rival by one.
SLICES = [(family, "intraslice") for family in FAMILIES]
SLICES += [(family, kind) for family in TELLING for kind in ("hollow", "crossmodule")]
SLICES += [(family, "paper") for family in ("llama-biased", "phi3", "phi")]
SLICES += [("llama-biased", "wanda"), ("phi", "flap"), ("smollm3", "magnitude"), ("phi", "modegpt")]
SLICES += [("smollm3", "modegpt"), ("llama-biased", "flatllm"), ("smollm3", "shortgpt")]


class Sliced(NamedTuple):
    """A slice, and the dense tensors before it was made. Shared: do not change it."""

    case: TinyCase
    kind: str
    plan: Plan
    model: PreTrainedModel
    before: dict[str, Tensor]


@pytest.fixture(scope="module", params=SLICES, ids="-".join)
def sliced(request, tiny_case) -> Sliced:
    family, kind = request.param
    case, method = tiny_case(family), "intraslice" if kind == "hollow" else kind
    before = {name: tensor.clone() for name, tensor in case.dense.state_dict().items()}
    plan = case.plan(method=method, **{"bias": 1.0, "order": "sequential"} | (HOLLOW if kind == "hollow" else {}))
    model = case.cut(plan, method)
    return Sliced(case, kind, plan, model, before)


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


def greedy_without_cache(model: PreTrainedModel, tokens: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        following = model(tokens, use_cache=False).logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, following], 1)
    return tokens


def generate(model: PreTrainedModel, tokens: Tensor, mask: Tensor, steps: int = 8) -> Tensor:
    """Greedy, with the cache that transformers takes by itself; never stopped early."""
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(tokens, attention_mask=mask, max_new_tokens=steps, **options)


def close(actual: Tensor, expected: Tensor, tolerance: float = 2e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=1e-4 if tolerance else 0)


def test_full_rank_is_transformers_own_model(every_family_case):
    canonical, original = every_family_case.dense, every_family_case.original
    for side in ("left", "right"):
        tokens, mask = padded_batch(every_family_case, side)
        given = {"attention_mask": mask, "position_ids": positions(mask)}
        logits, expected = (model(tokens, **given).logits for model in (canonical, original))
        assert expected.std() > 0.1  # far from trivial
        close(logits[mask.bool()], expected[mask.bool()])
    tokens, mask = padded_batch(every_family_case, "left")
    assert torch.equal(generate(canonical, tokens, mask), generate(original, tokens, mask))
    profile, others = every_family_case.stats.profile, every_family_case.stats.other_parameters
    for model in (canonical, original):
        assert sum(p.numel() for p in model.parameters()) == profile.dense_decoder + others


@pytest.mark.parametrize(
    ("method", "order"),
    [*(("intraslice", order) for order in ORDERS), *((name, "one-shot") for name in ("wanda", "modegpt", "flatllm"))],
)
def test_sparsity_zero_is_exact(every_family_case, method, order):
    case, tokens = every_family_case, every_family_case.tokens[:2]
    plan = case.plan(0.0, method, order=order)
    close(case.cut(plan, method)(tokens).logits, case.dense(tokens).logits, 0.0 if method == "intraslice" else 1e-4)
    assert plan.removed_fraction == 0
    assert plan.kv_bytes_per_token[0] == plan.kv_bytes_per_token[1]


def unique_values(tensors: list[Tensor]) -> int:
    """How many values are stored: tied tensors count once, and a view counts all that it keeps alive."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(stored.values()) // tensors[0].itemsize


def test_tensors_are_those_of_the_plan(sliced):
    case, plan, model = sliced.case, sliced.plan, sliced.model
    state = model.state_dict()
    decoder = [tensor for name, tensor in state.items() if name.startswith("model.layers.")]
    assert sum(t.numel() for t in decoder) == unique_values(decoder) == plan.parameters.sliced_decoder
    assert unique_values(list(state.values())) == plan.parameters.sliced_total
    assert plan.parameters.dense_total == sum(p.numel() for p in case.original.parameters())
    if sliced.kind == "crossmodule":
        return
    for name, owner in (("dense", case.dense), ("sliced", model)):
        expected = {f"{name}_total", f"{name}_decoder"}
        assert parameters_of(owner, name) == {key: getattr(plan.parameters, key) for key in expected}
    assert (kv_bytes_per_token(case.dense), kv_bytes_per_token(model)) == plan.kv_bytes_per_token
    assert plan.removed_fraction == pytest.approx(plan.config.sparsity, abs=0.05)
    for layer, sliced_layer, size in zip(plan.layers, model.model.layers, case.stats.sizes, strict=True):
        attention, mlp = sliced_layer.self_attn, sliced_layer.mlp
        assert isinstance(attention, SlicedAttention)
        assert isinstance(mlp, SlicedMLP)
        assert (attention.heads, attention.kv_heads) == (len(layer.heads), layer.kv_heads)
        assert mlp.neurons == layer.neurons
        if not layer.heads:
            continue
        assert attention.value_dim == layer.dim
        whole = attention.norms is not None or sliced.kind == "flatllm"
        assert attention.dim == (size.dim if whole else size.query_dim(layer.dim))


def largest_step(layer: LayerProfile) -> int:
    """Parameters of the coarsest single decisions in a layer: eight neurons, and one channel less for the heads.

    A channel less can make every head narrower by two, or take a whole head and its key/value head away.
    """
    costs = [layer.sizes.parameters(*shape, 0) for shape in layer.shapes]
    return 8 * layer.sizes.neuron_cost + max(abs(more - less) for less, more in pairwise(costs))


@pytest.mark.parametrize("estimator", ["pca", "output-error", "fisher", "uniform"])
def test_what_is_asked_is_removed(every_family_case, estimator):
    """Within 0.01, or half of the coarsest step where tiny sizes are coarser (uniform: all layers step at once)."""
    profile = every_family_case.stats.profile
    together = len(profile.layers) if estimator == "uniform" else 1
    step = together * max(largest_step(layer) for layer in profile.layers) / profile.dense_decoder
    for sparsity in (0.1, 0.25, 0.4, 0.5):
        plan = make_plan(profile, SliceConfig(sparsity, estimator=estimator))
        assert abs(plan.removed_fraction - sparsity) <= max(0.01, step / 2)


def test_cached_generation_is_uncached_generation(sliced):
    prompt = sliced.case.tokens[:2, :11]
    cached = generate(sliced.model, prompt, torch.ones_like(prompt))
    assert torch.equal(cached, greedy_without_cache(sliced.model, prompt, 8))


def test_a_padded_batch_gives_each_text_its_own_result(sliced):
    rows = [sliced.case.tokens[row : row + 1, :length] for row, length in enumerate(LENGTHS)]
    logits = [sliced.model(row).logits[0] for row in rows]
    for side in ("left", "right"):
        tokens, mask = padded_batch(sliced.case, side)
        together = sliced.model(tokens, attention_mask=mask, position_ids=positions(mask)).logits
        for row, alone in enumerate(logits):
            close(together[row][mask[row].bool()], alone)
    answers = generate(sliced.model, *padded_batch(sliced.case, "left"))
    for row, alone in enumerate(rows):
        answer = generate(sliced.model, alone, torch.ones_like(alone))
        assert torch.equal(answers[row, LENGTHS[0] :], answer[0, alone.shape[1] :])


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
def test_chunked_prefill_fills_the_cache_alike(sliced, cache_class):
    tokens = sliced.case.tokens[:2, :20]
    options = {"max_cache_len": 24} if cache_class is StaticCache else {}
    cache = {cache_keyword(sliced.model): cache_class(config=sliced.model.config, **options)}
    parts = [sliced.model(part, **cache, use_cache=True).logits for part in tokens.split([9, 6, 1, 4], dim=1)]
    close(torch.cat(parts, 1), sliced.model(tokens, use_cache=False).logits)
    layers = next(iter(cache.values())).layers
    if sliced.kind == "intraslice" and cache_class is DynamicCache and len(layers[0].keys[0, 0]) == 20:  # no window
        stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
        assert stored == 2 * 20 * sliced.plan.kv_bytes_per_token[1] < 2 * 20 * sliced.plan.kv_bytes_per_token[0]


def test_slicing_leaves_the_dense_model_alone(sliced):
    dense = sliced.case.dense
    torch.testing.assert_close(dense.state_dict(), sliced.before, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in dense.modules())
    for sliced_layer, dense_layer in zip(sliced.model.model.layers, dense.model.layers, strict=True):
        assert sliced_layer is not dense_layer
        if sliced.kind != "crossmodule":
            assert sliced_layer.input_layernorm.weight is dense_layer.input_layernorm.weight
    if sliced.kind != "crossmodule":
        assert sliced.model.get_input_embeddings().weight is dense.get_input_embeddings().weight
        assert sliced.model.lm_head.weight is dense.lm_head.weight


def test_what_is_saved_is_what_the_plan_counts_and_loads_as_the_same_model(sliced, tmp_path):
    case, folder, counts = sliced.case, tmp_path / "sliced", sliced.plan.parameters
    intraslice.save(sliced.model, case.loaded.tokenizer, folder, MADE)
    stored = load_file(folder / WEIGHTS)
    assert sum(tensor.numel() for tensor in stored.values()) == counts.sliced_total  # a tied head is stored once
    assert (folder / WEIGHTS).stat().st_size < 4 * counts.sliced_total + 20_000
    reloaded, tokenizer, made = intraslice.load(folder)
    assert made == MADE
    assert tokenizer.get_vocab() == case.loaded.tokenizer.get_vocab()
    assert torch.equal(reloaded(case.tokens).logits, sliced.model(case.tokens).logits)
    prompt = case.tokens[:1, :6]
    answers = [generate(model, prompt, torch.ones_like(prompt)) for model in (reloaded, sliced.model)]
    assert torch.equal(*answers)
