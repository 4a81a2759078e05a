"""A saved folder in transformers' hands: opened, placed, generated with, trained, saved again and pushed."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from opened import MADE, narrowed, save_slice
from refusing import refused
from tiny_models import FAMILIES
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedConfig,
    PreTrainedModel,
)

import intraslice
from intraslice.checkpoints.auto_class import IntraSliceConfig, IntraSliceForCausalLM, plain_model
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.hidden_states import cache_keyword
from intraslice.modeling.mlp import SlicedMLP
from intraslice.slicing.attention import cut_queries_and_keys


def test_auto_classes_open_it_as_it_was_saved_or_with_their_own_options_where_a_device_map_says(opened):
    config = AutoConfig.from_pretrained(opened.folder)
    assert isinstance(opened.model, IntraSliceForCausalLM)
    assert isinstance(opened.model, type(opened.case.original))
    assert isinstance(config, IntraSliceConfig)
    assert opened.model.record == MADE
    assert opened.agrees(opened.model)
    assert all(parameter.requires_grad for parameter in opened.model.parameters())
    assert not opened.model.training
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    expected = {name: tensor.shape for name, tensor in opened.sliced.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == expected
    assert all(tensor.dtype == torch.bfloat16 for tensor in model.parameters())
    assert torch.isfinite(model(opened.case.tokens[:1]).logits).all()
    assert not opened.agrees(model.float(), tolerance=0.1)
    assert AutoModelForCausalLM.from_pretrained(opened.folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    eager = AutoModelForCausalLM.from_pretrained(opened.folder, attn_implementation="eager", use_cache=False)
    assert (eager.config._attn_implementation, eager.config.use_cache) == ("eager", False)
    assert opened.agrees(eager, tolerance=1e-5)
    for device_map in ("cpu", "auto"):
        placed = AutoModelForCausalLM.from_pretrained(opened.folder, device_map=device_map)
        assert {parameter.device.type for parameter in placed.parameters()} == {"cpu"}
        assert opened.agrees(placed)
    _, report = AutoModelForCausalLM.from_pretrained(opened.folder, output_loading_info=True)
    assert not any(report.values())
    with pytest.raises(ValueError, match="does not support Flash Attention"):
        AutoModelForCausalLM.from_pretrained(opened.folder, attn_implementation="flash_attention_2")


IN_A_NEW_PROCESS = """
import sys
from transformers import AutoModelForCausalLM, pipeline
folder, imports = sys.argv[1:]
trusted = {}
if imports == "yes":
    import intraslice
else:
    try:
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error)
    trusted = {"trust_remote_code": True}
model = AutoModelForCausalLM.from_pretrained(folder, **trusted)
said = pipeline("text-generation", model=folder, **trusted)("w7 w8 w9", max_new_tokens=4, do_sample=False)
print(type(model).__name__, said[0]["generated_text"])
"""


@pytest.mark.parametrize("imports", [pytest.param("yes", marks=pytest.mark.slow), "no"])
def test_a_process_with_only_transformers_and_the_library_opens_it(tmp_path, case, imports):
    """Without the library it is refused, rather than filled with random numbers, unless its own code may run."""
    sliced = save_slice(case, "intraslice", tmp_path / "sliced")
    command, root = [sys.executable, "-c", IN_A_NEW_PROCESS, tmp_path / "sliced", imports], Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HOME": str(tmp_path)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
    assert run.returncode == 0, run.stderr
    assert "not supported" not in run.stderr
    tokenizer = case.loaded.tokenizer
    prompt = tokenizer("w7 w8 w9", return_tensors="pt").input_ids
    answer = sliced.generate(prompt, max_new_tokens=4, do_sample=False)[0, 3:]
    said = tokenizer.decode(answer, skip_special_tokens=True)
    assert run.stdout.strip().replace(" ", "") == f"IntraSliceForCausalLMw7w8w9{said}".replace(" ", "")


def test_transformers_own_entries_are_there_where_they_say_what_a_layer_computes(tmp_path, case, opened):
    assert "transformers" not in json.loads((opened.folder / "config.json").read_text())  # heads of other widths
    model = narrowed(copy.deepcopy(case.original), [24, 40, 40])
    intraslice.save(model, case.loaded.tokenizer, tmp_path / "sliced", MADE)
    saved = json.loads((tmp_path / "sliced" / "config.json").read_text())
    entries, dense = saved["transformers"]["per_layer_config"], case.original.config
    heads = {"num_attention_heads": dense.num_attention_heads, "num_key_value_heads": dense.num_key_value_heads}
    sizes = [{"head_dim": dense.head_dim, "intermediate_size": width} for width in (24, 40, 40)]
    assert [entries[str(layer)] for layer in range(3)] == [heads | size for size in sizes]
    assert AutoConfig.from_pretrained(tmp_path / "sliced").to_dict()["transformers"] == saved["transformers"]
    # What transformers falls back to for the tokenizer where the library is not imported.
    assert PreTrainedConfig.from_pretrained(tmp_path / "sliced").transformers == saved["transformers"]


def test_layers_on_disk_are_fetched_but_not_shortcuts(opened, tmp_path):
    final = "final_layernorm" if opened.model.config.model_type == "phi" else "norm"
    names = ("model.embed_tokens", f"model.{final}", "model.rotary_emb", "model.layers.0", "model.layers.2", "lm_head")
    options = {"device_map": dict.fromkeys(names, "cpu") | {"model.layers.1": "disk"}, "offload_folder": tmp_path}
    if opened.is_crossmodule:
        assert "shortcut matrices" in refused(AutoModelForCausalLM.from_pretrained, opened.folder, **options)
    else:
        model = AutoModelForCausalLM.from_pretrained(opened.folder, **options)
        assert any(parameter.is_meta for parameter in model.parameters())
        assert opened.agrees(model)


@pytest.mark.parametrize("shard", ["5GB", "60KB"])
def test_it_is_saved_again_and_reopened(opened, tmp_path, shard):
    model = AutoModelForCausalLM.from_pretrained(opened.folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(2)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "60KB")
    assert model.config.model_type == opened.case.original.config.model_type  # as before
    for folder in (opened.folder, tmp_path):  # neither names a place on this machine
        assert str(opened.folder.parent) not in (folder / "config.json").read_text()
    AutoTokenizer.from_pretrained(opened.folder).save_pretrained(tmp_path)
    for reopened, made in (
        (again := AutoModelForCausalLM.from_pretrained(tmp_path), again.record),
        intraslice.load(tmp_path)[::2],
        (intraslice.load_model(str(tmp_path)).model, MADE),
    ):
        assert made == MADE
        with torch.no_grad():
            assert torch.equal(reopened(opened.case.tokens).logits, model(opened.case.tokens).logits)
    assert not opened.agrees(model, tolerance=1e-3)


def test_what_is_pushed_opens_after_the_download(opened, tmp_path, monkeypatch):
    def commit(repo_id: str, operations: list, **_: object) -> None:
        for one in operations:
            shutil.copy(one.path_or_fileobj, tmp_path / one.path_in_repo)

    hub = Mock(create_commit=Mock(side_effect=commit))
    for module in ("transformers.utils.hub", "transformers.modeling_utils"):
        monkeypatch.setattr(f"{module}.hf_api", lambda: hub)
        monkeypatch.setattr(f"{module}.create_and_tag_model_card", Mock())
    AutoModelForCausalLM.from_pretrained(opened.folder).push_to_hub("someone/sliced")
    assert hub.create_repo.call_args.args == ("someone/sliced",)
    names = {"config.json", "model.safetensors", "modeling_intraslice.py", "generation_config.json"}
    assert names <= {file.name for file in tmp_path.iterdir()}
    assert opened.agrees(AutoModelForCausalLM.from_pretrained(tmp_path))


def test_it_trains_whole_and_with_activations_recomputed_and_its_linear_maps_are_found_by_name(opened):
    gradients, gated = [], opened.model.config.model_type != "phi"
    for recompute in (False, True):
        model = AutoModelForCausalLM.from_pretrained(opened.folder).train()
        linears = {name.split(".")[-1] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        assert linears == {"qkv_proj", "o_proj", "gate_up_proj" if gated else "up_proj", "down_proj", "lm_head"}
        if recompute:
            model.gradient_checkpointing_enable()
        model(opened.case.tokens, labels=opened.case.tokens).loss.backward()
        gradients.append(model.model.layers[0].self_attn.qkv_proj.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


STEPS = 8


def greedy(model: PreTrainedModel, prompt: Tensor, **options: object) -> Tensor:
    options = {"pad_token_id": 0, "max_new_tokens": STEPS} | options
    return model.generate(prompt, do_sample=False, eos_token_id=None, **options)


def test_every_cache_gives_the_same_answer_which_goes_on_from_a_cache_from_embeddings_and_with_a_draft(opened):
    prompt = opened.case.tokens[:2, :11]
    expected = greedy(opened.model, prompt)
    static, in_chunks = {"cache_implementation": "static", "disable_compile": True}, {"prefill_chunk_size": 4}
    for options in ({"use_cache": False}, static, in_chunks, static | in_chunks):
        assert torch.equal(greedy(opened.model, prompt, **options), expected), options
    cache = {cache_keyword(opened.model): DynamicCache(config=opened.model.config)}
    begun = greedy(opened.model, prompt, **cache, max_new_tokens=3)
    assert torch.equal(begun, expected[:, : prompt.shape[1] + 3])
    assert torch.equal(greedy(opened.model, begun, **cache, max_new_tokens=STEPS - 3), expected)
    embedded = opened.model.get_input_embeddings()(prompt).detach()
    answer = greedy(opened.model, None, inputs_embeds=embedded)
    assert torch.equal(answer, expected[:, prompt.shape[1] :])
    prompt, dense = opened.case.tokens[:1, :11], opened.case.original
    assert torch.equal(greedy(dense, prompt, assistant_model=opened.model), greedy(dense, prompt))
    assert torch.equal(greedy(opened.model, prompt, assistant_model=dense), greedy(opened.model, prompt))
    assert torch.equal(greedy(opened.model, prompt, prompt_lookup_num_tokens=3), greedy(opened.model, prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_uniform_model_reloads_through_transformers_alone(family, tmp_path):
    """Where heads have a width of their own in the configuration, also with fewer groups, other ones in each layer."""
    sliced, fewer = narrowed(FAMILIES[family](), [40, 40, 40]), 0
    if family in ("llama-gqa", "mistral", "qwen2", "smollm3", "qwen3", "gemma3"):
        fewer = 1
        for index, layer in enumerate(sliced.model.layers):
            weights = layer.self_attn.weights()
            heads = (weights.kv_head != index % 2).nonzero().flatten().tolist()
            ones = torch.ones(layer.self_attn.heads, layer.self_attn.dim)
            cut = cut_queries_and_keys(weights, ones, heads, layer.self_attn.dim)
            layer.self_attn = SlicedAttention(cut, index)
    tokens = torch.randint(3, 250, (2, 11))
    plain_model(sliced).save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    assert type(reloaded.model.layers[0].mlp) is not SlicedMLP
    assert reloaded.config.intermediate_size == 40
    assert reloaded.config.num_key_value_heads == sliced.config.num_key_value_heads - fewer
    torch.testing.assert_close(reloaded(tokens).logits, sliced(tokens).logits, rtol=1e-4, atol=1e-5)


def test_layers_that_differ_and_shortcuts_are_refused_by_name(tiny_llama_gqa, case):
    model = narrowed(tiny_llama_gqa(), [40, 40, 48])
    assert "layer 2 has a different shape from layer 0" in refused(plain_model, model)
    assert "shortcut" in refused(plain_model, case.sliced(method="crossmodule"))
