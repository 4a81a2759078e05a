"""Text as it streams, stops and fails, against transformers' own generation."""

from __future__ import annotations

import threading

import pytest
import torch
from stopping import Stopped
from torch.testing import assert_close

from intraslice.evaluation import generation
from intraslice.evaluation.generation import Sampling, answer_text, generate_text, prompt_tokens, stream_tokens


@pytest.fixture(scope="module")
def case(tiny_case):
    return tiny_case("llama-gqa")


PROMPT = "w20 w30 w40 w50"


@pytest.fixture
def never_ends(case, monkeypatch):
    """Without an end token every generation runs to its limit."""
    monkeypatch.setattr(case.loaded.model.generation_config, "eos_token_id", None)
    return case.loaded


def words(pieces) -> list[str]:
    return "".join(pieces).split()


def greedy_words(loaded, count: int) -> list[str]:
    tokens = torch.tensor([[20, 30, 40, 50]])
    with torch.no_grad():
        for _ in range(count):
            tokens = torch.cat([tokens, loaded.model(tokens).logits[:, -1:].argmax(-1)], 1)
    return loaded.tokenizer.decode(tokens[0, 4:], skip_special_tokens=True).split()


def test_generated_text_is_the_greedy_continuation_in_pieces(never_ends):
    pieces = list(generate_text(never_ends.model, never_ends.tokenizer, PROMPT, max_new_tokens=12))
    assert words(pieces) == greedy_words(never_ends, 12)
    assert len(pieces) > 3


def test_sampling_follows_the_seed(never_ends):
    def sampled(seed: int) -> list[str]:
        options = {"max_new_tokens": 12, "temperature": 3.0, "seed": seed}
        return words(generate_text(never_ends.model, never_ends.tokenizer, PROMPT, **options))

    assert sampled(1) == sampled(1) != sampled(2)


@pytest.mark.parametrize("read", [3, 128])
def test_tokens_are_those_of_transformers_own_generate(family_case, read, monkeypatch):
    monkeypatch.setattr(generation, "PREFILL_TOKENS", read)
    loaded = family_case.loaded
    ids = torch.tensor([[20, 30, 40, 50]])
    expected = family_case.original.generate(ids, do_sample=False, max_new_tokens=20)[0, 4:].tolist()
    tokens = list(stream_tokens(loaded.model, loaded.tokenizer, PROMPT, Sampling(20)))
    assert tokens == expected
    text = "".join(generate_text(loaded.model, loaded.tokenizer, PROMPT, 20))
    assert text == answer_text(loaded.tokenizer, tokens)


def test_sampling_is_alone_with_its_random_numbers(never_ends):
    """Answers that are drawn in turn, or while others draw, are those that are drawn alone."""
    sampling = Sampling(12, temperature=3.0, seed=1)
    alone = list(stream_tokens(never_ends.model, never_ends.tokenizer, PROMPT, sampling))
    state = torch.get_rng_state()
    both = [stream_tokens(never_ends.model, never_ends.tokenizer, PROMPT, sampling) for _ in range(2)]
    in_turn = [(first, torch.rand(3), second)[::2] for first, second in zip(*both, strict=True)]
    assert in_turn == [(token, token) for token in alone]
    torch.set_rng_state(state)
    list(stream_tokens(never_ends.model, never_ends.tokenizer, PROMPT, sampling))
    assert_close(torch.get_rng_state(), state)


def test_draws_have_the_models_probabilities():
    choose = generation._sampler(Sampling(temperature=2.0))
    logits = torch.tensor([0.0, 2.0, 4.0])
    counts = torch.bincount(torch.tensor([choose(logits) for _ in range(4000)])) / 4000
    assert_close(counts, (logits / 2).softmax(0), atol=0.03, rtol=0)


def test_an_answer_ends_where_the_positions_do(never_ends):
    tokens = stream_tokens(never_ends.model, never_ends.tokenizer, "w7 " * 510, Sampling(20))
    assert len(list(tokens)) == 2


def test_a_long_prompt_is_read_in_pieces_between_which_the_caller_may_cancel(never_ends, monkeypatch):
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 100)
    model, tokenizer, prompt, pauses = never_ends.model, never_ends.tokenizer, "w7 " * 500, []
    stream = stream_tokens(model, tokenizer, prompt, Sampling(3), pause=lambda: pauses.append(1))
    next(stream)
    assert len(pauses) == 4
    assert len(list(stream)) == 2
    assert len(pauses) == 4  # not between the tokens of the answer

    def cancel() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        next(stream_tokens(model, tokenizer, prompt, Sampling(3), pause=cancel))


def test_a_character_of_several_tokens_comes_whole(never_ends, monkeypatch):
    tokens = iter([104, 195, 169, 33])  # the bytes of "hé!"
    monkeypatch.setattr(generation, "stream_tokens", lambda *_, **__: tokens)
    monkeypatch.setattr(generation, "answer_text", lambda _, ids: bytes(ids).decode(errors="replace"))
    assert list(generate_text(never_ends.model, never_ends.tokenizer, PROMPT)) == ["h", "é", "!"]


def test_a_chat_template_is_used_where_there_is_one(word_tokenizer):
    tokenizer = word_tokenizer(["user", "hello", "assistant"])
    raw = prompt_tokens(tokenizer, "hello")
    assert raw == tokenizer.convert_tokens_to_ids(["hello"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"
    ids = prompt_tokens(tokenizer, "hello")
    assert tokenizer.convert_ids_to_tokens(ids) == ["user", "hello", "assistant"]
    assert prompt_tokens(tokenizer, "hello", chat=False) == raw


def test_leaving_early_ends_the_work(never_ends):
    before = set(threading.enumerate())
    pieces = generate_text(never_ends.model, never_ends.tokenizer, PROMPT, max_new_tokens=100_000)
    next(pieces)
    pieces.close()
    assert set(threading.enumerate()) <= before


def test_what_fails_in_the_thread_is_raised_here(never_ends, monkeypatch):
    def fail(*_, **__) -> None:
        raise ArithmeticError("no luck")

    monkeypatch.setattr(never_ends.model.model.layers[1].mlp, "forward", fail)
    with pytest.raises(ArithmeticError, match="no luck"):
        list(generate_text(never_ends.model, never_ends.tokenizer, PROMPT))
