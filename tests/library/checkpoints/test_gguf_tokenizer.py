"""What a GGUF file says of a tokenizer: its kind, every row's token, special tokens and chat template."""

from __future__ import annotations

import pytest
from gguf import TokenType
from gguf_files import byte_tokenizer, piece_tokenizer
from tokenizers import pre_tokenizers

from intraslice.checkpoints.gguf_tokenizer import read_tokenizer
from intraslice.core.errors import UserError


def test_the_default_model_s_tokenizer_comes_whole(default_model):
    tokenizer, rows = default_model.tokenizer, default_model.model.config.vocab_size
    read = read_tokenizer(tokenizer, rows)
    assert (read.model, read.adds_bos, read.adds_eos) == ("gpt2", False, False)
    # The default from the Hub splits off digits; by way of a GGUF file transformers loses that step.
    assert read.pre == ("smollm" if "Digits" in str(tokenizer.backend_tokenizer.pre_tokenizer) else "gpt-2")
    assert [read.tokens[token] for token in (1, 2, 504)] == tokenizer.convert_ids_to_tokens([1, 2, 504])
    assert len(read.tokens) == len(read.types) == rows
    assert read.types[2] is TokenType.CONTROL
    assert read.special["eos"] == tokenizer.eos_token_id == 2
    assert read.chat_template == tokenizer.chat_template
    assert read.merges[0].split(" ") == ["Ġ", "t"]


def test_turns_end_where_the_chat_template_says_so():
    tokenizer = byte_tokenizer()
    assert "eot" not in read_tokenizer(tokenizer, 256).special
    assert read_tokenizer(tokenizer, 256, [tokenizer.eos_token_id, 7, 999, 2]).special["eot"] == 2
    tokenizer.chat_template = {"default": "a", "tools": "b"}
    named = [{"name": "default", "template": "a"}, {"name": "tools", "template": "b"}]
    assert read_tokenizer(tokenizer, 256).chat_template == named


def test_rows_without_a_token_are_unused():
    tokenizer = byte_tokenizer()
    read = read_tokenizer(tokenizer, len(tokenizer) + 2)
    assert read.types[-2:] == [TokenType.UNUSED] * 2
    assert len(set(read.tokens)) == len(read.tokens)


def test_a_token_beyond_the_model_is_refused():
    with pytest.raises(UserError, match="but the model has only 20 embeddings"):
        read_tokenizer(byte_tokenizer(), 20)


def test_pieces_have_bytes_and_the_order_of_their_merges():
    tokenizer = piece_tokenizer()
    read = read_tokenizer(tokenizer, len(tokenizer))
    assert (read.model, read.adds_bos, read.adds_space, read.merges) == ("llama", True, True, None)
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, TokenType.BYTE]
    assert read.types[:4] == kinds
    score = dict(zip(read.tokens, read.scores, strict=True))
    merged = [token for token in score if len(token) > 1 and not token.startswith("<")]
    assert sorted(merged, key=score.get, reverse=True)[0] == merged[0]
    assert min(score.values()) < score[merged[-1]] < score[merged[0]] == 0


@pytest.mark.parametrize(
    "steps",
    [
        [pre_tokenizers.ByteLevel(add_prefix_space=True)],
        [pre_tokenizers.Digits(individual_digits=False), pre_tokenizers.ByteLevel(add_prefix_space=False)],
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)],
    ],
)
def test_other_ways_to_split_are_refused_with_one_line(steps, word_tokenizer):
    for tokenizer in (byte_tokenizer(steps), word_tokenizer()):
        with pytest.raises(UserError) as caught:
            read_tokenizer(tokenizer, 300)
        assert "\n" not in str(caught.value)
