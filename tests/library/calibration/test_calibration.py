"""Moments and mask gradients against plain collection and plain autograd; calibrations on disk, and their accidents."""

import os
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy
import pytest
import torch
from stopping import Stopped, stop_at
from tiny_models import entering
from torch import Tensor
from torch.testing import assert_close
from transformers import PreTrainedModel

from intraslice.calibration import driver
from intraslice.calibration.driver import CalibrationStats, calibrate
from intraslice.core.cache import MAX_BYTES_VARIABLE
from intraslice.core.errors import NumericalError
from intraslice.core.progress import Progress
from intraslice.core.weights import UNROTATED
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import blocks


@pytest.fixture(autouse=True)
def cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(10**9))
    return own_cache / "calibration"


@pytest.fixture
def loaded(tiny_llama_gqa, as_loaded):
    return as_loaded(tiny_llama_gqa())


TOKENS = torch.randint(3, 256, (3, 10), generator=torch.Generator().manual_seed(1))


def assert_same(actual: CalibrationStats, expected: CalibrationStats, **tolerance: float) -> None:
    for layer, expected_layer in zip(actual.layers, expected.layers, strict=True):
        assert_close(vars(layer), vars(expected_layer), **tolerance)


def output_maps(model: PreTrainedModel) -> list[tuple[torch.nn.Linear, torch.nn.Linear]]:
    """`o_proj` and `down_proj` of each layer, under transformers' own names."""
    names = ("dense", "fc2") if model.config.model_type == "phi" else ("o_proj", "down_proj")
    return [(getattr(layer.self_attn, names[0]), getattr(layer.mlp, names[1])) for layer in model.model.layers]


def by_hand(model: PreTrainedModel, tokens: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """One sequence at a time through transformers' own model: sums over what enters the output maps, and gradients."""
    layers = [[{"rows": [], "grads": [], "fisher": []} for _ in range(2)] for _ in model.model.layers]
    for sequence, targets in zip(tokens, labels, strict=True):
        masks, handles = [], []
        for collected, linears in zip(layers, output_maps(model), strict=True):
            for module, linear in zip(collected, linears, strict=True):
                mask = torch.ones(linear.in_features, requires_grad=True)

                def hook(_, inputs, mask=mask, module=module):
                    module["rows"].append(inputs[0].detach()[0])
                    each = mask.expand_as(inputs[0]).contiguous()  # one mask a token
                    each.retain_grad()
                    module["fisher"].append(each)
                    return (inputs[0] * each,)

                masks.append((module["grads"], mask))
                handles.append(linear.register_forward_pre_hook(hook))
        model(input_ids=sequence[None], labels=targets[None]).loss.backward()
        for handle in handles:
            handle.remove()
        for gradients, mask in masks:
            gradients.append(mask.grad)
    found = []
    for collected in layers:
        sums = {"mlp_fisher": sum(each.grad[0].square().sum(0) for each in collected[1]["fisher"])}
        for name, module in zip(("attention", "mlp"), collected, strict=True):
            rows = torch.cat(module["rows"])
            sums |= {f"{name}_moment": rows.T @ rows, f"{name}_sum": rows.sum(0)}
            sums[f"{name}_gradients"] = torch.stack(module["grads"])
        found.append(sums)
    return found


def drawn_by_hand(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Labels for transformers, which shifts them: what the model would say at each position, from the same noise."""
    logits = model(tokens).logits[:, :-1]
    noise = torch.rand(logits.shape, generator=torch.Generator().manual_seed(driver.SEED))
    chosen = (logits - (-noise.log()).log()).argmax(-1)  # Gumbel's form of the race
    return torch.cat([tokens[:, :1], chosen], 1)


@pytest.mark.parametrize("targets", ["sampled", "text"])
def test_moments_and_gradients_are_what_plain_collection_finds(family_case, targets, monkeypatch):
    monkeypatch.setattr(driver, "LOSS_TOKENS", 17)
    tokens = family_case.tokens[:5]
    stats = calibrate(family_case.loaded, tokens, targets, progress=False)
    assert stats.targets == targets
    labels = tokens if targets == "text" else drawn_by_hand(family_case.original, tokens)
    for layer, collected in zip(stats.layers, by_hand(family_case.original, tokens, labels), strict=True):
        for name, value in collected.items():
            atol = 1e-12 if name == "mlp_fisher" else 1e-6 if "gradients" in name else 1e-3
            assert_close(getattr(layer, name), value, atol=atol, rtol=1e-4 if atol == 1e-3 else 1e-3)
    assert stats.tokens == tokens.numel()


def test_the_stream_is_measured_at_each_layer_s_input_and_at_its_mlps_norm_where_it_has_one(family_case):
    tokens = family_case.tokens[:5]
    stats = calibrate(family_case.loaded, tokens, progress=False)
    states = family_case.original(tokens, output_hidden_states=True).hidden_states
    for layer, hidden in zip(stats.layers, states, strict=False):  # the last is after the final norm
        rows = hidden.flatten(0, 1)
        assert_close(layer.residual_moment, rows.T @ rows, atol=1e-3, rtol=1e-4)
        directions = rows / rows.norm(dim=-1, keepdim=True)
        assert_close(layer.direction_moment, directions.T @ directions, atol=1e-3, rtol=1e-4)
    names = ("pre_feedforward_layernorm", "post_attention_layernorm")
    layers = family_case.original.model.layers
    norms = [next((getattr(layer, name) for name in names if hasattr(layer, name)), None) for layer in layers]
    if norms[0] is None:
        assert all(layer.middle_moment.numel() == 0 for layer in stats.layers)
    else:
        for layer, rows in zip(stats.layers, entering(family_case.original, norms, tokens), strict=True):
            assert_close(layer.middle_moment, rows.T @ rows, atol=1e-3, rtol=1e-4)


def test_query_fisher_is_that_of_one_mask_a_token_and_pair(family_case, monkeypatch):
    """Masks after the rotary embedding, by autograd; an unrotated channel has its own."""
    model, tokens = family_case.dense, family_case.tokens[:3]
    if blocks(model)[0].attention.norms is not None:
        pytest.skip("no channel of a normalised head is removed")
    masks, project = {}, SlicedAttention.project

    def masked_project(self, *arguments):
        query, key, value = project(self, *arguments)
        rotated = (self.frequency != UNROTATED)[self.kv_head][:, None]
        shared, single = (torch.ones(*query.shape[:-1], self.dim // 2, requires_grad=True) for _ in range(2))
        masks[self.layer_idx] = shared, single
        return query * torch.cat([shared, torch.where(rotated, shared, single)], -1), key, value

    stats = calibrate(family_case.loaded, tokens, "text", progress=False)
    with monkeypatch.context() as patched:
        patched.setattr(SlicedAttention, "project", masked_project)
        logits = model(tokens).logits[:, :-1]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        losses.view(len(tokens), -1).mean(1).sum().backward()
    for index, layer in enumerate(stats.layers):
        attention = blocks(model)[index].attention
        rotated = (attention.frequency != UNROTATED)[attention.kv_head]
        shared, single = (mask.grad.square().sum((0, 2)) for mask in masks[index])
        first, second = layer.query_fisher.chunk(2, -1)
        assert_close(first[rotated], shared[rotated] / 2, atol=1e-12, rtol=1e-3)
        assert_close(second[rotated], shared[rotated] / 2, atol=1e-12, rtol=1e-3)
        assert_close(first[~rotated], shared[~rotated], atol=1e-12, rtol=1e-3)
        assert_close(second[~rotated], single[~rotated], atol=1e-12, rtol=1e-3)


@pytest.fixture
def stepwise(loaded, monkeypatch):
    monkeypatch.setattr(driver, "TOKENS_PER_BATCH", 1)
    return loaded


def hooks_of(model: PreTrainedModel) -> list:
    return [hook for module in model.modules() for hook in (*module._forward_pre_hooks, *module._forward_hooks)]


def test_progress_counts_sequences_no_step_leaves_a_hook_and_a_cancelled_run_keeps_nothing(stepwise, cache):
    with pytest.raises(Stopped):
        calibrate(stepwise, TOKENS, progress=stop_at(2))
    assert not hooks_of(stepwise.model)
    assert not cache.exists()
    counts = []

    def note(event: Progress) -> None:
        counts.append((event.done, event.total))
        assert not hooks_of(stepwise.model)

    calibrate(stepwise, TOKENS, progress=note)
    assert torch.is_grad_enabled()
    assert counts[0] == (0, 3)
    assert counts[-1] == (3, 3)
    assert counts == sorted(counts)
    assert all(parameter.grad is None for parameter in stepwise.model.parameters())


def test_what_is_there_after_some_sequences_is_a_calibration_on_those(stepwise):
    partial = {}

    def keep(event: Progress) -> None:
        if event.partial is not None:
            partial[event.done] = event.partial()

    calibrate(stepwise, TOKENS, "text", progress=keep)
    assert list(partial) == [1, 2, 3]
    for sequences, statistics in partial.items():
        expected = calibrate(stepwise, TOKENS[:sequences], "text", progress=False)
        assert statistics.tokens == expected.tokens == sequences * TOKENS.shape[1]
        assert_same(statistics, expected, atol=1e-6, rtol=1e-6)
        assert statistics.make_profile(progress=False) is statistics.profile


@pytest.mark.parametrize(
    ("weight", "value"), [("lm_head.weight", float("inf")), ("model.layers.1.mlp.down_proj.weight", float("nan"))]
)
def test_what_is_broken_so_far_is_named_and_not_kept(stepwise, cache, weight, value):
    stepwise.model.get_parameter(weight)[7, 0] = value
    named = []

    def look(event: Progress) -> None:
        if event.partial is not None:
            with pytest.raises(NumericalError, match="not finite") as caught:
                event.partial()
            named.append(caught.value)

    with pytest.raises(NumericalError, match="not finite"):
        calibrate(stepwise, TOKENS, progress=look)
    assert len(named) == 3
    assert not cache.exists()


def test_one_triangle_of_the_moments_is_kept_and_the_second_time_read_from_disk(loaded, cache, monkeypatch):
    stats = calibrate(loaded, TOKENS, progress=False)
    entries = sum(value.numel() for layer in stats.layers for value in vars(layer).values())
    (file,) = cache.iterdir()
    with numpy.load(file) as arrays:
        assert {arrays[name].dtype for name in arrays} == {numpy.dtype(numpy.float32)}
        kept = sum(arrays[name].size for name in arrays)
        triangle = arrays["1.mlp_moment"]
    assert kept < 0.54 * entries
    moment = stats.layers[1].mlp_moment.numpy()
    assert triangle.tolist() == moment[numpy.tril_indices(len(moment))].tolist()
    assert kept * 4 == sum(layer.packed_bytes for layer in stats.layers)
    then = time.time() - 3600
    os.utime(file, (then, then - 1))  # so that it is not the system that notes an access
    monkeypatch.setattr(driver, "_calibrate_batch", lambda *_: pytest.fail("calibrated again"))
    assert_same(calibrate(loaded, TOKENS, progress=False), stats, atol=0, rtol=0)
    assert file.stat().st_atime > then + 3000  # so that it is not the next to go


def test_moments_are_symmetric_to_the_last_bit_however_they_were_multiplied(loaded):
    layer = calibrate(loaded, TOKENS, progress=False).layers[0]
    layer.attention_moment = torch.randn(600, 600)
    lower = layer.attention_moment.tril()
    layer.mirror_()
    assert torch.equal(layer.attention_moment, layer.attention_moment.T)
    assert torch.equal(layer.attention_moment.tril(), lower)


def test_it_is_kept_where_it_fits_and_there_is_room_before_it_is_written(loaded, cache, monkeypatch, caplog):
    first = calibrate(loaded, TOKENS, progress=False)
    (file,) = cache.iterdir()
    monkeypatch.setenv(MAX_BYTES_VARIABLE, str(file.stat().st_size + 20_000))  # not for two
    calibrate(loaded, TOKENS + 1, progress=False)
    assert len(list(cache.iterdir())) == 1
    assert not file.exists()
    monkeypatch.setenv(MAX_BYTES_VARIABLE, "1000")
    monkeypatch.setattr(driver, "_write", lambda *_: pytest.fail("written"))
    assert_same(calibrate(loaded, TOKENS, progress=False), first, atol=0, rtol=0)
    assert f"space that {MAX_BYTES_VARIABLE} allows" in caplog.text


def test_another_run_is_not_served_from_the_file(loaded, cache):
    tokens = TOKENS.clone()
    tokens[2, 9] += 1
    other = replace(loaded, fingerprint="other")
    runs = [(loaded, TOKENS), (loaded, tokens), (loaded, TOKENS.view(5, 6)), (other, TOKENS), (loaded, TOKENS, "text")]
    for count, run in enumerate(runs, 1):
        calibrate(*run, progress=False)
        assert len(list(cache.iterdir())) == count
    loaded.model.bfloat16()
    calibrate(loaded, TOKENS, progress=False)
    assert len(list(cache.iterdir())) == 6


def test_a_file_with_any_bit_flipped_gives_the_same_or_is_made_anew(loaded, cache):
    first = calibrate(loaded, TOKENS, progress=False)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    places = Random(0)
    # The first array's header, the table of contents, and the values between them.
    for start, end, count in [(0, 200, 8), (len(whole) - 4000, len(whole), 5), (200, len(whole), 3)]:
        for _ in range(count):
            damaged = bytearray(whole)
            damaged[places.randrange(start, end)] ^= 1 << places.randrange(8)
            file.write_bytes(damaged)
            assert_same(calibrate(loaded, TOKENS, progress=False), first, atol=0, rtol=0)
