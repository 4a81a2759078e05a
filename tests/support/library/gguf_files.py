"""Tokenizers of every kind that a GGUF file holds, and the way to ask llama.cpp about one."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

# Digits, spaces, emoji, several scripts, code, special tokens, and nothing.
TEXTS = [
    "Hello world, it's 2024 and I'VE paid 3.50 for 12345 things.",
    "in  2024 twice,   thrice\n\n\tand  a tab \r\n ",
    "🚀🚀 (normal) 😶‍🌫️ ✅ 北京大学 我想在apple工作1314151天～ ไทย привет x²½Ⅳ",
    "def f(x):\n    return x**2  # ok\n\n\n",
    "<|im_start|>user\nWhat is 7 times 6?<|im_end|>\n",
    "",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


def byte_tokenizer(
    steps: Sequence[pre_tokenizers.PreTokenizer] = (pre_tokenizers.ByteLevel(add_prefix_space=False),),
    rows: int = 250,
    **model: object,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE of at most so many tokens; `<|im_end|>`, of id 2, ends a turn."""
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if rows > 300 else []  # else only the bytes of the texts
    trainer = trainers.BpeTrainer(
        vocab_size=rows, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3 if alphabet else TEXTS[:1], trainer)
    start, end = SPECIAL[1:]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=SPECIAL[0], pad_token=end, chat_template=TEMPLATE
    )


def piece_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece's become: bytes for what has no token, a space before the text."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=vocabulary, show_progress=False)
    tokenizer.train_from_iterator([word for text in TEXTS[:4] for word in text.split()] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = described["added_tokens"][:3]  # bytes are ordinary tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def ask_llama_cpp_of(*files: tuple[Path, dict[str, list]]) -> list[dict]:
    """What llama.cpp says of GGUF files, each with its questions (see run_gguf.py); it must be installed."""
    command = [sys.executable, str(Path(__file__).with_name("run_gguf.py"))]
    pairs = json.dumps([(str(file), questions) for file, questions in files])
    done = subprocess.run(command, input=pairs, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ask_llama_cpp(file: Path, **questions: list) -> dict:
    """What llama.cpp says of one GGUF file."""
    return ask_llama_cpp_of((file, questions))[0]
