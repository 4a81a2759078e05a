"""Loads a tokenizer, or encodes with it. Runs in a separate process."""

import json
import re
from collections.abc import Collection
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

MAX_BYTES = 2**25  # of a vocabulary file; tokenizer.json of Gemma 3, the largest of the families, has 33,384,568
MAX_CONFIG = 2**22  # of each other file: its tokenizer_config.json has 1,155,375
MAX_TOKENS, MAX_TOKEN = 300_000, 2**10  # of the vocabulary (Gemma 3: 262,145); characters of one
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
CONFIGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def run(path: str, text: str | None = None, special: bool = False, split: bool = False) -> list[int]:
    """The ids of a text, by a tokenizer.json; without a text only load the tokenizer of a model folder.

    `special`: the tokenizer adds its special tokens, such as the first. `split`: those in the text are encoded as text.
    """
    if text is None:
        _load(Path(path))
        return []
    tokenizer = Tokenizer.from_file(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = split
    return tokenizer.encode(text, add_special_tokens=special).ids


def _load(folder: Path) -> None:
    for file in folder.iterdir():
        limit = MAX_BYTES if file.name in VOCABULARIES else MAX_CONFIG
        is_read = file.name in (*VOCABULARIES, *CONFIGS) or file.suffix == ".jinja"
        if is_read and file.stat().st_size > limit:
            raise ValueError(f"{file.name} has more than {limit:,} bytes")
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        _require_bounded(tokenizer.get_vocab())
        for file in filter(Path.exists, map(folder.joinpath, CONFIGS)):  # whose tokens transformers adds, normalised
            strings = set(map(json.loads, STRING.findall(file.read_text(encoding="utf-8"))))
            tokenizer.add_tokens([AddedToken(string, normalized=True) for string in strings])
    elif (folder / "tokenizer.model").exists():
        from sentencepiece import SentencePieceProcessor  # optional

        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        _require_bounded([pieces.id_to_piece(token) for token in range(pieces.get_piece_size())])


def _require_bounded(tokens: Collection[str]) -> None:
    if len(tokens) > MAX_TOKENS or max(map(len, tokens), default=0) > MAX_TOKEN:
        raise ValueError(f"it has more than {MAX_TOKENS:,} tokens, or one of more than {MAX_TOKEN:,} characters")
