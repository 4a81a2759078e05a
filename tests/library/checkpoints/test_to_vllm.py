"""A folder for vLLM: what its nemotron_nas reads of the configuration, and the function that the tensors are."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from opened import narrowed
from safetensors.torch import load_file
from tiny_models import FAMILIES, SHARED, randomised
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaMLP

from intraslice.checkpoints.auto_class import IntraSliceConfig
from intraslice.checkpoints.to_vllm import nas_config, to_vllm
from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.methods.registry import plan_by, slice_by

WIDTHS = [40, 56, 37]
FITTING = ["llama-mha", "llama-gqa", "llama-biased", "phi3", "qwen2"]
TOKENS = torch.randint(3, 250, (2, 23), generator=torch.Generator().manual_seed(1))


def in_transformers(folder: Path) -> PreTrainedModel:
    """The tensors of a folder in a Llama of transformers whose MLPs are as wide as config.json says; all must fit."""
    said = json.loads((folder / "config.json").read_text())
    config = LlamaConfig(**{name: said[name] for name in LlamaConfig().to_dict() if name in said})
    model = LlamaForCausalLM(config)
    for layer, block in zip(model.model.layers, said["block_configs"], strict=True):
        config.intermediate_size = block["ffn"]["intermediate_size"]
        layer.mlp = LlamaMLP(config)
    tensors = load_file(folder / "model.safetensors")
    if config.tie_word_embeddings:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    model.load_state_dict(tensors, strict=True)
    return model.eval()


@pytest.mark.parametrize("family", FITTING)
@torch.no_grad()
def test_the_tensors_are_a_llama_s_of_these_widths_and_the_same_function(family, tmp_path, word_tokenizer):
    model = narrowed(FAMILIES[family](), WIDTHS)
    to_vllm(model, word_tokenizer(), tmp_path / "out", {})
    reopened = in_transformers(tmp_path / "out")
    assert [layer.mlp.up_proj.out_features for layer in reopened.model.layers] == WIDTHS
    torch.testing.assert_close(reopened(TOKENS).logits, model(TOKENS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FITTING)
def test_the_configuration_has_what_nemotron_nas_reads_by_the_names_it_reads(family):
    dense = FAMILIES[family]().config
    config = nas_config(IntraSliceConfig.of(narrowed(FAMILIES[family](), WIDTHS), None))
    assert config.model_type == "nemotron-nas"
    assert config.architectures == ["DeciLMForCausalLM"]
    assert len(config.block_configs) == config.num_hidden_layers == 3
    for block, width in zip(config.block_configs, WIDTHS, strict=True):
        assert block.ffn.intermediate_size == width
        assert not hasattr(block.ffn, "ffn_mult")  # would be rounded up to a multiple of 256
        assert not hasattr(block.ffn, "hidden_act")
        assert block.ffn.no_op is block.attention.no_op is False
        assert config.num_attention_heads // block.attention.n_heads_in_group == dense.num_key_value_heads
    for name in ("hidden_size", "num_attention_heads", "max_position_embeddings", "rms_norm_eps", "vocab_size"):
        assert getattr(config, name) == getattr(dense, name)
    for name in ("rope_parameters", "tie_word_embeddings", "hidden_act"):
        assert getattr(config, name) == getattr(dense, name)
    assert config.head_dim == (getattr(dense, "head_dim", None) or dense.hidden_size // dense.num_attention_heads)
    assert config.attention_bias is (family in ("llama-biased", "qwen2"))
    assert config.mlp_bias is (family == "llama-biased")
    for absent in ("qkv_bias", "bias", "layer_types", "sliding_window", "logit_scale", "position_embedding_type"):
        assert not hasattr(config, absent)  # would change what it computes


IN_A_NEW_PROCESS = """
import pickle, sys
from transformers import AutoConfig, AutoTokenizer
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
for found in (config, pickle.loads(pickle.dumps(config))):
    blocks = found.block_configs
    print([block.ffn.intermediate_size for block in blocks], [block.attention.n_heads_in_group for block in blocks])
assert "block_configs" in config.to_json_string()
assert len(AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True))
assert not [name for name in sys.modules if name.split(".")[0] == "intraslice"]
"""


def test_the_configuration_opens_where_the_library_is_not_installed(tmp_path, word_tokenizer):
    to_vllm(narrowed(FAMILIES["llama-gqa"](), WIDTHS), word_tokenizer(), tmp_path / "out", {})
    run = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, tmp_path / "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["[40, 56, 37] [3, 3, 3]"] * 2


@torch.no_grad()
def test_an_mlp_that_is_gone_is_left_out(tmp_path, word_tokenizer):
    model = narrowed(FAMILIES["llama-gqa"](), [40, 0, 37])
    to_vllm(model, word_tokenizer(), tmp_path / "out", {})
    blocks = json.loads((tmp_path / "out" / "config.json").read_text())["block_configs"]
    assert [block["ffn"]["no_op"] for block in blocks] == [False, True, False]
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert not [name for name in names if name.startswith(("model.layers.1.mlp", "model.layers.1.post_attention"))]
    assert "model.layers.1.self_attn.o_proj.weight" in names


def test_a_plan_with_its_attention_locked_fits(tiny_case, tmp_path):
    case = tiny_case("llama-gqa")
    locked = tuple((layer, "attention", 0.0) for layer in range(3))
    config = SliceConfig(0.2, order="one-shot", locked=locked)
    plan = plan_by("intraslice", case.loaded.model, case.stats, config)
    model = slice_by("intraslice", case.loaded.model, plan, case.stats, case.tokens, progress=False)
    to_vllm(model, case.loaded.tokenizer, tmp_path / "out", {"ratios": []})
    blocks = json.loads((tmp_path / "out" / "config.json").read_text())["block_configs"]
    assert [block["ffn"]["intermediate_size"] for block in blocks] == [layer.neurons for layer in plan.layers]


@pytest.mark.parametrize(
    ("family", "method", "named"),
    [
        ("llama-gqa", "intraslice", "the same heads in every layer"),
        ("llama-gqa", "crossmodule", "shortcut"),
        ("phi", None, "gated MLPs"),
        ("mistral", None, "sliding attention window of 8 tokens"),
        ("smollm3", None, "rotary"),
        ("qwen3", None, "norms on queries and keys"),
        ("gemma3", None, "norms on queries and keys"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(family, method, named, tiny_case, tmp_path):
    case = tiny_case(family)
    model = case.loaded.model
    if method:
        plan = plan_by(method, model, case.stats, SliceConfig(0.3, bias=1.0, order="one-shot"))
        model = slice_by(method, model, plan, case.stats, case.tokens, progress=False)
    with pytest.raises(UserError, match=named) as caught:
        to_vllm(model, case.loaded.tokenizer, tmp_path / "out", {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_bias_that_is_all_of_an_mlp_is_refused(tmp_path, word_tokenizer):
    with pytest.raises(UserError, match="does not keep the output bias"):
        to_vllm(narrowed(FAMILIES["llama-biased"](), [40, 0, 37]), word_tokenizer(), tmp_path / "out", {})


def test_nothing_is_overwritten_and_nothing_is_half_written(tmp_path, word_tokenizer, monkeypatch):
    model = narrowed(FAMILIES["llama-mha"](), WIDTHS)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        to_vllm(model, word_tokenizer(), tmp_path / "there", {})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("intraslice.checkpoints.format.save_file", full)
    with pytest.raises(UserError, match="No space left"):
        to_vllm(model, word_tokenizer(), tmp_path / "out", {})
    assert [file.name for file in tmp_path.rglob("*")] == ["there", "mine.txt"]


IN_VLLM = """
import os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
import torch
from vllm import LLM, SamplingParams
folder, tokens, expected = sys.argv[1], *torch.load(sys.argv[2])
model = LLM(folder, trust_remote_code=True, dtype="float32", enforce_eager=True, max_model_len=64, max_logprobs=-1)
asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=-1)
(answer,) = model.generate([{"prompt_token_ids": tokens.tolist()}], asked)
found = [[row[token].logprob for token in range(len(expected[0]))] for row in answer.prompt_logprobs[1:]]
print(float((torch.tensor(found) - expected[:-1]).abs().max()))
"""


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
@pytest.mark.parametrize("widths", [WIDTHS, [40, 0, 37]])
@torch.no_grad()
def test_vllm_itself_finds_the_same_probabilities(widths, tmp_path, word_tokenizer):
    config = LlamaConfig(
        hidden_size=96,
        intermediate_size=160,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,  # 8 is too narrow for vLLM's kernels
        tie_word_embeddings=True,
        **SHARED,
    )
    model = narrowed(randomised(LlamaForCausalLM(config), 3), widths)
    to_vllm(model, word_tokenizer([f"w{index}" for index in range(4, 256)]), tmp_path / "out", {})
    torch.save((TOKENS[0], model(TOKENS[:1]).logits[0].log_softmax(-1)), tmp_path / "expected")
    run = subprocess.run(
        [sys.executable, "-c", IN_VLLM, tmp_path / "out", tmp_path / "expected"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HOME": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert float(run.stdout.splitlines()[-1]) < 1e-4
