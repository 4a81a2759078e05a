"""Bounds of a model's tokenizer, and encoding: in a child process if its steps may be slow.

The steps in tokenizer.json are programs that come with a model. Those of the supported families take time in proportion
to the text; other regular expressions may take hours for a line, and chains of replacements all memory.
"""

import json
import tempfile
from functools import lru_cache
from typing import IO, Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from intraslice.core.errors import UserError
from intraslice.untrusted.process import Bounds, run_in_subprocess

MAX_STEPS = 2**13  # bytes of the JSON of some steps
LOADING = Bounds(memory=2**31, seconds=20)  # Gemma 3's takes 2 s
SECONDS, MAX_SECONDS, CHARACTERS_PER_SECOND = 5, 60, 200_000  # to load and encode
REMEMBERED_CHARACTERS = 2**17  # of a text whose tokens are remembered

# How Llama 3, Qwen 2, Phi-4-mini and Mistral Nemo split text.
_ENDINGS, _START, _OTHER = "(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?", r"\p{Lm}\p{Lo}\p{M}]"
_UPPER, _LOWER = rf"[\p{{Lu}}\p{{Lt}}{_OTHER}", rf"[\p{{Ll}}{_OTHER}"
_REST = r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_ENDINGS}|{_START}\p{{L}}+{_REST}"
QWEN2 = LLAMA3.replace("{1,3}", "")
_PHI4 = "|".join(f"{_START}{_UPPER}{first}{_LOWER}{second}{_ENDINGS}?" for first, second in ("*+", "+*"))
_PHI4 += _REST.replace(r"\n]*", r"\n/]*")
_NEMO = _PHI4.replace(f"{_ENDINGS}?", "").replace("{1,3}", "")
# Steps that take linear time. Some let a text grow, so only the first two may be there more than once.
_LINEAR_STEPS = ["Split", "Replace", "Prepend", "NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip", "ByteLevel"]
_LINEAR_STEPS += ["Metaspace", "Digits", "Punctuation", "Whitespace", "WhitespaceSplit", "TemplateProcessing"]
_LINEAR_STEPS += ["ByteFallback", "Fuse", "WordPiece", "BPEDecoder"]

_slow: WeakKeyDictionary[PreTrainedTokenizerBase, IO[str]] = WeakKeyDictionary()  # their files, for the child process


def let_child_encode_if_slow(tokenizer: PreTrainedTokenizerBase) -> None:
    """From now on `encode` uses a child process, unless all steps take time and memory in proportion to the text.

    Raises ValueError if decoding may take more: text is decoded token by token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _is_linear(backend.decoder):
        raise ValueError("it is written in Python" if backend is None else "its decoder has steps that may be slow")
    kind = type(backend.model).__name__
    is_linear = kind == "WordLevel" or (kind == "BPE" and backend.model.dropout is None)
    if not is_linear or not all(map(_is_linear, (backend.normalizer, backend.pre_tokenizer, backend.post_processor))):
        # Deleted with the tokenizer.
        file = _slow[tokenizer] = tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8")  # noqa: SIM115
        file.write(backend.to_str())
        file.flush()


def encode(tokenizer: PreTrainedTokenizerBase, text: str, special: bool = False) -> list[int]:
    """The token ids of a text, with `special` also those that the tokenizer adds. UserError where it is too slow."""
    if not encodes_in_child(tokenizer):
        return tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
    run = _remembered_in_child if len(text) <= REMEMBERED_CHARACTERS else _in_child
    try:
        return list(run(_slow[tokenizer].name, text, special, bool(tokenizer.split_special_tokens)))
    except ValueError as error:
        raise UserError(
            f"the tokenizer of this model is too slow for a text of {len(text):,} characters ({error}); use another "
            "model, or a shorter text"
        ) from error


def encodes_in_child(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether `encode` takes a child process, and so may take seconds; of the last short texts it remembers the ids."""
    return tokenizer in _slow


def _in_child(path: str, text: str, special: bool, split: bool) -> tuple[int, ...]:
    seconds = min(MAX_SECONDS, SECONDS + len(text) // CHARACTERS_PER_SECOND)
    bounds = Bounds(LOADING.memory, seconds)
    return tuple(run_in_subprocess("tokens", bounds, path=path, text=text, special=special, split=split))


_remembered_in_child = lru_cache(64)(_in_child)


def _is_linear(part: Any) -> bool:
    """Whether a part of a tokenizer, a step or a sequence of steps, takes linear time."""
    state = b'{"type": "Fuse"}' if part is None else part.__getstate__()
    step = json.loads(state if len(state) <= MAX_STEPS else b'{"type": ""}')
    steps = next(value for value in step.values() if isinstance(value, list)) if step["type"] == "Sequence" else [step]
    kinds = [step["type"] for step in steps if step["type"] not in _LINEAR_STEPS[:2]]
    return len(kinds) == len(set(kinds)) and all(map(_is_linear_step, steps))


def _is_linear_step(step: dict[str, Any]) -> bool:
    pattern, content = step.get("pattern", {}), step.get("content", "")
    if step["type"] == "Split" and "Regex" in pattern:
        return pattern["Regex"] in (LLAMA3, QWEN2, _PHI4, _NEMO)
    if step["type"] == "Replace":
        return len(content) <= len(pattern.get("String", "")) > 0
    return step["type"] in _LINEAR_STEPS and len(step.get("prepend", "")) <= 1
