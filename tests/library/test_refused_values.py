"""Values that the library, the command line and the page refuse at once, in one line that says what they must be."""

import re
from functools import partial
from math import inf, nan
from typing import Any

import jaxtyping
import pytest
import torch
from refused_values import REFUSED as NO_SETTINGS
from refusing import refused

import intraslice
from components.i18n.language import translate, use_language
from components.state.request import parse
from components.state.settings import CONTROLS, Settings
from intraslice import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.__main__ import main
from intraslice.checkpoints.to_gguf import write_gguf
from intraslice.core.checks import quoted
from intraslice.core.config import parse_lock
from intraslice.core.registry import ESTIMATORS
from intraslice.diagnostics.ablation import ablated_model
from intraslice.diagnostics.sensitivity import require_ratio
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.evaluation.generation import Sampling, generate_text
from intraslice.evaluation.speed import SpeedConfig
from intraslice.evaluation.tasks import TasksConfig
from intraslice.methods.crossmodule import plan_crossmodule
from intraslice.methods.registry import plan_by
from intraslice.pretrained.precision import choose_dtype
from intraslice.search.evolution import SearchConfig

SPARSITY = "a number from 0 to 0.8 (a fraction of the decoder layers' parameters, such as 0.3)"
CAP = "a number from 0 to 1 (1 allows removing a whole module)"
LARGEST = "2,147,483,647"
POSITIVE, COUNT = f"a whole number from 1 to {LARGEST}", f"a whole number from 0 to {LARGEST}"
MULTIPLES = "free, runtime, cpu, cuda, llama.cpp, or multiples from 1 to 4,096 such as mlp=64 dim=8 (dim even)"
# A config's field, values that it refuses, and what it must be.
REFUSED: list[tuple[Any, str, list[Any], str]] = [
    (SliceConfig, "sparsity", [1.5, -0.1, nan, True, "0.3"], SPARSITY),
    (SliceConfig, "bias", [0.0, inf], "a number from 0.2 to 2"),
    (SliceConfig, "cap", [1.1, -0.1, 10**400], CAP),
    (SliceConfig, "estimator", ["magnitude", ["pca"]], f"one of {', '.join(ESTIMATORS)}"),
    (SliceConfig, "order", ["parallel", 1], "one of sequential, one-shot"),
    (SliceConfig, "shapes", ["square", 1, "mlp=64 mlp=64", "dim=7", "dim=-8"], MULTIPLES),
    (SliceConfig, "shapes", ["mlp", "mlp=0", "mlp=5000", "width=8", ""], MULTIPLES),
    (SliceConfig, "recovery", ["magic"], "one of none, distill, distill-own"),
    (SliceConfig, "head_fraction", [0.0, 1.5], "a number from 0.001 to 1 (1 is a whole head)"),
    (SliceConfig, "gradient_group", [0], POSITIVE),
    (SliceConfig, "epochs", [False, -1, 0.5], COUNT),
    (CalibrationConfig, "text", [4], "the name of a text or of a file"),
    (CalibrationConfig, "sequences", [0, 2**31], POSITIVE),
    (CalibrationConfig, "samples", [-1], COUNT),
    (CalibrationConfig, "length", [1], f"a whole number from 2 to {LARGEST}"),
    (CalibrationConfig, "seed", [-1, 1.5], COUNT),
    (CalibrationConfig, "targets", ["labels"], "one of sampled, text"),
    (EvaluationConfig, "window", [1], f"a whole number from 2 to {LARGEST}"),
    (EvaluationConfig, "tokens", [511], f"a whole number from 512 to {LARGEST}"),
    (Sampling, "max_new_tokens", [0], POSITIVE),
    (Sampling, "temperature", [-1.0, nan, inf], "a number of at least 0"),
    (SearchConfig, "passes", [-1, 10**7], "a number from 0 to 1,000,000"),
    *(
        (SearchConfig, name, [0, 1001], "a whole number from 1 to 1,000")
        for name in ("children", "survivors", "windows")
    ),
    *((SpeedConfig, name, [0], POSITIVE) for name in ("prompt", "new", "repeats", "batch")),
    *((partial(TasksConfig, ("task",)), name, [0, 0.5], POSITIVE) for name in ("limit", "batch")),
    (partial(TasksConfig, ("task",)), "shots", [-1], COUNT),
]
OPTIONS = ("sparsity", "bias", "cap", "head_fraction", "gradient_group", "epochs", "sequences", "samples", "seed")


@pytest.mark.parametrize(("config", "field", "values", "expected"), REFUSED)
def test_a_config_refuses_a_value_in_one_line(config, field, values, expected, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # a user has no type checker before our own check
    for value in values:
        assert refused(config, **{field: value}) == f"{field} must be {expected}, got {quoted(value)}"


@pytest.mark.parametrize(("config", "field", "values", "expected"), [row for row in REFUSED if row[1] in OPTIONS])
def test_the_command_line_refuses_it_in_the_same_words(config, field, values, expected, capsys, monkeypatch):
    monkeypatch.setattr("intraslice.pipeline.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    for value in values:
        if type(value) is (int if expected in (POSITIVE, COUNT) else float):  # others are refused by argparse
            assert main(["evaluate", f"--{field.replace('_', '-')}={value}"]) == 2
            assert capsys.readouterr().err == f"python -m intraslice: {field} must be {expected}, got {value!r}\n"


@pytest.mark.parametrize("field", [name for name in CONTROLS if name != "upload"])
def test_the_page_refuses_what_is_no_setting_in_the_clients_language(field):
    for value in NO_SETTINGS[field]:
        message = refused(parse, Settings()._replace(**{field: value}))
        assert re.search("must be|may have|contains", message)
        with use_language("de"):
            assert re.search(r": (erwartet wird|höchstens|enthält) |muss eine Hub-ID sein", translate(message))
        assert len(message) < 500


HEAD = (0, "attention", "head", 1)
ONE_LOCK = "expected at most one ratio or number of neurons, and one lock a head"
LOCKS = "expected layer, module and percentage, as in 7 mlp 25, or a"
NO_LOCKS = ("1 mlp much", "1 attention head 5", "1 mlp head 5 keep", "x mlp neurons 5", "1 mlp")


def locking(*locks: tuple) -> partial:
    return partial(SliceConfig, locked=locks)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(SliceConfig, 0.6, cap=0.5), "sparsity must be at most the cap, 50%, got 60%"),
        *(
            (partial(SliceConfig, locked=wrong), "locked must have a layer, a module")
            for wrong in (None, 7, ((0, "mlp"),), "a", ((0, "mlp", "head", 1, "keep"),), ((0, "mlp", "neurons", 1, 2),))
        ),
        (locking((-1, "mlp", 0.2)), f"a locked layer must be {COUNT}, got -1"),
        (locking((0, "head", 0.2)), "a locked module must be one of attention, mlp, got 'head'"),
        (locking((0, "mlp", 2)), "the locked ratio of layer 0's mlp must be a number from 0 to 1"),
        (locking((0, "mlp", 0.1), (0, "mlp", 0.2)), "a module is locked twice"),
        (locking((*HEAD, "stay")), "its lock must be one of keep, remove, got"),
        (locking((0, "mlp", "neurons", 1.5)), "the locked number of neurons must be a whole number"),
        (locking((*HEAD, "keep"), (*HEAD, "remove")), f"a module is locked twice; {ONE_LOCK}"),
        (partial(TasksConfig, ()), "--tasks must name at least one task"),
        *((partial(choose_dtype, wrong), "dtype must be one of auto,") for wrong in (torch.float16, "int8", None)),
        *((partial(require_ratio, wrong), "ratio must be above 0 and at most 0.95") for wrong in (0, -0.1, 0.96, nan)),
        *((partial(parse_lock, wrong), f"'{wrong}' is not a locked ratio; {LOCKS}") for wrong in NO_LOCKS),
        (partial(parse_lock, "1 head 5"), "a locked module must be one of attention, mlp, got 'head'"),
        (partial(parse_lock, "1 mlp 150"), "the percentage of “1 mlp” must be a number from 0 to 100, got 150"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(call, message):
    assert refused(call).startswith(message)


def test_values_that_a_model_cannot_have(case, tmp_path):
    model, tokenizer, tokens = case.dense, case.loaded.tokenizer, case.tokens
    whole = tuple((layer, "mlp", 0.0) for layer in range(3))
    for call, message in (
        (partial(write_gguf, model, tokenizer, tmp_path / "a.gguf", "q2_k"), "the GGUF type must be one of f32, f16"),
        (partial(intraslice.recover, model, model, tokens, epochs=0.5), "epochs must be a whole number from 0"),
        (partial(intraslice.recover, model, model, tokens, "magic"), "recovery must be one of distill, distill-own,"),
        (partial(intraslice.calibrate, case.loaded, tokens, "Sampled"), "targets must be one of sampled, text"),
        (partial(ablated_model, model, "reads", 0, tokens), "width must be a whole number from 1 to"),
        (partial(ablated_model, model, "nothing", 4, tokens), "ablation must be one of"),
        *((partial(score_passage, model, model, tokenizer, "w7 " * n), "expected 2 to 512") for n in (0, 1, 513)),
        (partial(compare_next_tokens, model, model, tokenizer, ""), "no tokens"),
        (partial(compare_next_tokens, model, model, tokenizer, "w7 " * 513), "513 tokens; expected at most 512"),
        (partial(next, generate_text(model, tokenizer, "  ")), "the prompt is empty; expected some text"),
        (partial(next, generate_text(model, tokenizer, "w7 " * 512)), "512 tokens; expected at most 511"),
        (partial(plan_by, "wanda", model, case.stats, SliceConfig(), 0.25), "does not slice the residual stream"),
        (partial(case.plan, method="wanda", locked=((*HEAD, "keep"),)), "wanda has no locks of heads or neurons"),
        (partial(case.plan, 0.5, "modegpt", locked=whole), "the sparsity cannot be reached"),
        (partial(plan_crossmodule, model), "expected either sparsity or slicing"),
        (partial(plan_crossmodule, model, sparsity=0.2, slicing=0.2), "expected either sparsity or slicing"),
    ):
        assert message in refused(call)


@pytest.mark.parametrize(
    ("tokens", "received"),
    [
        (torch.zeros(0, 8, dtype=torch.long), "got shape (0, 8) of torch.int64"),
        (torch.zeros(8, dtype=torch.long), "got shape (8,)"),
        (torch.zeros(2, 1, dtype=torch.long), "got shape (2, 1)"),
        (torch.zeros(2, 8), "of torch.float32"),
        (torch.zeros(2, 8, dtype=torch.int32), "of torch.int32"),
        ([[1, 2]], "got list"),
        (torch.full((2, 8), -1), "tokens must be from 0 to"),
        (torch.full((2, 8), 10**6), "tokens must be from 0 to"),
        (torch.zeros(1, 513, dtype=torch.long), "must be at most 512, the model's maximum context length, got 513"),
    ],
)
def test_tokens_without_windows_that_fit_the_model(case, tokens, received):
    model = case.dense
    for call, models in ((intraslice.perplexity, 1), (intraslice.evaluate, 2), (intraslice.recover, 2)):
        assert received in refused(call, *[model] * models, tokens)
    assert received in refused(intraslice.calibrate, case.loaded, tokens)


def test_a_loaded_model_in_place_of_its_model_and_the_other_way_round(case, tmp_path):
    loaded, model = case.loaded, case.dense
    plan = case.plan(0.3, order="sequential")
    for call in (
        lambda: intraslice.plan_by("intraslice", loaded, case.stats, plan.config),
        lambda: intraslice.slice_model(loaded, plan, case.stats, case.tokens),
        lambda: intraslice.perplexity(loaded, case.tokens),
        lambda: intraslice.evaluate(model, loaded, case.tokens),
        lambda: intraslice.recover(model, loaded, case.tokens),
        lambda: next(intraslice.generate_text(loaded, loaded.tokenizer, "w4")),
        lambda: intraslice.plain_model(loaded),
        lambda: intraslice.save(loaded, loaded.tokenizer, tmp_path / "saved", {}),
    ):
        assert "expected a transformers model, got LoadedModel; of a LoadedModel pass its" in refused(call)
    message = refused(intraslice.calibrate, model, case.tokens)
    assert re.search("expected a LoadedModel, got .*; make one with `prepare_model", message)
