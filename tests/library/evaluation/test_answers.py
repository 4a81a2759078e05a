"""Statistics of greedy answers, by hand; and that a batch of prompts is answered as each prompt alone."""

from __future__ import annotations

import pytest

from intraslice.evaluation.answers import (
    PROMPTS,
    answer_statistics,
    greedy_answers,
    has_loop,
    tokens_of_prompts,
)
from intraslice.evaluation.generation import Sampling, stream_tokens


@pytest.mark.parametrize(
    ("answer", "loops"),
    [
        ([1, 2, 3, 4] * 3, True),
        ([1, 2, 3, 4] * 2, False),
        ([1, 2, 3, 4, 9, 1, 2, 3, 4, 8, 7, 1, 2, 3, 4], True),  # not only side by side
        ([5] * 6, True),  # the occurrences may overlap
        ([5] * 5, False),
        ([1, 2, 3], False),
        ([], False),
    ],
)
def test_a_loop_is_a_run_of_four_tokens_that_comes_three_times(answer, loops):
    assert has_loop(answer) is loops


def test_the_statistics_of_two_answers():
    answers = [[1, 2, 3, 1, 2, 3], [7, 7, 7, 7, 7, 7]]
    dense = [[1, 2, 3, 1, 2, 3, 4], [7, 7, 8]]
    # 3-grams: 123 231 312 123, of which three are distinct; 777 four times
    assert answer_statistics(answers, dense) == (0.5, (6 + 2) / 2, 6, (3 + 1) / 8)
    assert answer_statistics([[]], [[1]]) == (0.0, 0.0, 0.0, 0.0)


def test_there_are_fifty_prompts():
    assert len(set(PROMPTS)) == 50


def test_a_batch_is_answered_as_each_prompt_alone(tiny_case):
    loaded = tiny_case("llama-gqa").loaded
    prompts, events = PROMPTS[:4], []
    answers = greedy_answers(loaded.model, tokens_of_prompts(loaded.tokenizer, prompts), 12, progress=events.append)
    for prompt, answer in zip(prompts, answers, strict=True):
        alone = list(stream_tokens(loaded.model, loaded.tokenizer, prompt, Sampling(12)))
        ends = {loaded.model.generation_config.eos_token_id}
        assert answer == [token for token in alone if token not in ends]
    assert (events[-1].done, events[-1].total) == (12, 12)
