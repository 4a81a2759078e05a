"""Values that the public functions refuse at once, with one line that says what was expected."""

from __future__ import annotations

import pytest
import torch

import intraslice
from intraslice import UserError
from intraslice.checkpoints.to_gguf import write_gguf


@pytest.mark.parametrize(
    ("tokens", "received"),
    [
        (torch.zeros(0, 8, dtype=torch.long), r"got shape \(0, 8\) of torch.int64"),
        (torch.zeros(8, dtype=torch.long), r"got shape \(8,\)"),
        (torch.zeros(2, 1, dtype=torch.long), r"got shape \(2, 1\)"),
        (torch.zeros(2, 8), "of torch.float32"),
        ([[1, 2]], "got list"),
        (torch.zeros(1, 513, dtype=torch.long), "length must be at most 512.*got 513"),
    ],
)
def test_tokens_without_windows_that_fit_the_model(tiny_case, tokens, received):
    model = tiny_case("llama-gqa").loaded.model
    for call in (
        lambda: intraslice.perplexity(model, tokens),
        lambda: intraslice.evaluate(model, model, tokens),
        lambda: intraslice.recover(model, model, tokens),
    ):
        with pytest.raises(UserError, match=received):
            call()


@pytest.mark.parametrize("epochs", [-1, 0.5])
def test_epochs_of_a_recovery(tiny_case, epochs):
    case = tiny_case("llama-gqa")
    with pytest.raises(UserError, match="epochs must be a whole number from 0"):
        intraslice.recover(case.loaded.model, case.loaded.model, case.tokens, epochs=epochs)


@pytest.mark.parametrize("dtype", [torch.float16, "float16", "int8"])
def test_another_precision(dtype):
    with pytest.raises(UserError, match="dtype must be one of auto, float32, bfloat16, got"):
        intraslice.load_model("default", dtype)


def test_an_unknown_gguf_type(tiny_case, tmp_path):
    loaded = tiny_case("llama-gqa").loaded
    with pytest.raises(UserError, match="the GGUF type must be one of f32, f16, q8_0, q5_0, q4_0, got 'q2_k'"):
        write_gguf(loaded.model, loaded.tokenizer, tmp_path / "model.gguf", "q2_k")


def test_a_loaded_model_in_place_of_its_model_and_the_other_way_round(tiny_case, tmp_path):
    case = tiny_case("llama-gqa")
    loaded, model = case.loaded, case.loaded.model
    plan = intraslice.make_plan(case.stats.profile, intraslice.SliceConfig(sparsity=0.3))
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
        with pytest.raises(
            UserError, match="expected a transformers model, got LoadedModel; of a LoadedModel pass its"
        ):
            call()
    with pytest.raises(UserError, match=r"expected a LoadedModel, got .*; make one with `prepare_model"):
        intraslice.calibrate(model, case.tokens)
