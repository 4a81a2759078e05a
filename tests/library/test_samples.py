"""What a recovery trains on: samples and states of the dense model, kept on disk and shared; and what it costs."""

import copy
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from intraslice import samples as samples_module
from intraslice.core.config import CalibrationConfig
from intraslice.core.progress import ignore_progress
from intraslice.recovery import RECOVERIES
from intraslice.recovery.registry import cost_of
from intraslice.samples import _sample, calibration_sequences, kept_samples, kept_states, sample_texts
from intraslice.search.ratio_search import search_windows
from intraslice.token_windows import calibration_tokens

pytestmark = pytest.mark.usefixtures("own_cache")


def test_tokens_are_sampled_with_the_probabilities_of_the_logits():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    tokens = _sample(probabilities.log().expand(20_000, -1), torch.Generator().manual_seed(0))
    assert_close(tokens.flatten().bincount(minlength=4) / 20_000, probabilities, atol=0.02, rtol=0)
    assert not (tokens == 1).any()


def test_samples_depend_on_seed_and_temperature_and_continue_what_the_model_wrote(case):
    model = case.dense
    samples = [
        sample_texts(model, (5, 12), temperature, torch.Generator().manual_seed(seed))
        for temperature, seed in ((1.0, 0), (1.0, 0), (1.0, 1), (1e-4, 0))
    ]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    # Near temperature 0 each token is the likeliest after those before it.
    assert torch.equal(model(samples[3]).logits[:, :-1].argmax(-1), samples[3][:, 1:])


def test_samples_and_states_are_made_once_for_all_slices(case, own_cache):
    dense = case.dense
    counts = []
    for method in ("intraslice", "wanda"):
        events = []
        sliced = case.sliced(method=method, order="sequential")
        RECOVERIES["distill"].recover(dense, sliced, case.tokens, 1, progress=events.append)
        counts.append(Counter(event.stage for event in events))
    assert counts[0]["samples"] == case.tokens.shape[1] - 1
    assert counts[0]["dense states"]
    assert set(counts[1]) == {"distill"}
    assert {path.parent.name for path in own_cache.glob("*/*.npz")} >= {"samples", "states"}
    samples = kept_samples(dense, (8, case.tokens.shape[1]), 1.0, 0, ignore_progress)
    expected = dense.model(samples).last_hidden_state
    assert_close(kept_states(dense, samples, ignore_progress).hidden, expected, atol=1e-5, rtol=1e-4)


def test_likely_tokens_are_those_of_the_sequence_and_those_that_the_model_expects(case, monkeypatch):
    monkeypatch.setattr(samples_module, "LIKELY_TOKENS", 10)
    monkeypatch.setattr(samples_module, "STATES_PER_FILE", 2)
    model, tokens = case.dense, case.tokens[:3, :5]
    likely = kept_states(model, tokens, ignore_progress).likely
    expected = model(tokens).logits.softmax(-1).sum(1)
    for sequence, found, probabilities in zip(tokens, likely, expected, strict=True):
        own = set(sequence.tolist())
        others = [token for token in probabilities.argsort(descending=True).tolist() if token not in own]
        assert found.tolist() == sorted(own | set(others[: 10 - len(own)]))


def test_texts_are_joined_to_sequences_and_more_begin_with_those_of_fewer(case, monkeypatch):
    model = case.dense
    monkeypatch.setattr(samples_module, "SAMPLE_TOKENS", 6)
    monkeypatch.setattr(samples_module, "SAMPLES_PER_BATCH", 4)
    samples = kept_samples(model, (5, 11), 1.0, 0, ignore_progress)  # two texts of six tokens each, one token cut
    assert samples.shape == (5, 11)
    assert torch.equal(samples[:3], kept_samples(model, (3, 11), 1.0, 0, ignore_progress))
    texts = sample_texts(model, (4, 6), 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(samples[0], texts[:2].flatten()[:11])
    assert len(samples.unique(dim=0)) == 5


def test_a_calibration_reads_text_and_then_samples_which_a_search_leaves_out(case, tmp_path):
    loaded = case.loaded
    (tmp_path / "text.txt").write_text("\n\n".join(f"w{n} w{n + 1} w{2 * n}" for n in range(4, 90)))
    config = CalibrationConfig(str(tmp_path / "text.txt"), 4, 8, samples=3)
    tokens = calibration_sequences(loaded, config, progress=False)
    assert torch.equal(tokens[:4], calibration_tokens(loaded.tokenizer, config))
    assert torch.equal(tokens[4:], kept_samples(loaded.model, (3, 8), 1.0, 0, ignore_progress))
    searched = search_windows(loaded, tokens[:4], 8, skip=3, progress=False)
    assert len(torch.cat([tokens[4:], searched[1::2]]).unique(dim=0)) == 7


@pytest.mark.parametrize("damage", ["cut off", "one bit"])
def test_a_damaged_file_is_made_anew(case, own_cache, damage):
    model = case.dense
    samples = kept_samples(model, (3, 12), 1.0, 0, ignore_progress)
    states = kept_states(model, samples, ignore_progress)
    files = [*own_cache.glob("samples/*.npz"), *own_cache.glob("states/*.npz")]
    assert len(files) == 2
    for file in files:
        content = bytearray(file.read_bytes())
        content[300] ^= 1  # in the first member
        file.write_bytes(content if damage == "one bit" else file.read_bytes()[:-40])
    assert torch.equal(kept_samples(model, (3, 12), 1.0, 0, ignore_progress), samples)
    assert all(map(torch.equal, kept_states(model, samples, ignore_progress), states))
    assert len([*own_cache.glob("s*/*.damaged")]) == 2


@pytest.mark.parametrize("name", ["distill", "distill-own"])
def test_the_cost_is_that_of_the_counted_products_with_weights(case, name, monkeypatch):
    monkeypatch.setattr(samples_module, "SAMPLES_PER_BATCH", 10)  # all that are sampled beside 16 sequences
    monkeypatch.setattr(samples_module, "LIKELY_TOKENS", 160)  # so that the head is sampled
    dense, tokens = case.dense, case.tokens
    sliced = copy.deepcopy(case.sliced(order="sequential"))  # modules shared with `dense` are not trained

    def flops(run) -> int:
        with FlopCounterMode(display=False) as counter:
            run()
        return counter.get_flop_counts()["Global"][torch.ops.aten.mm]  # products with weights

    dense_pass = flops(lambda: dense(tokens))
    more = {"schedule": ((0.63, 0.74), 1.0)} if name == "distill-own" else {}
    entry = replace(RECOVERIES[name], rank=1, **more)  # the products with the head are a larger part
    monkeypatch.setitem(RECOVERIES, name, entry)
    cost, none = (cost_of(dense, sliced, tokens, name, epochs, tokens.numel()) for epochs in (2, 0))
    assert none is None
    train = partial(entry.recover, dense, sliced, tokens, 2, progress=False)
    sampling_and_training = flops(train)  # the samples and states are kept now
    training = flops(train)
    assert training / dense_pass == pytest.approx(cost.training, rel=0.05)  # the first layer's input has no gradient
    assert (sampling_and_training - training) / dense_pass == pytest.approx(cost.sampling, rel=0.05)
