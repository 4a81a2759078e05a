"""Text as it streams, stops and fails, against transformers' own generation."""

import math
import re
import sys
from datetime import datetime
from unittest.mock import Mock

import pytest
import torch
from refusing import refused
from stopping import Stopped
from tiny_models import losses_at_once
from torch.testing import assert_close

from intraslice.evaluation import generation
from intraslice.evaluation.answers import (
    PROMPTS,
    answer_statistics,
    answers_loss,
    greedy_answers,
    has_loop,
    tokens_of_prompts,
)
from intraslice.evaluation.generation import (
    MAX_PROMPT,
    Sampling,
    answer_text,
    generate_text,
    prompt_tokens,
    render_chat,
    require_short,
    stream_tokens,
)
from intraslice.token_windows import CHARACTERS_PER_TOKEN
from intraslice.untrusted import process

PROMPT = "w20 w30 w40 w50"


@pytest.fixture
def never_ends(case, monkeypatch):
    """Without an end token every generation runs to its limit."""
    monkeypatch.setattr(case.dense.generation_config, "eos_token_id", None)
    return case.loaded


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
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.0, 2.0, 4.0])
    draws = [generation._sample(logits, 2.0, generator) for _ in range(4000)]
    counts = torch.bincount(torch.tensor(draws)) / 4000
    assert_close(counts, (logits / 2).softmax(0), atol=0.03, rtol=0)


def test_an_answer_ends_where_the_positions_do_and_a_character_of_several_tokens_comes_whole(never_ends, monkeypatch):
    tokens = stream_tokens(never_ends.model, never_ends.tokenizer, "w7 " * 510, Sampling(20))
    assert len(list(tokens)) == 2
    tokens = iter([104, 195, 169, 33])  # the bytes of "hé!"
    monkeypatch.setattr(generation, "stream_tokens", lambda *_, **__: tokens)
    monkeypatch.setattr(generation, "answer_text", lambda _, ids: bytes(ids).decode(errors="replace"))
    assert list(generate_text(never_ends.model, never_ends.tokenizer, PROMPT)) == ["h", "é", "!"]


def test_a_long_prompt_is_read_in_pieces_between_which_the_caller_may_cancel(never_ends, monkeypatch):
    monkeypatch.setattr(generation, "PREFILL_TOKENS", 100)
    model, tokenizer, prompt, pauses = never_ends.model, never_ends.tokenizer, "w7 " * 500, []
    stream = stream_tokens(model, tokenizer, prompt, Sampling(3), pause=lambda: pauses.append(1))
    next(stream)
    assert len(pauses) == 4
    assert len(list(stream)) == 2
    assert len(pauses) == 4  # not between the tokens of the answer

    with pytest.raises(Stopped):
        next(stream_tokens(model, tokenizer, prompt, Sampling(3), pause=Mock(side_effect=Stopped)))


def test_a_chat_template_is_used_where_there_is_one(word_tokenizer):
    tokenizer = word_tokenizer(["user", "hello", "assistant"])
    raw = prompt_tokens(tokenizer, "hello")
    assert raw == tokenizer.convert_tokens_to_ids(["hello"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}assistant"
    ids = prompt_tokens(tokenizer, "hello")
    assert tokenizer.convert_ids_to_tokens(ids) == ["user", "hello", "assistant"]
    assert prompt_tokens(tokenizer, "hello", chat=False) == raw


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


def test_a_batch_is_answered_as_each_prompt_alone_and_need_not_end(case, monkeypatch):
    loaded = case.loaded
    prompts, events = tokens_of_prompts(loaded.tokenizer, 4), []
    answers = greedy_answers(loaded.model, prompts, 12, progress=events.append)
    for prompt, answer in zip(PROMPTS, answers, strict=False):
        alone = list(stream_tokens(loaded.model, loaded.tokenizer, prompt, Sampling(12)))
        ends = {loaded.model.generation_config.eos_token_id}
        assert answer == [token for token in alone if token not in ends]
    assert (events[-1].done, events[-1].total) == (12, 12)
    first = answers[0][0]
    monkeypatch.setattr(loaded.model.generation_config, "eos_token_id", [first, answers[1][0]])
    assert greedy_answers(loaded.model, prompts, 12)[0] == []
    endless = greedy_answers(loaded.model, prompts, 12, may_end=False)
    assert [len(answer) for answer in endless] == [12] * 4
    assert not {first, answers[1][0]}.intersection(*endless)


def test_the_loss_of_answers_is_that_of_their_tokens_alone(case):
    model = case.dense
    prompts, answers = [[3, 4, 5], [6]], [[7, 8], [9, 10, 11]]
    rows = [torch.tensor([[3, 4, 5, 7, 8]]), torch.tensor([[6, 9, 10, 11]])]
    losses = [losses_at_once(model, row)[0] for row in rows]
    expected = torch.cat([losses[0][2:], losses[1]]).mean()
    assert answers_loss(model, prompts, answers) == pytest.approx(expected.item(), rel=1e-5)
    assert answers_loss(model, prompts, [[], []]) == math.inf


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Say <b>\"é\"</b> 'now' 😀\n\n"},
    {"role": "assistant", "content": " Hé. "},
    {"role": "user", "content": ""},
]
LLAMA_LIKE = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- set ns = namespace(count=0, seen=dict(role='none')) %}
{%- for message in messages %}
    {%- if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}
    {%- if loop.first and message.role == 'system' %}
        {{- '<<SYS>>' + message.content | trim + ' Today ' + date_string }}
        {%- continue %}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
    {%- if message.role == 'assistant' %}{% generation %}{{ message.content.strip() + eos_token }}{% endgeneration %}
    {%- else %}
        {{- '[' ~ ns.count ~ ']' + message | tojson + message['content'].split('>')[-1] }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and tools is none %}
    {{- '\\n[' + dict.fromkeys(['a'], 1) | tojson(indent=2) + ns.seen.role + ']' }}
{%- endif %}"""
MACROS = """{% macro turn(message) %}
<|{{ message['role'] }}|>
{{ message['content'] | replace('<', '&lt;') | e }}<|end|>
{% endmacro %}
{% for message in messages if message['content'] %}
  {{ turn(message) }}
{% else %}
nothing
{% endfor %}
{# a remark #}
{{ messages | map(attribute='role') | join(', ') }}{{ {'b': 1.5, 'a': [true, none, 'é']} | tojson }}
{{ unk_token }}<|assistant|>
"""
ALLOCATING = "{% for power in range(30, 31) %}{{ 'x' * 2 ** power }}{% endfor %}"  # at once: filling memory takes time
COUNTING = "{% for a in range(9999) %}{% for b in range(9999) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}"
WRITING = "{% for a in range(9999) %}{% for b in range(9999) %}{{ '0123456789' * 9 }}{% endfor %}{% endfor %}"


@pytest.fixture
def with_template(word_tokenizer):
    def make(template: str | dict):
        tokenizer = word_tokenizer(["word"])
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.mark.parametrize("template", ["", LLAMA_LIKE, MACROS], ids=["default", "llama-like", "macros"])
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:2]], ids=["chat", "prompt"])
def test_the_default_models_template_and_those_that_use_all_there_is(template, messages, with_template, default_model):
    tokenizer = with_template(template) if template else default_model.tokenizer
    rendered = render_chat(tokenizer, messages)
    assert rendered == tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert template or rendered.endswith("<|im_start|>assistant\n")


def test_a_date_is_todays_and_of_several_templates_the_default_counts(with_template):
    assert render_chat(with_template("{{ strftime_now('%Y') }}"), CHAT) == str(datetime.now().year)
    tokenizer = with_template({"default": "{{ messages | length }}", "tool_use": "no"})
    assert render_chat(tokenizer, CHAT) == "4"
    tokenizer = with_template({"rag": "a", "tool_use": "no"})
    assert "multiple chat templates with no default" in refused(render_chat, tokenizer, CHAT)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('Roles must alternate') }}", "Roles must alternate"),
        ("{% for %}", "Expected|expected|unexpected"),
        ("{{ messages.nothing.at_all }}", "no attribute"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ (messages | attr('__class__')).mro() }}", "unsafe|undefined"),
        ("{% set ns = namespace(__class__=1) %}", "must not begin with an underscore, got '__class__'"),
        ("{% set ns = namespace() %}{% set ns._a = 1 %}", "must not begin with an underscore, got '_a'"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_one_clear_line(template, words, with_template):
    message = refused(render_chat, with_template(template), CHAT)
    assert re.search(f"chat template fails .*({words}).*; turn it off", message)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (ALLOCATING, "it takes more than 256 MiB"),
        (COUNTING, "it takes more than 2 s"),
        (WRITING, "it writes more than 2,097,152 characters"),
    ],
    ids=["allocating", "counting", "writing"],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no memory")
def test_a_template_takes_no_more_than_its_share(template, words, with_template, monkeypatch):
    monkeypatch.setattr(process, "TIMEOUT_FACTOR", 30)  # so that what ends it is what it takes, on a busy machine too
    assert words in refused(render_chat, with_template(template), CHAT[1:2])


def test_a_prompt_is_refused_by_its_length_before_it_is_tokenised():
    require_short("x" * CHARACTERS_PER_TOKEN * 100, 100)
    message = refused(require_short, "x" * (CHARACTERS_PER_TOKEN * 100 + 1), 100)
    bound = "expected at most 6,400, as the model's maximum context length is 100 tokens"
    assert f"has 6,401 characters; {bound}" in message
    assert "expected at most 1,048,576" in refused(require_short, "x" * (MAX_PROMPT + 1), 10**9)
