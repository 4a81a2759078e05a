"""A slice as the draft of its dense model: the answers are the dense model's, the counts those without any cache."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import PreTrainedModel

from intraslice.core.config import SliceConfig
from intraslice.core.errors import UserError
from intraslice.core.progress import Progress, finish
from intraslice.evaluation.generation import Sampling, stream_tokens
from intraslice.evaluation.speculative import Acceptance, DraftConfig, acceptance
from intraslice.planning.ratios import make_plan
from intraslice.slicing.driver import slice_model

PROMPTS = ["w7 w8 w9 w10", "w200 w31 w77", "w64 " * 140]  # the last is read in two pieces


@pytest.fixture(scope="module", params=["llama-gqa", "phi", "smollm3"])
def models(request, tiny_case):
    case = tiny_case(request.param)
    plan = make_plan(case.stats.profile, SliceConfig(0.1, order="one-shot"))
    return case.loaded, finish(slice_model(case.loaded.model, plan, case.stats))


@torch.no_grad()
def chosen(model: PreTrainedModel, tokens: list[int]) -> list[int]:
    """The likeliest token after each of these, by one forward."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].argmax(-1).tolist()


def counts_without_caches(dense, sliced, known: list[int], config: DraftConfig, end: int | None) -> tuple[int, ...]:
    """Tokens proposed, accepted, and passes of the dense model, for an answer to the tokens `known`."""
    most, proposed, accepted, passes = len(known) + config.new, 0, 0, 0
    known = [*known, chosen(dense, known)[-1]]
    while len(known) < most and known[-1] != end:
        draft = list(known)
        while len(draft) - len(known) < min(config.proposals, most - 1 - len(known)) and (
            draft == known or draft[-1] != end
        ):
            draft.append(chosen(sliced, draft)[-1])
        wanted, start = chosen(dense, draft), len(known)
        while len(known) < len(draft) and wanted[len(known) - 1] == draft[len(known)]:
            known.append(draft[len(known)])
        proposed, accepted, passes = proposed + len(draft) - start, accepted + len(known) - start, passes + 1
        if known[-1] != end:
            known.append(wanted[len(known) - 1])
    return proposed, accepted, passes


@pytest.mark.parametrize("proposals", [1, 4])
@pytest.mark.parametrize("ends", [False, True])
def test_answers_are_the_dense_models_and_counts_those_without_caches(models, proposals, ends, monkeypatch):
    loaded, sliced = models
    config, dense = DraftConfig(new=14, proposals=proposals), loaded.model
    monkeypatch.setattr(dense.generation_config, "eos_token_id", None)
    answers = [list(filter(None, stream_tokens(dense, loaded.tokenizer, prompt, Sampling(14)))) for prompt in PROMPTS]
    end = answers[0][6] if ends else None
    monkeypatch.setattr(dense.generation_config, "eos_token_id", end)
    expected = [
        counts_without_caches(dense, sliced, loaded.tokenizer(prompt).input_ids, config, end) for prompt in PROMPTS
    ]
    found = finish(acceptance(dense, sliced, loaded.tokenizer, PROMPTS, config))
    assert (found.proposed, found.accepted, found.dense_passes) == tuple(map(sum, zip(*expected, strict=True)))
    assert found.agreeing == found.prompts == 3
    assert 0 < found.accepted < found.proposed + ends
    assert found.rate == found.accepted / found.proposed
    assert found.speedup == found.dense_seconds / found.drafted_seconds > 0


@pytest.mark.parametrize("proposals", [1, 3, 64])
def test_the_same_model_accepts_everything(models, proposals, monkeypatch):
    loaded, _ = models
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", None)
    config = DraftConfig(new=13, proposals=proposals)
    found = finish(acceptance(loaded.model, loaded.model, loaded.tokenizer, PROMPTS, config))
    assert found.rate == 1
    assert found.agreeing == 3
    assert found.accepted + found.dense_passes + found.prompts == 3 * 13  # a token of the prompt's own pass, too
    assert found.dense_passes == 3 * -(-12 // (proposals + 1))


def test_time_between_steps_does_not_count(models, monkeypatch):
    loaded, sliced = models
    now = iter(range(1_000_000))
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", None)
    events: list[Progress] = []

    def later(event: Progress) -> None:
        events.append(event)
        for _ in range(1000):
            next(now)

    config = DraftConfig(new=5, proposals=2)
    found = finish(acceptance(loaded.model, sliced, loaded.tokenizer, PROMPTS[:1], config), later)
    assert found.dense_seconds == 5  # a second for every forward
    assert found.drafted_seconds == 1 + found.dense_passes + found.proposed
    assert [(event.done, event.total) for event in (events[0], events[-1])] == [(0, 1), (1, 1)]
    assert len(events) > 5 + found.dense_passes + found.proposed


def test_nothing_proposed_is_no_rate():
    assert str(dataclasses.replace(Acceptance(1, 1, 4, 2, 2, 1.0, 2.0), proposed=0, accepted=0).rate) == "nan"


def test_what_cannot_be_measured_is_refused_before_any_work(models, tiny_case, monkeypatch):
    loaded, sliced = models
    other = tiny_case("llama-gqa").loaded.model if "gqa" not in loaded.name else tiny_case("phi").loaded.model
    monkeypatch.setattr(other.lm_head, "out_features", 99)

    def refusal(draft=sliced, prompts=PROMPTS, **config):
        with pytest.raises(UserError) as caught:
            finish(acceptance(loaded.model, draft, loaded.tokenizer, prompts, DraftConfig(**config)))
        return str(caught.value)

    assert "256 and 99 tokens" in refusal(other)
    assert "no prompts" in refusal(prompts=[])
    assert "empty" in refusal(prompts=["w7", " "])
    assert "510 new ones does not fit the 512" in refusal(new=510)
    assert "wanted 3 or more" in refusal(new=2)
    assert "wanted 1 to 64" in refusal(proposals=65)


def test_a_window_that_the_answer_leaves_is_refused(tiny_case):
    loaded = tiny_case("mistral").loaded
    with pytest.raises(UserError, match="does not fit the 8 that the model sees"):
        finish(acceptance(loaded.model, loaded.model, loaded.tokenizer, PROMPTS[:1], DraftConfig(new=4)))
