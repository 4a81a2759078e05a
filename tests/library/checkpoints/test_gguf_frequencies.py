"""Rotary frequencies in a GGUF file are the model's."""

from __future__ import annotations

import torch
from gguf_files import byte_tokenizer

from intraslice.checkpoints.gguf_tensors import shared_heads
from intraslice.checkpoints.to_gguf import write_gguf


def test_frequencies_are_those_of_the_model(tiny_case):
    heads = shared_heads(tiny_case("llama-biased").loaded.model)
    made = heads.base ** (-2 * torch.arange(heads.width // 2) / heads.width) / heads.factors
    torch.testing.assert_close(made, tiny_case("llama-biased").original.model.rotary_emb.inv_freq)
    assert shared_heads(tiny_case("llama-gqa").loaded.model).factors is None


def test_frequencies_that_change_with_the_length_bound_the_context(tiny_case, tmp_path):
    model = tiny_case("phi-4-mini").loaded.model
    model(torch.zeros(1, 80, dtype=torch.long), use_cache=False)  # leaves the frequencies of long texts behind
    assert write_gguf(model, byte_tokenizer(), tmp_path / "t.gguf", progress=False).context_length == 64
    heads = shared_heads(model)
    frequencies = heads.base ** (-2 * torch.arange(6) / heads.width) / heads.factors[:6]
    torch.testing.assert_close(frequencies, 1e4 ** -(torch.arange(6) / 6) / torch.linspace(1, 1.5, 6))
