"""Converts a tokenizer to the metadata of a GGUF file: byte-level BPE or SentencePiece, with its special tokens.

llama.cpp's pre-tokenizers are built in and have names. The name is derived from the steps in tokenizer.json, not from
the model's name, so a tokenizer with a changed step is written correctly or refused.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from intraslice.core.errors import UserError
from intraslice.pretrained.tokenizer import LLAMA3, QWEN2, encode

GPT2, DIGITS = "the pattern of GPT-2", "single digits"
# Steps of a byte-level pre-tokenizer, and `ignore_merges`: whether a word that is a token skips the merges.
PRE_TOKENIZERS = {
    ((GPT2,), False): "gpt-2",
    ((DIGITS, GPT2), False): "smollm",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
}
_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
Fields = dict[str, Any]  # of a file's metadata: the argument of `add_NAME` of a GGUFWriter, by name


def read_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, stops: Collection[int] = ()) -> Fields:
    """The metadata of a tokenizer for `rows` embeddings and end-of-turn tokens `stops`. UserError where it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError("the tokenizer has no tokenizer.json, which the GGUF export reads; use a fast tokenizer")
    tokenizer_json = json.loads(backend.to_str())
    model = tokenizer_json["model"]
    if model["type"] != "BPE":
        raise UserError(
            f"the tokenizer must be byte-level BPE or SentencePiece's BPE for GGUF, got {model['type']}; "
            "save the model as a folder instead, which transformers loads"
        )
    merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    tokens, types = _vocabulary(tokenizer_json, rows)
    fields: Fields = {"tokenizer_model": "gpt2", "tokenizer_pre": "", "token_list": tokens, "token_types": types}
    if model["byte_fallback"]:
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = TokenType.UNKNOWN
        # SentencePiece first merges the pair whose token has the greatest score. The first of equal merges counts.
        rank = {"".join(pair): index for index, pair in reversed([*enumerate(merges)])}
        scores = [-float(rank.get(token, len(merges))) for token in tokens]
        fields |= {"tokenizer_model": "llama", "tokenizer_pre": "default", "token_scores": scores}
        fields["add_space_prefix"] = _adds_space(tokenizer_json)
    else:
        fields |= {"tokenizer_pre": _pre_tokenizer(tokenizer_json), "token_merges": [" ".join(pair) for pair in merges]}
        fields["add_space_prefix"] = False
    start, template = encode(tokenizer, "a", special=True), tokenizer.chat_template
    fields |= {f"{kind}_token_id": token for kind, token in _special(tokenizer, stops).items()}
    fields["add_bos_token"] = start[:1] == [tokenizer.bos_token_id]
    fields["add_eos_token"] = start[-1:] == [tokenizer.eos_token_id]
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    return fields | ({"chat_template": template} if template else {})


def _vocabulary(tokenizer_json: dict[str, Any], rows: int) -> tuple[list[str], list[TokenType]]:
    """Text and type of every row of the embeddings; rows without a token get a name and the type UNUSED."""
    tokens = [f"[PAD{row}]" for row in range(rows)]
    types = [TokenType.UNUSED] * rows
    model = tokenizer_json["model"]
    largest = max((*model["vocab"].values(), *(added["id"] for added in tokenizer_json["added_tokens"])), default=-1)
    if largest >= rows:
        raise UserError(
            f"the tokenizer has token ids up to {largest}, but the model has only {rows} embeddings; use the tokenizer "
            "that belongs to these weights"
        )
    for text, token in model["vocab"].items():
        tokens[token] = text
        types[token] = TokenType.BYTE if model["byte_fallback"] and _BYTE.fullmatch(text) else TokenType.NORMAL
    for added in tokenizer_json["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    return tokens, types


def _special(tokenizer: PreTrainedTokenizerBase, stops: Collection[int]) -> dict[str, int]:
    special = {kind: getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "unk", "pad")}
    # The end-of-turn token is the stop token that the chat template writes, if it is not the end-of-text token.
    template = str(tokenizer.chat_template)
    texts = {token: str(tokenizer.decode([token])) for token in stops if token != special["eos"]}
    template_stops = [token for token, text in texts.items() if text and text in template]
    special["eot"] = next(iter(template_stops), None)
    return {kind: token for kind, token in special.items() if token is not None}


def _flatten_steps(step: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, which may be a single step or a sequence."""
    if step is None:
        return []
    return step[members] if step["type"] == "Sequence" else [step]


def _pre_tokenizer(tokenizer_json: dict[str, Any]) -> str:
    """llama.cpp's name for the pre-tokenizer of a byte-level tokenizer."""
    names = []
    for step in _flatten_steps(tokenizer_json["pre_tokenizer"], "pretokenizers"):
        if step == {"type": "Digits", "individual_digits": True}:
            names.append(DIGITS)
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and not step["invert"]:
            names.append(step["pattern"].get("Regex"))
        elif step["type"] == "ByteLevel" and not step["add_prefix_space"]:
            names += [GPT2] if step["use_regex"] else []
        else:
            names.append(step["type"])
    name = PRE_TOKENIZERS.get((tuple(names), tokenizer_json["model"].get("ignore_merges", False)))
    # llama.cpp does not normalise. Text that people type is usually in NFC already.
    normalizers = [step["type"] for step in _flatten_steps(tokenizer_json["normalizer"], "normalizers")]
    if name is None or set(normalizers) - {"NFC"}:
        raise UserError(
            f"the tokenizer's normalizer and pre-tokenizer steps {[*normalizers, *names]} match none of llama.cpp's "
            f"pre-tokenizers that can be exported ({', '.join(PRE_TOKENIZERS.values())}); "
            "save the model as a folder instead, which transformers loads"
        )
    return name


def _adds_space(tokenizer_json: dict[str, Any]) -> bool:
    """Whether a SentencePiece tokenizer adds a space before the text. Raises UserError for any other preparation.

    llama.cpp, like SentencePiece itself, also adds it before a text that begins with a space; Metaspace does not.
    """
    normalizers = _flatten_steps(tokenizer_json["normalizer"], "normalizers")
    splits = _flatten_steps(tokenizer_json["pre_tokenizer"], "pretokenizers")
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not splits and normalizers in ([replace], [prepend, replace]):
        return prepend in normalizers
    if not normalizers and len(splits) == 1 and splits[0]["type"] == "Metaspace" and not splits[0]["split"]:
        return splits[0]["prepend_scheme"] != "never"
    steps = [step["type"] for step in (*normalizers, *splits)]
    raise UserError(
        f"the tokenizer uses the normalizer/pre-tokenizer steps {steps}, which llama.cpp's SentencePiece does not "
        "support; save the model as a folder instead, which transformers loads"
    )
