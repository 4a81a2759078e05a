"""Whether a model fits, known before it is loaded."""

from __future__ import annotations

import pytest
import torch

from intraslice import loading
from intraslice.loading import DEFAULT, estimate_memory, require_memory
from intraslice.pretrained import memory, sources


@pytest.mark.parametrize("family", ["tiny_llama_mha", "tiny_llama_gqa", "tiny_phi3", "tiny_phi"])
def test_the_estimate_counts_the_parameters(family, request, tmp_path):
    model = request.getfixturevalue(family)()
    model.save_pretrained(tmp_path)
    estimate = estimate_memory(str(tmp_path), torch.bfloat16)
    assert estimate.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert estimate.bytes == 2 * estimate.parameters
    assert 2**20 < estimate.available < 2**50


def test_the_estimate_of_the_default_needs_no_weights(own_cache, default_model, monkeypatch):
    monkeypatch.setattr(sources, "_cached_snapshot", lambda *given: None)
    counted = sum(parameter.numel() for parameter in default_model.model.parameters())
    assert estimate_memory(DEFAULT).parameters == counted
    assert not own_cache.exists()


def test_a_model_that_does_not_fit_is_refused_with_both_numbers(folder, monkeypatch, refusal):
    require_memory(str(folder))
    monkeypatch.setattr(memory, "available_bytes", lambda device="cpu": 200 * 2**20)
    monkeypatch.setattr(loading, "read_weights", lambda *given: pytest.fail("loaded"))
    message = refusal(folder)
    assert "needs 0.3 GiB, and 0.2 GiB are free on cpu; take bfloat16 or a smaller model" in message
