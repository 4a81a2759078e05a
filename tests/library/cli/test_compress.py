"""`intraslice.compress` on tiny models: the command line's numbers, an untouched input, and every way out."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from gguf_files import byte_tokenizer
from huggingface_hub import RepoUrl
from refusing import refused
from stopping import Stopped, stop_when
from tiny_models import FAMILIES
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import intraslice
from intraslice import CalibrationConfig, EvaluationConfig, SliceConfig, api, compress, load_model, pipeline
from intraslice.__main__ import main
from intraslice.cli.parser import parser
from intraslice.cli.run import Run, recipe_of
from intraslice.core.progress import Progress
from intraslice.evaluation.generation import generate_text
from intraslice.search.choice import CANDIDATES
from intraslice.token_windows import calibration_tokens

PROMPT = "w20 w30 w40 w50"


@pytest.fixture(scope="module")
def result(template, options) -> api.CompressedModel:
    """Shared by the module: do not change it."""
    return compress(template / "tiny", 0.3, **options)


def original(home: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(home / "tiny", dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize(
    "more",
    [
        {"order": "one-shot"},
        {"estimator": "fisher"},
        {"method": "crossmodule"},
        {"order": "one-shot", "recovery": "distill"},
        {"order": "one-shot", "samples": 3},
    ],
)
def test_the_numbers_are_the_command_lines(home, texts, more, run):
    words = " ".join(f"--{name}={value}" for name, value in more.items()).replace("recovery", "recover")
    expected = run(f"evaluate --sparsity 0.3 {words}")
    arguments = {"dtype": torch.float32, "device": "cpu"} | texts | more
    arguments["calibration"] = replace(texts["calibration"], samples=arguments.pop("samples", 0))
    compressed = compress("tiny", 0.3, **arguments)
    found = compressed.evaluate(progress=False)
    assert expected["perplexity"] == {"dense": found.dense_perplexity.value, "sliced": found.perplexity.value}
    errors = {"dense": found.dense_perplexity.standard_error, "sliced": found.perplexity.standard_error}
    assert expected["perplexity_error"] == errors
    assert expected["perplexity_ratio"] == found.perplexity_ratio._asdict()
    assert expected["divergence"] == found.divergence._asdict()
    assert expected["removed_fraction"] == compressed.removed_fraction
    assert expected["parameters"] == compressed.parameters
    assert compressed.loaded.fingerprint == intraslice.loading.fingerprint(compressed.model)  # not the dense model's
    shown = [float(number) for number in re.findall(r"[\d.]+(?= ±)", str(found))]
    values = [*expected["perplexity"].values(), found.perplexity_ratio.value, found.divergence.value]
    assert shown == pytest.approx(values, abs=0.005)


def test_a_size_is_met_alike_on_the_command_line(home, options, run):
    result = run("slice --out sliced --order one-shot --size 350kB --context 40")
    compressed = compress("tiny", size="350 kB", context=40, **options)
    written = (home / "sliced/model.safetensors").stat().st_size
    assert 0.95 * 350e3 <= written + 40 * result["kv_bytes_per_token"]["sliced"] <= 350e3
    assert result["ratios"] == compressed.record["ratios"]
    assert result["sparsity_asked"] == compressed.recipe.slicing.sparsity > 0
    for words, size in (("--size 2MB", "2MB q8_0"), ("--size 2 MB f16", "2 MB f16")):
        assert Run(parser().parse_args(["slice", "--gguf", "s.gguf", "--type", "q8_0", *words.split()])).size == size
    assert "context counts towards a size" in refused(compress, "tiny", context=40, **options)
    message = refused(compress, "tiny", size="350 kB", **options, method="crossmodule")
    assert "a size cannot be the target of method crossmodule" in message


def test_the_defaults_are_the_command_lines_and_an_option_without_a_use_is_named(monkeypatch, caplog):
    monkeypatch.setattr(api.Pipeline, "load_dense", lambda pipeline: None)
    monkeypatch.setattr(api, "compress_loaded", lambda pipeline, loaded: pipeline)
    pipeline, arguments = compress("default"), parser().parse_args(["evaluate"])
    assert pipeline.recipe == recipe_of(arguments)
    sizes = {"": (32, 0), "--budget thorough": (128, 16), "--budget thorough --samples 4": (128, 4)}
    sizes |= {"--budget thorough --sequences 9 --length 64": (9, 16), "--budget quick": (32, 0)}
    for words, expected in sizes.items():
        calibration = recipe_of(parser().parse_args(["evaluate", *words.split()])).calibration
        assert (calibration.sequences, calibration.samples) == expected
    slicing = {"order": "one-shot", "cap": 0.5}
    assert compress("default", 0.2, **slicing).recipe.slicing == SliceConfig(0.2, **slicing)
    compress("default", method="wanda", estimator="fisher", order="one-shot", bias=1.3)
    assert caplog.messages == ["estimator, order ignored: not used by method wanda"]


def test_auto_is_the_estimator_that_it_chooses_on_unread_text(home, words, options, run, capsys, monkeypatch):
    monkeypatch.setattr(pipeline, "choose_estimator", choose := Mock(wraps=pipeline.choose_estimator))
    chosen = compress("tiny", 0.4, **options)  # as by default
    name = chosen.record["requested"]["estimator"]
    assert name == chosen.plan.config.estimator == chosen.recipe.slicing.estimator
    assert name in CANDIDATES
    assert chosen.plan == compress("tiny", 0.4, estimator=name, **options).plan
    assert main(["ratios", *words, "--sparsity", "0.4", "--json"]) == 0
    output, messages = capsys.readouterr()
    assert json.loads(output)["estimator"] == name
    assert f"\nestimator: {name}; KL at 30 % with " in messages
    assert run(f"ratios --sparsity 0.4 --estimator {name}")["ratios"] == chosen.record["ratios"]
    read = calibration_tokens(chosen.tokenizer, options["calibration"], str(options["evaluation"].text))
    windows = (choose.call_args_list[0].args[2], read, chosen.recipe.windows(chosen.tokenizer))
    rows, *others = ({*map(tuple, part.tolist())} for part in windows)
    assert choose.call_count == 2
    assert rows
    assert not rows & (others[0] | others[1])
    assert "estimator must be one of" in refused(SliceConfig, estimator="auto")
    lines = {"evaluate": True, "evaluate --ratios fixed.csv": False, "evaluate --estimator pca": False, "sweep": False}
    (home / "fixed.csv").write_text("layer,attention_ratio,mlp_ratio\n0,0.1,0.2\n")
    monkeypatch.chdir(home)
    assert {line: Run(parser().parse_args(line.split())).is_auto for line in lines} == lines


def test_a_loaded_model_gives_the_same_slice_and_stays_as_it_is(home, texts, result):
    model, tokenizer = original(home).train(), AutoTokenizer.from_pretrained(home / "tiny")
    calls: list[int] = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    model.model.embed_tokens.register_forward_pre_hook(lambda *_: calls.append(1))
    before, structure, said = copy.deepcopy(model.state_dict()), str(model), model.config.to_dict()
    padding, parameters = tokenizer.padding_side, {id(p): p.requires_grad for p in model.parameters()}
    other = compress(model, 0.3, tokenizer=tokenizer, order="one-shot", **texts)
    assert other.evaluate(progress=False) == result.evaluate(progress=False)
    assert other.plan == result.plan
    assert calls == []
    assert_close(model.state_dict(), before, atol=0, rtol=0)
    assert (str(model), model.config.to_dict(), model.training) == (structure, said, True)
    assert model.config._attn_implementation == "eager"
    assert {id(p): p.requires_grad for p in model.parameters()} == parameters == dict.fromkeys(parameters, True)
    assert tokenizer.padding_side == padding
    model(torch.tensor([[20, 30]])).logits.sum().backward()  # it can still be trained
    assert calls == [1, 1]


def test_a_prepared_model_computes_what_the_original_does(family_case):
    original = FAMILIES[family_case.name]()  # of its own: saving the shared one notes a dtype in its config
    prepared = intraslice.prepare_model(original, family_case.loaded.tokenizer)
    tokens = family_case.tokens[:2]
    assert_close(prepared.model(tokens).logits, original(tokens).logits, atol=1e-4, rtol=1e-4)
    assert prepared.fingerprint == family_case.loaded.fingerprint
    weights = prepared.model.get_input_embeddings().weight, original.get_input_embeddings().weight
    assert weights[0].data_ptr() == weights[1].data_ptr()


def test_several_sparsities_share_a_loaded_model(home, texts, result):
    loaded = load_model(str(home / "tiny"))
    some = [compress(loaded, sparsity, order="one-shot", **texts) for sparsity in (0.2, 0.3)]
    assert some[0].dense is some[1].dense is loaded
    assert some[0].removed_fraction < some[1].removed_fraction == result.removed_fraction
    assert some[1].evaluate(progress=False) == result.evaluate(progress=False)


def test_what_cannot_be_compressed_is_refused(home, result):
    model, tokenizer = original(home), AutoTokenizer.from_pretrained("tiny")
    result.save_pretrained("sliced")
    cases: dict[str, tuple[Any, dict]] = {
        "needs its tokenizer": (model, {}),
        "is for a loaded model": ("default", {"tokenizer": tokenizer}),
        "dtype controls loading": (model, {"tokenizer": tokenizer, "dtype": "float32"}),
        "got torch.float16": (original(home).half(), {"tokenizer": tokenizer}),
        "was converted or sliced before": (result.model, {"tokenizer": tokenizer}),
        "is sliced already": ("sliced", {}),
        "dtype must be one of auto, float32, bfloat16, got 'float64'": ("default", {"dtype": torch.float64}),
        "method must be one of intraslice, .*, got 'none'": ("tiny", {"method": "none"}),
        "svd was removed; use modegpt": ("tiny", {"method": "svd"}),
        "estimator must be one of pca, .* or path.json, got 'none'": ("tiny", {"estimator": "none"}),
        "none.py cannot be read": ("tiny", {"estimator": "none.py:heads"}),
        "sparsity": ("tiny", {"sparsity": 0.9}),
    }
    for words, (what, more) in cases.items():
        assert re.search(words, refused(compress, what, progress=False, **more))
    with pytest.raises(TypeError, match=r"no option 'sequences'.* calibration=CalibrationConfig\(...\)"):
        compress("default", sequences=4)


def test_progress_goes_to_the_callback_which_can_cancel(home, options):
    def run(progress) -> api.CompressedModel:
        return compress(home / "tiny", 0.4, **options | {"progress": progress})

    events: list[Progress] = []
    run(events.append).evaluate(progress=events.append)
    ended = [event.stage for event in events if event.done == event.total]
    assert ended[-3:] == ["slice", "perplexity dense", "perplexity sliced"]
    with pytest.raises(Stopped):
        run(stop_when(lambda event: event.stage == "slice"))


def test_it_answers_as_the_streamed_text_does_prints_its_sizes_and_draws_a_bar_for_each_module(result):
    expected = "".join(generate_text(result.model, result.tokenizer, PROMPT, 12))
    assert result.generate(PROMPT, max_new_tokens=12) == expected
    drawn = [result.generate(PROMPT, 12, temperature=3.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    text = str(result)
    assert text == repr(result)
    assert "30.0% of the decoder layers' parameters" in text
    counts = result.parameters
    assert f"{counts['dense_total']:,} -> {counts['sliced_total']:,}" in text
    ratios = [(layer.attention_ratio, layer.mlp_ratio) for layer in result.plan.layers]
    rows = [line.split() for line in text.splitlines()[-len(ratios) :]]
    assert [(float(row[1]), float(row[2])) for row in rows] == [(round(a, 3), round(m, 3)) for a, m in ratios]
    cells = re.findall(r"([0-9.]+%)</td>", result._repr_html_())[-2 * len(ratios) :]
    assert cells == [f"{ratio:.1%}" for pair in ratios for ratio in pair]
    assert "<script" not in result._repr_html_()


def test_a_saved_folder_is_the_model_and_says_what_was_measured(result, tmp_path):
    evaluation = result.evaluate(progress=False)
    result.save_pretrained(tmp_path / "sliced")
    loaded = load_model(str(tmp_path / "sliced"))
    values = {"dense": evaluation.dense_perplexity.value, "sliced": evaluation.perplexity.value}
    assert loaded.record["perplexity"] == values
    assert f"{evaluation.perplexity.value:.2f}" in (tmp_path / "sliced" / "README.md").read_text()
    tokens = torch.arange(20, 44)[None]
    assert_close(loaded.model(tokens).logits, result.model(tokens).logits, atol=1e-5, rtol=1e-5)
    assert "exists and is not empty" in refused(result.save_pretrained, tmp_path / "sliced")


def test_a_gguf_file_comes_with_its_card(tiny_llama_gqa, tmp_path):
    text = str(tmp_path / "text.txt")
    Path(text).write_text("\n\n".join(["Hello world, it's 2024 and I'VE paid 3.50 for 12345 things."] * 60))
    own = {"calibration": CalibrationConfig(text, 4, 24), "evaluation": EvaluationConfig(text, 48, 24)}
    sliced = compress(tiny_llama_gqa(), 0.3, tokenizer=byte_tokenizer(), order="one-shot", progress=False, **own)
    report = sliced.to_gguf(tmp_path / "sliced.gguf", "f32", progress=False)
    assert (tmp_path / "sliced.gguf").stat().st_size == report.bytes
    card = (tmp_path / "sliced.md").read_text()
    assert [word for word in ("sliced.gguf", "context length", "KV cache") if word in card] == ["sliced.gguf"]
    for name, before, is_ours in (("again", card, True), ("mine", "by hand", False)):
        (tmp_path / f"{name}.md").write_text(before)
        sliced.to_gguf(tmp_path / f"{name}.gguf", "f32", progress=False)
        assert ((tmp_path / f"{name}.md").read_text() != before) == is_ours


def test_the_card_of_a_dense_models_file_names_the_model(tiny_llama_gqa, tmp_path):
    tiny_llama_gqa().save_pretrained(tmp_path / "tiny")
    byte_tokenizer().save_pretrained(tmp_path / "tiny")
    loaded = load_model(str(tmp_path / "tiny"))
    api.export_gguf(loaded, tmp_path / "dense.gguf", "f32", progress=False)
    card = (tmp_path / "dense.md").read_text()
    assert "`tiny`, written by IntraSlice." in card
    assert "all limits and biases of tiny" in card


def test_the_hub_gets_what_a_saved_folder_has(result, tmp_path, monkeypatch):
    def contents(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    made, uploaded = Mock(), []
    hub = made.return_value
    hub.create_repo.return_value = RepoUrl("https://huggingface.co/someone/sliced")
    hub.upload_folder.side_effect = lambda folder_path, **_: uploaded.append(contents(folder_path))
    monkeypatch.setattr(api, "HfApi", made)
    assert result.push_to_hub("sliced", private=True, token="secret") == "https://huggingface.co/someone/sliced"
    made.assert_called_once_with(token="secret")
    hub.create_repo.assert_called_once_with("sliced", private=True, exist_ok=True)
    assert hub.upload_folder.call_args.kwargs["repo_id"] == "someone/sliced"
    result.save_pretrained(tmp_path / "sliced")
    assert uploaded == [contents(tmp_path / "sliced")]


def test_a_cross_module_slice_has_no_ratios_and_a_method_without_an_order_none_to_show(home, texts):
    assert "sliced by wanda\n" in str(compress("tiny", 0.3, method="wanda", **texts))
    cross = compress(home / "tiny", 0.2, method="crossmodule", order="one-shot", **texts)
    assert "layer " not in str(cross)
    assert "MLP" not in cross._repr_html_()
    assert f"{cross.removed_fraction:.1%}" in str(cross)
