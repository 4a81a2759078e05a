"""Layers kept on disk: the same model, calibration and slices as in memory, where one layer's weights are at a time."""

from contextlib import ExitStack

import pytest
import torch
from refusing import refused
from tiny_models import FAMILIES
from torch.testing import assert_close
from transformers import AutoConfig

import intraslice
from intraslice.calibration.driver import calibrate
from intraslice.checkpoints.auto_class import plain_model
from intraslice.core.config import SliceConfig
from intraslice.loading import load_model
from intraslice.methods.registry import plan_by
from intraslice.modeling import offload
from intraslice.modeling.offload import is_offloaded, place_layers, resident
from intraslice.planning.ratios import make_plan
from intraslice.recovery import recover
from intraslice.search.ratio_search import search_ratios
from intraslice.slicing.driver import slice_model

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def pair(family_case, tmp_path):
    """One family's model in memory and the same one with every layer on disk, and tokens."""
    family_case.original.save_pretrained(tmp_path / "model")
    family_case.loaded.tokenizer.save_pretrained(tmp_path / "model")
    name = str(tmp_path / "model")
    return load_model(name), load_model(name, device_map="disk"), family_case.tokens


def linears(module):
    return [part for part in module.modules() if isinstance(part, torch.nn.Linear)]


def test_a_model_on_disk_is_the_model_and_so_is_its_plain_one(pair):
    in_memory, offloaded, tokens = pair
    assert not any(weight.requires_grad for loaded in pair[:2] for weight in loaded.model.parameters())
    assert is_offloaded(offloaded.model)
    assert not is_offloaded(in_memory.model)
    assert all(linear.weight.is_meta for layer in offloaded.model.model.layers for linear in linears(layer))
    assert offloaded.fingerprint == in_memory.fingerprint
    assert torch.equal(offloaded.model(tokens).logits, in_memory.model(tokens).logits)
    prompt = {"input_ids": tokens[:1, :6], "attention_mask": torch.ones_like(tokens[:1, :6])}
    answers = [loaded.model.generate(**prompt, max_new_tokens=5, do_sample=False) for loaded in (offloaded, in_memory)]
    assert torch.equal(*answers)
    in_memory, offloaded = (plain_model(loaded.model).state_dict() for loaded in pair[:2])
    assert all(torch.equal(offloaded[name], tensor) for name, tensor in in_memory.items())


def test_a_calibration_layer_by_layer_is_the_ordinary_one(pair, monkeypatch, tmp_path):
    in_memory, offloaded, tokens = pair
    expected = calibrate(in_memory, tokens, progress=False)
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))  # else the first one's result serves both
    events = []
    actual = calibrate(offloaded, tokens, progress=events.append)
    # Forward and backward, two batches through each of three layers.
    assert list(dict.fromkeys(event.done for event in events)) == list(range(13))
    for layer, expected_layer in zip(actual.layers, expected.layers, strict=True):
        assert all(torch.equal(getattr(layer, name), value) for name, value in vars(expected_layer).items())
    assert actual.sizes == expected.sizes
    assert all(linear.weight.is_meta for layer in offloaded.model.model.layers for linear in linears(layer))


@pytest.mark.parametrize("order", ["sequential", pytest.param("one-shot", marks=pytest.mark.slow)])
def test_slices_are_the_same_stay_on_disk_and_are_saved_like_any_other(pair, order, monkeypatch, tmp_path):
    in_memory, offloaded, tokens = pair
    stats = calibrate(in_memory, tokens, progress=False)
    plan = make_plan(stats.profile, SliceConfig(0.4, order=order))
    expected = slice_model(in_memory.model, plan, stats, tokens, progress=False)
    most_layers = watch_memory(monkeypatch, offloaded.model)
    actual = slice_model(offloaded.model, plan, stats, tokens, progress=False)
    assert most_layers() == 1
    # Weights that lie elsewhere in memory may take another path through a kernel; the fits enlarge that last bit.
    assert_close(actual(tokens).logits, expected(tokens).logits, rtol=1e-4, atol=1e-4)
    assert all(linear.weight.is_meta for layer in actual.model.layers for linear in linears(layer))
    assert torch.equal(offloaded.model(tokens).logits, in_memory.model(tokens).logits)
    intraslice.save(actual, offloaded.tokenizer, tmp_path / "sliced", {})
    assert torch.equal(intraslice.load(tmp_path / "sliced")[0](tokens).logits, actual(tokens).logits)


def watch_memory(monkeypatch, model):
    """Counts the layers whose weights are in memory each time that a module's are fetched."""
    counts, values = [], offload._values

    def counted(module):
        counts.append(sum(any(not linear.weight.is_meta for linear in linears(layer)) for layer in model.model.layers))
        return values(module)

    monkeypatch.setattr(offload, "_values", counted)
    return lambda: max(counts)


def test_two_jobs_may_hold_a_module_at_a_time(pair):
    _, offloaded, _ = pair
    layer = offloaded.model.model.layers[1]
    before = {name: vars(part).copy() for name, part in layer.named_modules()}
    with ExitStack() as second:
        with resident(layer):
            second.enter_context(resident(layer))
        assert not any(linear.weight.is_meta for linear in linears(layer))
    assert all(linear.weight.is_meta for linear in linears(layer))
    assert {name: vars(part) for name, part in layer.named_modules()} == before


@pytest.mark.parametrize("method", ["intraslice+", "crossmodule", "wanda", "intraslice"])
def test_what_reads_all_layers_at_once_says_so(folder, method):
    offloaded, tokens = load_model(str(folder), device_map="disk"), torch.arange(96).view(4, 24) + 3
    stats = calibrate(offloaded, tokens, progress=False)
    config = SliceConfig(0.3, recovery="distill" if method == "intraslice" else "none")
    assert "device map" in refused(plan_by, method, offloaded.model, stats, config)
    assert "in memory" in refused(recover, offloaded.model, offloaded.model, tokens)
    windows = tokens[:1].repeat(20, 1)
    assert "fits into memory" in refused(search_ratios, offloaded, stats, windows, SliceConfig(0.3, order="one-shot"))


def test_layers_are_placed_while_they_fit(tmp_path):
    model = FAMILIES["phi3"]()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    layer = sum(p.nbytes for p in model.model.layers[0].parameters())
    outside = sum(p.nbytes for p in model.parameters()) - 3 * layer

    def places(placement, free, device="cpu", beside=0):
        device_map = place_layers(config, torch.float32, device, placement, free, beside)
        assert device_map["lm_head"] == device_map["model.embed_tokens"] == device_map["model.norm"] == device
        assert device_map["model.layers.0.input_layernorm"] == device
        return [device_map[f"model.layers.{index}.mlp"] for index in range(3)]

    assert places("auto", 2 * (outside + 3 * layer)) == ["cpu", "cpu", "cpu"]
    assert places("auto", 2 * (outside + 2 * layer)) == ["cpu", "cpu", "disk"]
    assert places("auto", 0) == places("disk", 10**12) == ["disk", "disk", "disk"]
    assert places("auto", 2 * (outside + layer), "cuda", 2 * layer) == ["cuda", "cpu", "disk"]


def test_all_of_a_model_that_fits_is_in_memory_and_what_cannot_be_placed_refused(folder, refusal, tmp_path):
    loaded = load_model(str(folder), device_map="auto")
    assert not is_offloaded(loaded.model)
    assert loaded.fingerprint == load_model(str(folder)).fingerprint
    assert not any(hasattr(module, "_hf_hook") for module in loaded.model.modules())
    intraslice.save(loaded.model, loaded.tokenizer, tmp_path / "sliced", {"source": "x"})
    assert "leave the device map out" in refusal(tmp_path / "sliced", device_map="auto")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_layers_on_disk_are_computed_on_the_gpu(pair, tmp_path):
    in_memory, _, tokens = pair
    offloaded = load_model(str(tmp_path / "model"), device="cuda", device_map="disk")
    stats = calibrate(offloaded, tokens, progress=False)
    plan = make_plan(stats.profile, SliceConfig(0.4))
    model = slice_model(offloaded.model, plan, stats, tokens, progress=False)
    stats = calibrate(in_memory, tokens, progress=False)
    expected = slice_model(in_memory.model, plan, stats, tokens, progress=False)(tokens).logits
    assert (model(tokens.cuda()).logits.cpu() - expected).norm() / expected.norm() < 1e-2
