"""Which questions a model answers: against plain transformers on all questions, and by hand."""

import copy
import math

import pytest
import torch
from stopping import Stopped, stop_at
from tiny_models import losses_at_once

from intraslice.evaluation import facts
from intraslice.evaluation.facts import (
    LANGUAGES,
    Fact,
    Question,
    answer_log_probs,
    encode_questions,
    fact_changes,
    fact_questions,
    facts_record,
    measure_facts,
)


def test_answers_are_those_of_plain_transformers_for_all_questions(family_case, all_bytes_tokenizer, monkeypatch):
    monkeypatch.setattr(facts, "BATCH", 50)
    every = 1 if family_case.name == "phi" else 8  # all by one family, some by the others
    questions = [question for language in LANGUAGES for question in fact_questions(language)][::every]
    assert [len(fact_questions(language)) for language in LANGUAGES] == [96, 32]
    model, original, encode = family_case.dense, family_case.original, all_bytes_tokenizer.encode
    encoded, events = encode_questions(all_bytes_tokenizer, questions), []
    found = measure_facts(model, all_bytes_tokenizer, encoded, progress=events.append)
    answers = zip(questions, answer_log_probs(model, encoded), found, strict=True)
    for index, (question, log_probs, fact) in enumerate(answers):
        length = len(encode(question.prompt))
        rows = [torch.tensor([encode(f"{question.prompt} {answer}")]) for answer in question.answers]
        expected = [-losses_at_once(original, row)[0, length - 1 :].sum().item() for row in rows]
        assert log_probs == pytest.approx(expected, abs=1e-3)
        scores = [value / len(answer.encode()) for value, answer in zip(expected, question.answers, strict=True)]
        assert scores[fact.chosen] == pytest.approx(max(scores), abs=1e-4)
        assert fact.probability == pytest.approx(math.exp(expected[0]), rel=1e-2)
        if index % 8 == 0:
            written = original.generate(rows[0][:, :length], do_sample=False, max_new_tokens=6)[0, length:]
            text = all_bytes_tokenizer.decode(written, skip_special_tokens=True)
            assert fact.completion.startswith(text.rstrip("\ufffd").strip())  # the end may be half a character
    total = len(questions)
    assert [(event.done, event.total) for event in (events[0], events[-1])] == [(0, total), (total, total)]


def test_a_model_says_what_its_completion_begins_with_as_whole_words(case):
    loaded = case.loaded

    def ask(*answers: str) -> Fact:
        questions = encode_questions(loaded.tokenizer, [Question("", "w20 w30", answers)])
        (fact,) = measure_facts(loaded.model, loaded.tokenizer, questions, progress=False)
        return fact

    first, second, *_ = ask("w4 w5", "w6", "w7").completion.split()
    said = ask(f"{first} {second}", "w6", "w7")
    assert (said.says, said.level) == (True, "says")
    assert (ask(first, "w6").level, ask(first, "w6").chosen) == ("says", 0)
    assert not ask(first[:-1], "w6").says  # `w2` is no beginning of `w20 w31`
    assert [ask("w6", first).chosen, ask("w6", first).level] == [1, "neither"]
    assert {ask("w6", "w7").level, ask("w7", "w6").level} == {"selects", "neither"}


def test_a_model_without_numbers_selects_nothing_and_a_cancelled_one_is_as_before(tiny_case):
    loaded = tiny_case("llama-mha").loaded
    encoded = encode_questions(loaded.tokenizer, [Question("", "w20", ("w30", "w40"))])
    broken = copy.deepcopy(loaded.model)
    broken.lm_head.weight.data[:] = math.nan
    assert measure_facts(broken, loaded.tokenizer, encoded, progress=False)[0].level == "neither"

    before = measure_facts(loaded.model, loaded.tokenizer, encoded, progress=False)
    with pytest.raises(Stopped):
        measure_facts(loaded.model, loaded.tokenizer, encoded, progress=stop_at(1))
    assert measure_facts(loaded.model, loaded.tokenizer, encoded, progress=False) == before


def test_losses_and_gains_come_with_what_the_dense_model_was_most_sure_of_first():
    says, selects, neither = (Fact(0, 0.5, "b c", True), Fact(0, 0.2, "x", False), Fact(1, 0.9, "c", False))
    questions = [Question(f"g{index // 2}", f"a{index}", ("b", "c")) for index in range(4)]
    dense = [selects, says, neither, says]
    sliced = [neither, selects, selects, says]
    assert fact_changes(dense, sliced) == ([1, 0], [2])
    record = facts_record(questions, {"dense": dense, "sliced": sliced})
    assert record["dense"]["counts"] == {
        "g0": {"says": 1, "selects": 2, "of": 2},
        "g1": {"says": 1, "selects": 1, "of": 2},
        "all": {"says": 2, "selects": 3, "of": 4},
    }
    lost, _ = record["sliced"]["lost"]
    assert lost == {
        "group": "g0",
        "prompt": "a1",
        "answer": "b",
        "probability": 0.5,
        "dense": {"level": "says", "says": "b c", "selects": "b"},
        "sliced": {"level": "selects", "says": "x", "selects": "b"},
    }
    assert [row["prompt"] for row in record["sliced"]["gained"]] == ["a2"]
