"""Chat templates against transformers' own rendering, and templates that would take the machine."""

from __future__ import annotations

import sys
from datetime import datetime

import pytest

from intraslice.core.errors import UserError
from intraslice.data import CHARACTERS_PER_TOKEN
from intraslice.evaluation.generation import MAX_PROMPT, render_chat, require_short
from intraslice.untrusted import process

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
DOUBLING = "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}"
COUNTING = "{% for a in range(9999) %}{% for b in range(9999) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}"
WRITING = "{% for a in range(9999) %}{% for b in range(9999) %}{{ '0123456789' * 9 }}{% endfor %}{% endfor %}"


@pytest.fixture
def with_template(word_tokenizer):
    def make(template: str | dict):
        tokenizer = word_tokenizer(["word"])
        tokenizer.chat_template = template
        return tokenizer

    return make


def expected(tokenizer, messages: list[dict]) -> str:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


@pytest.mark.parametrize("messages", [CHAT, CHAT[1:2]], ids=["chat", "prompt"])
def test_the_default_models_template(messages, default_model):
    rendered = render_chat(default_model.tokenizer, messages)
    assert rendered == expected(default_model.tokenizer, messages)
    assert rendered.endswith("<|im_start|>assistant\n")


@pytest.mark.parametrize("template", [LLAMA_LIKE, MACROS], ids=["llama-like", "macros"])
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:2]], ids=["chat", "prompt"])
def test_templates_that_use_all_there_is(template, messages, with_template):
    tokenizer = with_template(template)
    assert render_chat(tokenizer, messages) == expected(tokenizer, messages)


def test_a_date_is_todays(with_template):
    assert render_chat(with_template("{{ strftime_now('%Y') }}"), CHAT) == str(datetime.now().year)


def test_the_default_of_several_templates(with_template):
    tokenizer = with_template({"default": "{{ messages | length }}", "tool_use": "no"})
    assert render_chat(tokenizer, CHAT) == "4"
    with pytest.raises(UserError, match="multiple chat templates with no default"):
        render_chat(with_template({"rag": "a", "tool_use": "no"}), CHAT)


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
    with pytest.raises(UserError, match=f"chat template fails .*({words}).*; turn it off") as caught:
        render_chat(with_template(template), CHAT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        pytest.param(DOUBLING, "it takes more than 256 MiB", id="doubling"),
        pytest.param(COUNTING, "it takes more than 2 s", id="counting"),
        pytest.param(WRITING, "it writes more than 2,097,152 characters", id="writing"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems bound no memory")
def test_a_template_takes_no_more_than_its_share(template, words, with_template, monkeypatch):
    monkeypatch.setattr(process, "TIMEOUT_FACTOR", 30)  # so that what ends it is what it takes, on a busy machine too
    with pytest.raises(UserError, match=words):
        render_chat(with_template(template), CHAT[1:2])


def test_a_prompt_is_refused_by_its_length_before_it_is_tokenised():
    require_short("x" * CHARACTERS_PER_TOKEN * 100, 100)
    with pytest.raises(
        UserError,
        match="has 6,401 characters; expected at most 6,400, as the model's maximum context length is 100 tokens",
    ):
        require_short("x" * (CHARACTERS_PER_TOKEN * 100 + 1), 100)
    with pytest.raises(UserError, match="expected at most 1,048,576"):
        require_short("x" * (MAX_PROMPT + 1), 10**9)
