"""A tokenizer as llama.cpp wants it in a GGUF file: byte-level BPE or SentencePiece, with its special tokens.

llama.cpp's pre-tokenizers are built in and go by names. The name is found by what the tokenizer does, as its
tokenizer.json says it, so that a tokenizer that lost a step on its way is still written as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers import PreTrainedTokenizerBase

from intraslice.core.errors import UserError

# How Llama 3 and Qwen 2 split text: they differ in how many digits go together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}TIMES| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _QWEN2 = _SPLIT.replace("TIMES", "{1,3}"), _SPLIT.replace("TIMES", "")
GPT2, DIGITS = "the pattern of GPT-2", "single digits"
# The steps of a byte-level pre-tokenizer, and whether a whole word that is a token skips the merges.
PRE_TOKENIZERS = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
}
_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class GGUFTokenizer:
    """All that a GGUF file says of a tokenizer. `tokens[n]` is the text of token n; `special` maps kinds to ids."""

    model: str  # "gpt2" is byte-level BPE, "llama" SentencePiece
    pre: str
    tokens: list[str]
    types: list[TokenType]
    special: dict[str, int]  # bos, eos, eot, unk, pad
    adds_bos: bool
    adds_eos: bool
    chat_template: str | list[dict[str, str]] | None
    merges: list[str] | None = None  # of byte-level BPE
    scores: list[float] | None = None  # of SentencePiece: the greatest merges first
    adds_space: bool = False  # before the text

    def add_to(self, writer: GGUFWriter) -> None:
        """Write it into the metadata of a file."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges is not None:
            writer.add_token_merges(self.merges)
        if self.scores is not None:
            writer.add_token_scores(self.scores)
        writer.add_add_space_prefix(self.adds_space)
        for kind, token in self.special.items():
            getattr(writer, f"add_{kind}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, stops: Collection[int] = ()) -> GGUFTokenizer:
    """What a GGUF file says of a tokenizer; `rows` are the model's embeddings, `stops` the tokens that end an answer.

    Raises UserError for a tokenizer that llama.cpp does not have.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("the tokenizer has no tokenizer.json, which GGUF is written from; take a fast tokenizer")
    described = json.loads(backend.to_str())
    model = described["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"a GGUF file holds byte-level BPE and SentencePiece's BPE, and the tokenizer is {model['type']}; "
            "keep the folder, which transformers opens"
        )
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokens, types = _vocabulary(described, rows)
    if model["byte_fallback"] and tokenizer.unk_token_id is not None:
        types[tokenizer.unk_token_id] = TokenType.UNKNOWN
    start = tokenizer("a").input_ids
    common = {
        "tokens": tokens,
        "types": types,
        "special": _special(tokenizer, stops),
        "adds_bos": start[:1] == [tokenizer.bos_token_id],
        "adds_eos": start[-1:] == [tokenizer.eos_token_id],
        "chat_template": _chat_template(tokenizer.chat_template),
    }
    if model["byte_fallback"]:
        return GGUFTokenizer(
            "llama", "default", scores=_scores(tokens, merges), adds_space=_adds_space(described), **common
        )
    return GGUFTokenizer("gpt2", _pre_tokenizer(described), merges=[" ".join(merge) for merge in merges], **common)


def _vocabulary(described: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """The text and the type of every row of the embeddings; rows without a token are named, and unused."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    model = described["model"]
    largest = max((*model["vocab"].values(), *(added["id"] for added in described["added_tokens"])), default=-1)
    if largest >= rows:
        raise UserError(
            f"the tokenizer has token ids up to {largest} and the model {rows} embeddings; expected its own"
        )
    for text, token in model["vocab"].items():
        tokens[token] = text
        types[token] = TokenType.BYTE if model["byte_fallback"] and _BYTE.fullmatch(text) else TokenType.NORMAL
    for added in described["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return tokens, types


def _special(tokenizer: PreTrainedTokenizerBase, stops: Collection[int]) -> dict[str, int]:
    special = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "unk", "pad")}
    # The end of a turn is the stop that the chat template writes, where that is not the end of the text.
    template = str(tokenizer.chat_template)
    texts = {token: str(tokenizer.decode([token])) for token in stops if token != special["eos"]}
    written = [token for token, text in texts.items() if text and text in template]
    special["eot"] = next(iter(written), None)
    return {kind: token for kind, token in special.items() if token is not None}


def _chat_template(template: str | dict[str, str] | None) -> str | list[dict[str, str]] | None:
    if isinstance(template, dict):
        return [{"name": name, "template": text} for name, text in template.items()]
    return template


def _steps(step: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, which may be a sequence of them."""
    if step is None:
        return []
    return step[members] if step["type"] == "Sequence" else [step]


def _pre_tokenizer(described: dict[str, Any]) -> str:
    """llama.cpp's name for how a byte-level tokenizer splits text before its merges."""
    names = []
    for step in _steps(described["pre_tokenizer"], "pretokenizers"):
        if step == {"type": "Digits", "individual_digits": True}:
            names.append(DIGITS)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            names.append(step["pattern"].get("Regex"))
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            names += [GPT2] if step["use_regex"] else []
        else:
            names.append(step["type"])
    name = PRE_TOKENIZERS.get((tuple(names), described["model"].get("ignore_merges", False)))
    # llama.cpp does not normalise: composed text, which is what people type, is NFC already.
    normalizers = [step["type"] for step in _steps(described["normalizer"], "normalizers")]
    if name is None or set(normalizers) - {"NFC"}:
        raise UserError(
            f"the tokenizer prepares text by {[*normalizers, *names]}, which is none of the ways that a GGUF file is "
            f"written for ({', '.join(PRE_TOKENIZERS.values())}); keep the folder, which transformers opens"
        )
    return name


def _adds_space(described: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer writes a space before the text. Raises UserError where it does more.

    llama.cpp does so as SentencePiece itself: also before a text that begins with one, which Metaspace leaves alone.
    """
    normalizers = _steps(described["normalizer"], "normalizers")
    splits = _steps(described["pre_tokenizer"], "pretokenizers")
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not splits and normalizers in ([replace], [prepend, replace]):
        return prepend in normalizers
    if not normalizers and len(splits) == 1 and splits[0]["type"] == "Metaspace" and not splits[0]["split"]:
        return splits[0]["prepend_scheme"] != "never"
    steps = [step["type"] for step in (*normalizers, *splits)]
    raise UserError(
        f"the tokenizer prepares text by {steps}, which llama.cpp's SentencePiece does not; "
        "keep the folder, which transformers opens"
    )


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """SentencePiece takes the pair whose token has the greatest score: here that of the earliest merge to it."""
    rank: dict[str, int] = {}
    for index, (left, right) in enumerate(merges):
        rank.setdefault(left + right, index)
    return [-float(rank.get(token, len(merges))) for token in tokens]
