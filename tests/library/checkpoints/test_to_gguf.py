"""A GGUF file holds what llama.cpp's `deci` needs to compute the model: checked in plain tensors, without llama.cpp."""

from dataclasses import replace
from unittest.mock import Mock

import gguf
import numpy
import pytest
import torch
from gguf import TokenType
from gguf_files import byte_tokenizer, piece_tokenizer
from random_weights import attention_weights
from refusing import refused
from tiny_models import FAMILIES, llama
from tokenizers import pre_tokenizers
from torch.nn import functional

from intraslice.checkpoints import to_gguf
from intraslice.checkpoints.deci_tensors import Heads, attention_tensors, deci_tensors, shared_heads
from intraslice.checkpoints.gguf_tokenizer import read_tokenizer
from intraslice.checkpoints.to_gguf import GGUF_TYPES, QUANTISED, gguf_bytes, require_deci, rounded_model, write_gguf
from intraslice.core.weights import UNROTATED
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import canonicalise
from intraslice.modeling.offload import is_offloaded, offload_


def _by_the_rules_of_llama_cpp(tensors: dict, heads: Heads, hidden: torch.Tensor) -> torch.Tensor:
    """Attention of one width: neighbours rotated together, groups of one size, a scale of `1 / sqrt(width)`."""
    tokens, pairs = len(hidden), heads.width // 2
    frequencies = heads.base ** (-2 * torch.arange(pairs) / heads.width)
    if heads.factors is not None:
        frequencies = frequencies / heads.factors
    turns = torch.polar(torch.ones(tokens, pairs), torch.arange(tokens)[:, None] * frequencies)

    def project(name: str) -> torch.Tensor:
        bias = tensors.get(f"{name}.bias", (torch.zeros(()), 0))[0]
        return (hidden @ tensors[f"{name}.weight"][0].T + bias).view(tokens, -1, heads.width).transpose(0, 1)

    def rotated(states: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.view_as_complex(states.unflatten(-1, (-1, 2)).contiguous()) * turns).flatten(-2)

    query, key, value = rotated(project("attn_q")), rotated(project("attn_k")), project("attn_v")
    group = len(query) // len(key)
    key, value = key.repeat_interleave(group, 0), value.repeat_interleave(group, 0)
    outputs = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    outputs = outputs.transpose(0, 1).flatten(1) @ tensors["attn_output.weight"][0].T
    return outputs + tensors.get("attn_output.bias", (torch.zeros(()), 0))[0]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("kv_head", "frequency", "value_dim"),
    [
        ([0, 0, 1, 1], [[0, 1, 2, 3], [0, 1, 2, 3]], 8),  # nothing to fill up
        ([0, 0, 0, 1, 2, 2], [[0, 3], [1, 2], [0, 1]], 3),  # ragged, and every group has other pairs
        ([1, 0, 1, 1], [[3, 0, 2], [1, 2, 3]], 5),  # in no order
        ([0], [[2]], 8),
        ([0, 1, 1], [[0, UNROTATED], [UNROTATED, 1]], 4),
        ([0, 1, 1], [[UNROTATED, UNROTATED], [UNROTATED, 0]], 2),
    ],
)
def test_attention_filled_up_is_the_same_attention(kv_head, frequency, value_dim, biased):
    weights = attention_weights(12, kv_head, frequency, value_dim, biased)
    pairs = 2 if any(UNROTATED in group for group in frequency) else 4
    own = 100.0 ** -(torch.arange(pairs) / pairs)
    factors = torch.cat([100.0 ** (-torch.arange(pairs) / 4) / own, torch.full((4 - pairs,), 1e30)])
    heads = Heads(8, 100.0, factors, rotated=pairs, gain=1.3)
    angles = (torch.arange(9)[:, None] * own).repeat(1, 2)[None]
    hidden = torch.randn(9, 12)
    wanted = SlicedAttention(weights, 0)(hidden[None], (1.3 * angles.cos(), 1.3 * angles.sin()))[0][0]
    tensors = attention_tensors(weights, heads)
    torch.testing.assert_close(_by_the_rules_of_llama_cpp(tensors, heads, hidden), wanted, rtol=1e-4, atol=1e-4)
    for name, kept in {"attn_q.weight": weights.query, "attn_output.weight": weights.output}.items():
        assert tensors[name].kept == int((tensors[name].values != 0).sum()) == kept.numel()


def test_a_layer_without_heads_writes_its_bias():
    whole = attention_weights(12, [0], [[0, 1, 2, 3]], 8)
    rows = ("query", "key", "value", "query_bias", "key_bias", "value_bias", "kv_head", "frequency")
    weights = replace(whole, output=whole.output[:, :0], **{name: getattr(whole, name)[:0] for name in rows})
    heads = Heads(8, 100.0, None, 4, 1.0)
    written = _by_the_rules_of_llama_cpp(attention_tensors(weights, heads), heads, torch.randn(5, 12))
    torch.testing.assert_close(written, whole.output_bias.expand(5, -1))


def _read(file) -> tuple[dict, dict]:
    reader = gguf.GGUFReader(file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def _held(tensors: dict) -> int:
    """Parameters of the model in a file, padding included."""
    return sum(int(tensor.n_elements) for name, tensor in tensors.items() if name != "rope_freqs.weight")


@pytest.mark.parametrize("name", ["llama-gqa", "llama-biased", "phi3"])
def test_the_file_says_the_shapes_and_holds_every_parameter(name, tiny_case, tmp_path):
    case = tiny_case(name)
    model, config = case.sliced(bias=0.7), case.dense.config
    made = {"requested": {"model": "somebody/Tiny-1"}, "removed_fraction": 0.4}
    report = write_gguf(model, byte_tokenizer(), tmp_path / "tiny.gguf", "f32", "folder", made, progress=False)
    fields, tensors = _read(tmp_path / "tiny.gguf")
    attentions = [layer.self_attn for layer in model.model.layers]
    groups = [max(a.kv_head.tolist().count(head) for head in range(a.kv_heads)) for a in attentions]
    assert fields["general.architecture"] == "deci"
    assert fields["general.name"] == "Tiny-1"
    assert fields["deci.attention.head_count_kv"] == [a.kv_heads for a in attentions]
    queries = [a.kv_heads * group for a, group in zip(attentions, groups, strict=True)]
    assert fields["deci.attention.head_count"] == queries
    assert fields["deci.feed_forward_length"] == [-(-layer.mlp.neurons // 32) * 32 for layer in model.model.layers]
    assert fields["deci.attention.key_length"] == fields["deci.rope.dimension_count"] == 8
    assert fields["deci.context_length"] == report.context_length == config.max_position_embeddings
    assert ("output.weight" in tensors) != config.tie_word_embeddings
    assert 4 * _held(tensors) - report.padding_bytes == 4 * sum(parameter.numel() for parameter in model.parameters())
    assert fields["intraslice.padding_bytes"] == report.padding_bytes > 0
    assert report.bytes == (tmp_path / "tiny.gguf").stat().st_size
    assert ("rope_freqs.weight" in tensors) == (name == "llama-biased")


def test_nothing_is_padded_of_a_slice_for_a_runtime(tiny_case, tmp_path):
    case = tiny_case("llama-biased")
    plan = case.plan(0.5, shapes="runtime", order="sequential")
    model = case.cut(plan)
    made = {"removed_fraction": plan.removed_fraction}
    report = write_gguf(model, byte_tokenizer(), tmp_path / "tiny.gguf", "f32", record=made, progress=False)
    fields, tensors = _read(tmp_path / "tiny.gguf")
    assert report.padding_bytes == fields["intraslice.padding_bytes"] == 0
    assert fields["general.description"].endswith("parameters removed; no padding")
    assert _held(tensors) == plan.parameters.sliced_total


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_weights_are_of_the_type_asked_for(kind, tiny_case, tmp_path):
    model = tiny_case("llama-mha").dense  # 56 hidden channels are no whole blocks
    report = write_gguf(model, byte_tokenizer(), tmp_path / "t.gguf", kind, progress=False)
    _, tensors = _read(tmp_path / "t.gguf")
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert types["blk.0.ffn_down.weight"] == kind.upper()
    quantised = kind in QUANTISED
    assert types["blk.0.attn_q.weight"] == ("F16" if quantised else kind.upper())
    assert types["output_norm.weight"] == "F32"
    assert set(report.as_f16) == {name for name, stored in types.items() if quantised and stored == "F16"}
    stored = tensors["blk.0.ffn_down.weight"]
    values = torch.tensor(gguf.dequantize(stored.data, stored.tensor_type))
    tolerance = {"q4_0": 0.05, "q5_0": 0.025}.get(kind, 2e-3)
    torch.testing.assert_close(values[:, :100], model.model.layers[0].mlp.down_proj.weight, rtol=0.01, atol=tolerance)
    assert report.bytes == gguf_bytes(model, byte_tokenizer(), kind)


@pytest.mark.parametrize(
    ("name", "kind"),
    [*(("llama-biased", kind) for kind in GGUF_TYPES), ("llama-gqa", "q4_0"), ("phi3", "q8_0"), ("qwen2", "q4_0")],
)
def test_the_evaluated_weights_are_those_of_the_file_bit_for_bit(name, kind, tiny_case, tmp_path):
    model = tiny_case(name).sliced(bias=0.7)
    model.model.layers[1].self_attn.scale = 0.3
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    report = write_gguf(model, byte_tokenizer(), tmp_path / "tiny.gguf", kind, progress=False)
    assert report.bytes == gguf_bytes(model, byte_tokenizer(), kind)
    rounded = rounded_model(model, kind, progress=False)
    again = {key: tensor.values for key, tensor in deci_tensors(rounded)}
    _, tensors = _read(tmp_path / "tiny.gguf")
    assert again.keys() == tensors.keys()
    for key, tensor in tensors.items():
        stored = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).float()
        assert torch.equal(again[key], stored), key  # padding included
    assert rounded.dtype == torch.float32
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_what_llama_cpp_does_not_compute_is_refused_by_name(tiny_case, case):
    tokenizer = byte_tokenizer()
    for model, named in (
        (tiny_case("phi").dense, "LayerNorm"),
        (case.sliced(method="crossmodule"), "shortcut"),
        (tiny_case("qwen3").dense, "norms on queries and keys, which"),
        (tiny_case("gemma3").dense, "queries and keys and after every module"),
        (tiny_case("smollm3").dense, "rotary"),
    ):
        assert named in refused(require_deci, model, tokenizer)
    assert "WordLevel" in refused(require_deci, case.dense, case.loaded.tokenizer)
    scaled = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    for field, named in (({"hidden_act": "gelu"}, "gelu"), ({"rope_parameters": scaled}, "dynamic")):
        model = llama(1, sizes=(32, 32, 2, 2), **field)()
        canonicalise(model)
        assert named in refused(require_deci, model, tokenizer)


def test_weights_that_are_kept_elsewhere_are_fetched(tiny_llama_gqa, as_loaded, tmp_path):
    model, tokenizer = as_loaded(tiny_llama_gqa()).model, byte_tokenizer()
    write_gguf(model, tokenizer, tmp_path / "here.gguf", progress=False)
    for layer in model.model.layers:
        offload_(layer.self_attn, "cpu", on_disk=False)
        offload_(layer.mlp, "cpu", on_disk=False)
    write_gguf(model, tokenizer, tmp_path / "there.gguf", progress=False)
    assert is_offloaded(model)
    assert (tmp_path / "there.gguf").read_bytes() == (tmp_path / "here.gguf").read_bytes()


def test_nothing_is_half_written(tiny_llama_gqa, as_loaded, tmp_path, monkeypatch):
    model, tokenizer = as_loaded(tiny_llama_gqa()).model, byte_tokenizer()

    def refusal(file) -> str:
        message = refused(write_gguf, model, tokenizer, file, progress=False)
        assert [path.name for path in tmp_path.iterdir()] == ["there.gguf"]
        return message

    (tmp_path / "there.gguf").write_text("mine")
    assert "exists" in refusal(tmp_path / "there.gguf")
    assert "end in .gguf" in refusal(tmp_path / "model.bin")
    assert "cannot write" in refusal(tmp_path / "nowhere" / "model.gguf")
    file = tmp_path / "model.gguf"
    with monkeypatch.context() as patch:
        patch.setattr(to_gguf.shutil, "disk_usage", lambda folder: numpy.rec.array((9, 9, 9), names="total,used,free"))
        assert "free some space" in refusal(file)
    full = Mock(side_effect=OSError(28, "No space left on device"))
    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
        assert "No space left" in refusal(file)
    model.model.layers[1].mlp.down_proj.weight[0, 0] = 1e6
    assert "float16" in refusal(file)
    assert (tmp_path / "there.gguf").read_text() == "mine"


def test_frequencies_are_those_of_the_model_and_bound_the_context_where_they_change_as_windows_do(
    tiny_case, case, as_loaded, tmp_path
):
    heads = shared_heads(tiny_case("llama-biased").loaded.model)
    made = heads.base ** (-2 * torch.arange(heads.width // 2) / heads.width) / heads.factors
    torch.testing.assert_close(made, tiny_case("llama-biased").original.model.rotary_emb.inv_freq)
    assert shared_heads(case.dense).factors is None
    model = tiny_case("phi-4-mini").loaded.model
    model(torch.zeros(1, 80, dtype=torch.long), use_cache=False)  # leaves the frequencies of long texts behind
    assert write_gguf(model, byte_tokenizer(), tmp_path / "t.gguf", progress=False).context_length == 64
    heads = shared_heads(model)
    frequencies = heads.base ** (-2 * torch.arange(6) / heads.width) / heads.factors[:6]
    torch.testing.assert_close(frequencies, 1e4 ** -(torch.arange(6) / 6) / torch.linspace(1, 1.5, 6))
    model = as_loaded(FAMILIES["phi3"]()).model
    model.config.sliding_window = 100
    assert write_gguf(model, byte_tokenizer(), tmp_path / "w.gguf", progress=False).context_length == 100


def test_the_default_model_s_tokenizer_comes_whole(default_model):
    tokenizer, rows = default_model.tokenizer, default_model.model.config.vocab_size
    read = read_tokenizer(tokenizer, rows)
    assert (read["tokenizer_model"], read["add_bos_token"], read["add_eos_token"]) == ("gpt2", False, False)
    # The default from the Hub splits off digits; by way of a GGUF file transformers loses that step.
    has_digits = "Digits" in str(tokenizer.backend_tokenizer.pre_tokenizer)
    assert read["tokenizer_pre"] == ("smollm" if has_digits else "gpt-2")
    assert [read["token_list"][token] for token in (1, 2, 504)] == tokenizer.convert_ids_to_tokens([1, 2, 504])
    assert len(read["token_list"]) == len(read["token_types"]) == rows
    assert read["token_types"][2] is TokenType.CONTROL
    assert read["eos_token_id"] == tokenizer.eos_token_id == 2
    assert read["chat_template"] == tokenizer.chat_template
    assert read["token_merges"][0].split(" ") == ["Ġ", "t"]


def test_turns_end_where_the_template_says_rows_without_a_token_are_unused_and_tokens_beyond_refused():
    tokenizer = byte_tokenizer()
    assert "eot_token_id" not in read_tokenizer(tokenizer, 256)
    assert read_tokenizer(tokenizer, 256, [tokenizer.eos_token_id, 7, 999, 2])["eot_token_id"] == 2
    tokenizer.chat_template = {"default": "a", "tools": "b"}
    named = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    assert read_tokenizer(tokenizer, 256)["chat_template"] == named
    tokenizer = byte_tokenizer()
    read = read_tokenizer(tokenizer, len(tokenizer) + 2)
    assert read["token_types"][-2:] == [TokenType.UNUSED] * 2
    assert len(set(read["token_list"])) == len(read["token_list"])
    assert "but the model has only 20 embeddings" in refused(read_tokenizer, byte_tokenizer(), 20)


def test_pieces_have_bytes_and_the_order_of_their_merges():
    tokenizer = piece_tokenizer()
    read = read_tokenizer(tokenizer, len(tokenizer))
    assert (read["tokenizer_model"], read["add_bos_token"], read["add_space_prefix"]) == ("llama", True, True)
    assert "token_merges" not in read
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert read["token_types"][:4] == kinds
    score = dict(zip(read["token_list"], read["token_scores"], strict=True))
    merged = [token for token in score if len(token) > 1 and not token.startswith("<")]
    assert sorted(merged, key=score.get, reverse=True)[0] == merged[0]
    assert min(score.values()) < score[merged[-1]] < score[merged[0]] == 0


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.ByteLevel(add_prefix_space=True)],
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    ],
)
def test_other_ways_to_split_are_refused_with_one_line(steps, word_tokenizer):
    for tokenizer in (byte_tokenizer(steps), word_tokenizer()):
        refused(read_tokenizer, tokenizer, 300)
