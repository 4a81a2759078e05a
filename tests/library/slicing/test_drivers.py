"""The two drivers: what each layer is fitted on, what slices share, and what stops them."""

import gc
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from tiny_models import entering
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

from intraslice.calibration.driver import calibrate
from intraslice.core.config import SliceConfig
from intraslice.core.errors import NumericalError
from intraslice.core.linalg import diagonal_blocks
from intraslice.core.progress import Progress
from intraslice.modeling.residual import writer_of
from intraslice.planning.ratios import SlicePlan, make_plan
from intraslice.slicing import one_shot
from intraslice.slicing.driver import slice_model
from intraslice.slicing.one_shot import SliceCache

ORDERS = ("sequential", "one-shot")


def plan_for(case, sparsity: float = 0.4, order: str = "sequential") -> SlicePlan:
    """Uniform, so that every module of every layer is cut."""
    return case.plan(sparsity, estimator="uniform", order=order)


def with_first_layer(case, order: str, **sizes) -> SlicePlan:
    """A plan that leaves every layer whole but the first, which gets the given sizes."""
    plan = plan_for(case, 0.0, order)
    return replace(plan, layers=(replace(plan.layers[0], **sizes), *plan.layers[1:]))


def watch(model: PreTrainedModel, layer: int, part: str, linear: str, tokens: Tensor) -> tuple[Tensor, dict]:
    """What enters an output map (tokens, channels), and how the module around it was called."""
    module, call = getattr(model.model.layers[layer], part), {}

    def at_module(_: nn.Module, inputs: tuple, keywords: dict) -> None:
        call.update(keywords if keywords else {"hidden_states": inputs[0]})

    handle = module.register_forward_pre_hook(at_module, with_kwargs=True)
    (rows,) = entering(model, [getattr(module, linear)], tokens)
    handle.remove()
    return rows, call


def ridge(
    rows: Tensor, target: Tensor, before: Tensor, centred: bool, penalty: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of `rows -> target`; `penalty`, from the energies of the inputs, is on changes of `before`."""
    rows, target, before = rows.double(), target.double(), before.double()
    means = rows.mean(0), target.mean(0)
    if centred:
        rows, target = rows - means[0], target - means[1]
    extra = penalty(rows.square().sum(0)).expand(rows.shape[1]).sqrt().diag()
    weight = torch.linalg.lstsq(torch.cat([rows, extra]), torch.cat([target, extra @ before.T])).solution.T
    return weight.float(), (means[1] - weight @ means[0]).float() if centred else None


@pytest.mark.parametrize("layer", [0, 2])
def test_attention_is_fitted_on_what_the_sliced_layers_before_it_give(family_case, layer):
    """Ridge of the dense layer's output, for the very states that the finished sliced model feeds this layer."""
    plan = plan_for(family_case)
    model = family_case.cut(plan)
    rows, call = watch(model, layer, "self_attn", "o_proj", family_case.tokens)
    sliced, dense = model.model.layers[layer].self_attn, family_case.dense.model.layers[layer].self_attn
    assert sliced is not dense
    target = dense(**call)[0].flatten(0, 1)
    kept, weights, values = torch.tensor(plan.layers[layer].heads), dense.weights(), sliced.weights().value.double()
    axes = values @ torch.linalg.pinv(weights.value[weights.kv_head[kept].unique()].double())  # V^T of each group
    before = torch.einsum("ohd,hpd->ohp", weights.output[:, kept].double(), axes[sliced.kv_head]).flatten(1)
    weight, bias = ridge(rows, target, before, sliced.o_proj.bias is not None, lambda energies: 0.02 * energies.mean())
    assert_close(sliced.o_proj.weight, weight, atol=2e-3, rtol=2e-3)
    if bias is not None:
        assert_close(sliced.o_proj.bias, bias, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("layer", [0, 2])
def test_mlp_is_fitted_on_what_the_sliced_layers_before_it_give(family_case, layer):
    model = family_case.cut(plan_for(family_case))
    rows, call = watch(model, layer, "mlp", "down_proj", family_case.tokens)
    sliced, dense = model.model.layers[layer].mlp, family_case.dense.model.layers[layer].mlp
    assert sliced is not dense
    inner = dense.inner(call["hidden_states"]).flatten(0, 1)
    dense_weights, weights = dense.weights(), sliced.weights()
    kept = torch.tensor([int((dense_weights.up == row).all(1).nonzero()) for row in weights.up])
    assert_close(inner[:, kept], rows, atol=1e-5, rtol=1e-4)
    target, before = dense.down_proj(inner), dense_weights.down[:, kept]
    centred = inner if weights.down_bias is None else inner - inner.mean(0)
    median = centred.square().sum(0).median().double()
    down, bias = ridge(rows, target, before, weights.down_bias is not None, lambda energies: 0.1 * (energies + median))
    assert_close(weights.down, down, atol=2e-3, rtol=2e-3)
    if bias is not None:
        assert_close(weights.down_bias, bias, atol=2e-3, rtol=2e-3)


def test_value_axes_are_those_of_the_kept_heads_moments_and_output_maps(family_case):
    plan = plan_for(family_case, order="one-shot")
    layer, kept = plan.layers[1], torch.tensor(plan.layers[1].heads)
    weights = family_case.dense.model.layers[1].self_attn.weights()
    values = family_case.cut(plan).model.layers[1].self_attn.weights().value.double()
    moments = diagonal_blocks(family_case.stats.layers[1].attention_moment.double(), len(weights.kv_head))[kept]
    output = weights.output[:, kept].double()
    energies = torch.einsum("oha,ohb->hab", output, output)
    for sliced, group in zip(values, weights.kv_head[kept].unique(), strict=True):
        heads = weights.kv_head[kept] == group
        mixture = sum(part / part.trace() for part in (moments[heads].sum(0), energies[heads].sum(0)))
        first = torch.linalg.eigh(mixture).eigenvectors[:, -layer.dim :]
        axes = sliced @ torch.linalg.pinv(weights.value[group].double())  # V^T
        assert_close(axes.T @ axes, first @ first.T, atol=1e-3, rtol=1e-3)


def test_both_orders_agree_on_a_first_layer_whose_queries_and_keys_stay(family_case):
    """Then the dense moments are those of the sliced layer, and only rounding differs."""
    dense = family_case.dense.model.layers
    kv_head = dense[0].self_attn.kv_head[:-1]
    sizes = {"heads": tuple(range(len(kv_head))), "kv_heads": len(kv_head.unique())}
    models = [family_case.cut(with_first_layer(family_case, order, **sizes)) for order in ORDERS]
    _, call = watch(models[0], 0, "self_attn", "o_proj", family_case.tokens)
    assert models[0].model.layers[0].self_attn.heads == len(kv_head)
    sequential, one_shot = (model.model.layers[0].self_attn(**call)[0] for model in models)
    assert_close(sequential, one_shot, atol=1e-4, rtol=1e-3)
    assert models[0].model.layers[1].self_attn is dense[1].self_attn  # untouched layers are shared


@pytest.mark.parametrize("order", ORDERS)
def test_progress_counts_layers_leaves_the_gradient_mode_alone_and_the_sequential_order_wants_tokens(case, order):
    events: list[Progress] = []
    slice_model(case.dense, plan_for(case, order=order), case.stats, case.tokens, progress=events.append)
    assert torch.is_grad_enabled()
    assert list(dict.fromkeys(events)) == [Progress("slice", done, 3) for done in range(4)]
    with pytest.raises(ValueError, match="tokens"):
        slice_model(case.dense, plan_for(case), case.stats, progress=False)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("part", ["self_attn", "mlp"])
def test_values_that_are_not_finite_are_named(case, as_loaded, tiny_llama_gqa, order, part):
    broken = as_loaded(tiny_llama_gqa())
    stats = case.stats
    if order == "sequential":
        layer = broken.model.model.layers[1]
        linear = layer.self_attn.qkv_proj if part == "self_attn" else layer.mlp.gate_up_proj
        linear.weight[:] = float("nan")
    else:
        name = "attention_moment" if part == "self_attn" else "mlp_moment"
        poisoned = replace(stats.layers[1], **{name: getattr(stats.layers[1], name) * float("nan")})
        stats = replace(stats, layers=[stats.layers[0], poisoned, stats.layers[2]])
    with pytest.raises(NumericalError):
        slice_model(broken.model, plan_for(case, order=order), stats, case.tokens, progress=False)


@pytest.mark.parametrize("order", ORDERS)
def test_a_silent_layer_and_few_tokens_are_no_trouble(tiny_llama_gqa, as_loaded, order, own_cache):
    """Ten tokens leave every moment singular, and one layer says nothing at all: damping sees to both."""
    loaded = as_loaded(tiny_llama_gqa())
    dense = loaded.model.model.layers[1]
    dense.self_attn.qkv_proj.weight[:] = 0
    dense.mlp.gate_up_proj.weight[:] = 0
    tokens = torch.arange(3, 13)[None]
    stats = calibrate(loaded, tokens, progress=False)
    plan = make_plan(stats.profile, SliceConfig(0.4, order=order))
    model = slice_model(loaded.model, plan, stats, tokens, progress=False)
    assert model(tokens).logits.isfinite().all()


@pytest.mark.parametrize("order", ORDERS)
def test_bfloat16_weights_are_sliced_in_float32(tiny_llama_gqa, as_loaded, case, order, own_cache):
    loaded = as_loaded(tiny_llama_gqa().bfloat16())
    stats = calibrate(loaded, case.tokens, progress=False)
    assert stats.layers[0].mlp_moment.dtype == torch.float32
    plan = plan_for(case, 0.3, order)
    model = slice_model(loaded.model, plan, stats, case.tokens, progress=False)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    logits, expected = model(case.tokens).logits.float(), case.cut(plan)(case.tokens).logits
    assert ((logits - expected).norm() / expected.norm()).item() < 0.25


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-2), (torch.bfloat16, 0.1)])
def test_a_gpu_calibrates_and_slices_as_the_cpu_does(
    tiny_llama_gqa, as_loaded, case, order, dtype, tolerance, tmp_path, monkeypatch
):
    results = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / device))  # else one calibration serves both
        loaded = as_loaded(tiny_llama_gqa().to(device, dtype))
        stats = calibrate(loaded, case.tokens, progress=False)
        plan = plan_for(case, 0.3, order)  # one plan, as near-equal importances may rank either way
        model = slice_model(loaded.model, plan, stats, case.tokens, progress=False)
        assert {(p.device.type, p.dtype) for p in model.parameters()} == {(device, dtype)}
        assert make_plan(stats.profile, SliceConfig(0.3)).removed_fraction == pytest.approx(0.3, abs=0.02)
        results[device] = stats, model(case.tokens.to(device)).logits.float().cpu()
    for layer, expected in zip(results["cuda"][0].layers, results["cpu"][0].layers, strict=True):
        for name, value in vars(expected).items():
            error = (getattr(layer, name).cpu() - value).norm() / value.norm()
            assert error < tolerance, name
    assert (results["cuda"][1] - results["cpu"][1]).norm() / results["cpu"][1].norm() < 2.5 * tolerance


def test_a_constant_is_the_mean_of_what_the_module_wrote(tiny_case):
    """In the first layer, whose input no slicing changes. Layer 2 is but its residual stream."""
    case, written = tiny_case("llama-biased"), []
    kinds = ((0, "attention"), (1, "mlp"), (2, "attention"), (2, "mlp"))
    layers = case.sliced(0.75, cap=1.0, locked=tuple((*kind, 1.0) for kind in kinds)).model.layers
    attention = case.dense.model.layers[0].self_attn
    handle = attention.register_forward_hook(lambda module, inputs, outputs: written.append(outputs[0]))
    case.dense(case.tokens)
    handle.remove()
    mean = torch.cat(written).flatten(0, 1).mean(0)
    gone = [layers[0].self_attn, layers[1].mlp, layers[2].self_attn, layers[2].mlp]
    assert_close(writer_of(gone[0]).bias, mean, atol=1e-5, rtol=1e-4)
    assert {writer_of(module).in_features for module in gone} == {0}


@pytest.mark.parametrize(
    ("method", "shapes"),
    [
        *((method, "free") for method in ("intraslice", "magnitude", "wanda", "flap", "modegpt", "flatllm")),
        *(("intraslice", "runtime"), ("wanda", "runtime")),
    ],
)
def test_locked_modules_go_whole_by_every_method(tiny_case, method, shapes):
    case = tiny_case("llama-biased")
    locked = ((0, "attention", 1.0), (1, "mlp", 1.0))
    plan = case.plan(0.4, method, cap=1.0, locked=locked, shapes=shapes)
    assert (plan.layers[0].heads, plan.layers[0].kv_heads, plan.layers[1].neurons) == ((), 0, 0)
    model = case.cut(plan, method)
    decoder = sum(p.numel() for p in model.model.layers.parameters())
    assert decoder == plan.parameters.sliced_decoder
    assert torch.isfinite(model(case.tokens).logits).all()


def modules(model: nn.Module) -> list[nn.Module]:
    return [module for layer in model.model.layers for module in (layer.self_attn, layer.mlp)]


def sizes(plan: SlicePlan) -> list[tuple[int, ...]]:
    return [size for layer in plan.layers for size in ((layer.dim, *layer.heads), (layer.neurons,))]


def test_what_is_equal_is_shared_as_long_as_it_is_used_and_the_numbers_are_those_of_a_slice_alone(
    family_case, monkeypatch
):
    case, cache, ranked = family_case, SliceCache(), Mock(wraps=one_shot.rank_neurons)
    monkeypatch.setattr(one_shot, "rank_neurons", ranked)
    plans = [case.plan(sparsity) for sparsity in (0.3, 0.35, 0.5, 0.3)]
    made = [slice_model(case.dense, plan, case.stats, cache=cache, progress=False) for plan in plans]
    assert ranked.call_count == len(cache.rankings) <= len(plans[0].layers)
    equal = [first == second for first, second in zip(sizes(plans[0]), sizes(plans[1]), strict=True)]
    assert [a is b for a, b in zip(modules(made[0]), modules(made[1]), strict=True)] == equal
    assert modules(made[0]) == modules(made[3])
    for model, plan in zip(made[:3], plans, strict=False):
        alone = case.cut(plan)
        assert torch.equal(model(case.tokens).logits, alone(case.tokens).logits)
        assert not {*modules(alone)} & {*modules(model)} - {*modules(case.dense)}
    made.clear()
    del model
    gc.collect()
    assert {*cache.attentions.values(), *cache.mlps.values()} <= {*modules(case.dense)}
