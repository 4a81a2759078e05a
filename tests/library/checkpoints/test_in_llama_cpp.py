"""GGUF files in llama.cpp itself: the log-probabilities of our own forward, the tokens of transformers' tokenizers."""

import json

import pytest
import torch
from gguf_files import TEXTS, ask_llama_cpp, ask_llama_cpp_of, byte_tokenizer, piece_tokenizer
from models import TinyCase
from tiny_models import losses_at_once
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from intraslice.__main__ import main
from intraslice.calibration.driver import calibrate
from intraslice.checkpoints import gguf_tokenizer
from intraslice.checkpoints.format import load
from intraslice.checkpoints.gguf_tokenizer import PRE_TOKENIZERS
from intraslice.checkpoints.to_gguf import rounded_model, write_gguf
from intraslice.core.config import SHAPES, CalibrationConfig, EvaluationConfig
from intraslice.modeling.attention import SlicedAttention
from intraslice.modeling.families import canonicalise
from intraslice.modeling.mlp import SlicedMLP
from intraslice.slicing.attention import cut_queries_and_keys
from intraslice.slicing.mlp import select_neurons
from intraslice.token_windows import calibration_tokens, evaluation_tokens

pytest.importorskip("xllamacpp", reason="llama.cpp is not installed")

PROMPTS = [[5, 9, 77, 31, 5], [100], [200, 12, 12, 40, 3, 17]]
QUESTIONS = [
    "The capital of France is",
    "def fibonacci(n):",
    "In 2024, 17 researchers 🙂 from 北京",
    "Once upon a time there was a little",
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
]
STEPS, TOP = 2, 20  # windows of attention are of 8 tokens


def _written(model, tokenizer, file, kind="f32"):
    write_gguf(model, tokenizer, file, kind, progress=False)
    return file


@torch.no_grad()
def _require_all_alike(models, prompts=PROMPTS, steps=STEPS):
    """Of each file, the greedy tokens, and the greatest log-probabilities at each of them, are its model's.

    `models` has the model of each file and the tolerance.
    """
    questions = [{"prompt": prompt, "predict": steps, "top": TOP} for prompt in prompts]
    answers = ask_llama_cpp_of(*((file, {"logprobs": questions}) for file in models))
    for (file, (model, tolerance)), told in zip(models.items(), answers, strict=True):
        for prompt, by_step in zip(prompts, told["logprobs"], strict=True):
            tokens = list(prompt)
            for answer in by_step:
                own = model(torch.tensor([tokens])).logits[0, -1].log_softmax(-1)
                best = own.topk(TOP // 2).indices.tolist()
                for token in best:
                    assert answer[str(token)] == pytest.approx(float(own[token]), abs=tolerance), file.name
                tokens.append(best[0])


def _require_alike(model, file, tolerance=2e-3, prompts=PROMPTS, steps=STEPS):
    _require_all_alike({file: (model, tolerance)}, prompts, steps)


def test_a_slice_of_every_family_answers_as_ours(tiny_case, tmp_path):
    models = {}
    names = ("llama-mha", "llama-gqa", "llama-biased", "llama-3.2", "phi3", "phi-4-mini", "mistral", "qwen2")
    for name, shapes in [*((name, "free") for name in names), ("llama-biased", "runtime")]:
        model = tiny_case(name).sliced(bias=0.7, shapes=shapes)
        models[_written(model, byte_tokenizer(), tmp_path / f"{name}-{shapes}.gguf")] = model, 2e-3
    _require_all_alike(models)


def _ragged(model):
    """Layer 0 has groups of 3, 1 and 2 queries with other pairs in each; every layer has another scale."""
    canonicalise(model)
    scores = torch.ones(3, 3, 2, 4)  # groups, their queries, and both channels of each pair
    for group, dropped in enumerate((1, 0, 2)):
        scores[group, ..., dropped] = 0.0
    weights = model.model.layers[0].self_attn.weights()
    cut = cut_queries_and_keys(weights, scores.view(9, 8), [0, 1, 2, 4, 6, 8], 6)
    model.model.layers[0].self_attn = SlicedAttention(cut, 0)
    for layer, scale in zip(model.model.layers, (0.6, 0.2, 0.35), strict=True):
        layer.self_attn.scale = scale
    return model


@torch.no_grad()
def test_ragged_groups_dropped_pairs_and_other_scales_in_every_type(tiny_llama_gqa, tmp_path):
    """But for llama.cpp's activations, which it rounds to 8 bits; without rounding q4_0 is off by 0.1 to 0.3."""
    model, models = _ragged(tiny_llama_gqa()), {}
    for kind, tolerance in {"f32": 2e-3, "f16": 0.02, "q8_0": 0.06, "q5_0": 0.06, "q4_0": 0.06}.items():
        file = _written(model, byte_tokenizer(), tmp_path / f"{kind}.gguf", kind)
        models[file] = rounded_model(model, kind, progress=False), tolerance
    _require_all_alike(models)
    windows = torch.randint(0, 250, (2, 16), generator=torch.Generator().manual_seed(0))
    scores = ask_llama_cpp(file, scores=windows.tolist())["scores"]
    torch.testing.assert_close(losses_at_once(models[file][0], windows), -torch.tensor(scores), rtol=0, atol=0.04)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_modules_may_be_gone(tiny_llama_gqa, tmp_path):
    """The first layer's heads are written all the same, as zeros."""
    models = {}
    for layer in range(3):
        for kind in ("attention", "mlp"):
            model = tiny_llama_gqa()
            canonicalise(model)
            attention, mlp = model.model.layers[layer].self_attn, model.model.layers[layer].mlp.weights()
            if kind == "attention":
                attention.o_proj.weight.zero_()
                attention.heads = 0 if layer else 9
            else:
                none = torch.zeros(0, dtype=torch.long)
                model.model.layers[layer].mlp = SlicedMLP(select_neurons(mlp, none, mlp.down[:, none], None))
            models[_written(model, byte_tokenizer(), tmp_path / f"{kind}-{layer}.gguf")] = model, 2e-3
            attention.heads = 9
    _require_all_alike(models)


def _tiny(rows: int):
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=True, **shape)).requires_grad_(False)
    canonicalise(model)
    return model


def _require_same_tokens(tokenizers, folder):
    files = []
    for number, tokenizer in enumerate(tokenizers):
        rows = max(tokenizer.get_vocab().values()) + 3  # some models have more rows than tokens
        files.append((_written(_tiny(rows), tokenizer, folder / f"{number}.gguf", "f16"), {"tokens": TEXTS}))
    for tokenizer, answer in zip(tokenizers, ask_llama_cpp_of(*files), strict=True):
        assert answer["tokens"] == [tokenizer(text).input_ids for text in TEXTS], tokenizer


def _steps(names):
    for name in names:
        if name == gguf_tokenizer.DIGITS:
            yield pre_tokenizers.Digits(individual_digits=True)
        elif name == gguf_tokenizer.GPT2:
            yield pre_tokenizers.ByteLevel(add_prefix_space=False)
        else:
            yield pre_tokenizers.Split(Regex(name), "isolated")
            yield pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def test_byte_level_tokens_are_those_of_transformers(default_model, tmp_path):
    made = [byte_tokenizer(list(_steps(names)), rows=1000, ignore_merges=whole) for names, whole in PRE_TOKENIZERS]
    _require_same_tokens([*made, default_model.tokenizer], tmp_path)


def test_sentencepiece_tokens_are_those_of_transformers(tmp_path):
    """Also with the steps that tokenizer.json of Llama 2 and Phi-3 has."""
    own = piece_tokenizer()
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    described = json.loads(own.backend_tokenizer.to_str()) | {
        "pre_tokenizer": None,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]},
    }
    backend = Tokenizer.from_str(json.dumps(described))
    prepended = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="<unk>")
    _require_same_tokens([own, prepended], tmp_path)


@pytest.mark.usefixtures("own_cache")
def test_the_command_line_exports_what_it_sliced(tiny_llama_gqa, tmp_path, capsys):
    tiny_llama_gqa().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("\n\n".join("it's 12345 things and Hello world" for _ in range(40)))
    text = str(tmp_path / "text.txt")
    words = ["--calibration", text, "--eval", text, "--sequences", "8", "--length", "24", "--device", "cpu", "--json"]
    places = ["--out", str(tmp_path / "sliced"), "--gguf", str(tmp_path / "one.gguf"), "--type", "f32"]
    assert main(["slice", "--model", str(tmp_path / "tiny"), *words, "--dtype", "float32", *places]) == 0
    told = json.loads(capsys.readouterr().out)
    again = ["--model", str(tmp_path / "sliced"), "--gguf", str(tmp_path / "two.gguf"), "--type", "f32", "--json"]
    assert main(["export", *again]) == 0
    assert json.loads(capsys.readouterr().out)["gguf"] == told["gguf"] | {"file": str(tmp_path / "two.gguf")}
    assert (tmp_path / "two.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
    _require_alike(load(tmp_path / "sliced")[0], tmp_path / "one.gguf")


@pytest.fixture(scope="module")
def case(default_model) -> TinyCase:
    """The default model, calibrated; not tiny."""
    tokens = calibration_tokens(default_model.tokenizer, CalibrationConfig())
    return TinyCase("default", None, default_model, tokens, calibrate(default_model, tokens, progress=False))


@pytest.mark.slow
@pytest.mark.parametrize("shapes", SHAPES)
def test_the_default_model_sliced_answers_as_ours(shapes, case, tmp_path):
    """Greedy tokens, log-probabilities and perplexity; for a runtime, the file is smaller by what was removed."""
    plan, tokenizer = case.plan(0.3, shapes=shapes), case.loaded.tokenizer
    model = case.cut(plan)
    exact, small = (_written(model, tokenizer, tmp_path / f"{kind}.gguf", kind) for kind in ("f32", "q8_0"))
    _require_alike(model, exact, 0.02, tokenizer(QUESTIONS).input_ids, steps=32)
    windows = evaluation_tokens(tokenizer, EvaluationConfig(tokens=2048, window=256))[::2]
    own = losses_at_once(model, windows).mean()
    for file, tolerance in ((exact, 0.005), (small, 0.02)):
        scores = ask_llama_cpp(file, scores=windows.tolist())["scores"]
        assert (-torch.tensor(scores).mean() - own).exp() == pytest.approx(1, abs=tolerance)
    if shapes == "runtime":
        whole = _written(case.dense, tokenizer, tmp_path / "dense.gguf")
        removed = plan.parameters.dense_total - plan.parameters.sliced_total
        assert whole.stat().st_size - exact.stat().st_size == pytest.approx(4 * removed, rel=0.01)
