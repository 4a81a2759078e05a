"""The real phi-1_5 where a Hub answers: `HF_HUB_OFFLINE=0 python -m pytest -m hub`. It needs about 12 GB of memory."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from intraslice.calibration.driver import calibrate
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.evaluation.generation import generate_text
from intraslice.evaluation.perplexity import perplexity
from intraslice.loading import LoadedModel, load_model
from intraslice.planning.ratios import make_plan
from intraslice.pretrained.hub import hub_is_reachable
from intraslice.pretrained.sources import find_weights, obtain_weights
from intraslice.slicing.driver import slice_model
from intraslice.texts import calibration_tokens, evaluation_tokens

PHI = "microsoft/phi-1_5"

pytestmark = [pytest.mark.hub, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def phi() -> LoadedModel:
    if find_weights(PHI) is None and not hub_is_reachable():
        pytest.skip("phi-1_5 is not in the local cache and no Hub answers; HF_HUB_OFFLINE=0 lets it be asked")
    return load_model(PHI)


@torch.no_grad()
def test_full_rank_is_transformers_own_model(phi):
    tokens = phi.tokenizer("def fibonacci(n):\n    if n < 2:\n        return n", return_tensors="pt").input_ids
    own = AutoModelForCausalLM.from_pretrained(obtain_weights(PHI).folder, dtype=torch.float32)
    assert_close(phi.model(tokens).logits, own(tokens).logits, atol=1e-3, rtol=1e-4)


def test_a_fifth_less_still_speaks(phi):
    tokens = calibration_tokens(phi.tokenizer, CalibrationConfig(sequences=16, length=256))
    windows = evaluation_tokens(phi.tokenizer, EvaluationConfig(tokens=2048, window=256))
    stats = calibrate(phi, tokens, progress=False)
    values = {"dense": perplexity(phi.model, windows, progress=False)}
    for order in ("one-shot", "sequential"):
        plan = make_plan(stats.profile, SliceConfig(0.2, order=order))
        model = slice_model(phi.model, plan, stats, tokens, progress=False)
        decoder = sum(p.numel() for p in model.model.layers.parameters())
        assert 1 - decoder / plan.parameters.dense_decoder == pytest.approx(0.2, abs=0.01)
        values[order] = perplexity(model, windows, progress=False)
        assert "".join(generate_text(model, phi.tokenizer, "The capital of France is", 8)).strip()
    print(values)  # shown with -s
    assert values["dense"] < min(values["one-shot"], values["sequential"])
    assert max(values["one-shot"], values["sequential"]) < 2 * values["dense"]
