"""Token windows for calibration and evaluation, from disjoint documents.

Documents are joined by blank lines, tokenised without special tokens, and cut into non-overlapping windows. Of user
files only the beginning is read, up to the limits in `untrusted/text_files.py`.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError
from jaxtyping import Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from intraslice.core.config import CalibrationConfig, EvaluationConfig
from intraslice.core.errors import Message, UserError
from intraslice.pretrained.hub import hub_is_reachable
from intraslice.pretrained.tokenizer import encode
from intraslice.pretrained.wheels import WIKIPEDIA, fetch, file_sha256
from intraslice.untrusted.text_files import READERS, read_text_file

Part = Literal["calibration", "evaluation"]
DIGEST = "sha256:"  # a text may be named by its digest where it is only compared

WIKITEXT = "Salesforce/wikitext"
_WIKITEXT_TITLE = re.compile(r" = [^=].* = \n?")  # of an article; titles of sections have more equals signs

_WIKIPEDIA_SENTENCE = Message(
    "lead sections of 10,033 English Wikipedia articles (Wikipedia contributors, {licence}; from {source})",
    licence=WIKIPEDIA.licence,
    source=f"{WIKIPEDIA.package} {WIKIPEDIA.version}",
)
NAMED_CORPORA = {
    "default": _WIKIPEDIA_SENTENCE,
    "wikipedia": _WIKIPEDIA_SENTENCE,
    "wikitext2": Message("WikiText-2, raw ({source}, Wikipedia contributors, CC BY-SA 3.0)", source=WIKITEXT),
}

_CHOICES = Message("one of {names}, or a {types} file", names=", ".join(NAMED_CORPORA), types=", ".join(READERS))
# Limits the memory for tokenising unusual texts, such as long runs of blanks.
CHARACTERS_PER_TOKEN = 64
TRAINING_TIMES = 5  # training tokens per calibration token


def calibration_tokens(
    tokenizer: PreTrainedTokenizerBase, config: CalibrationConfig, evaluation_text: str | None = None
) -> Int64[Tensor, "sequences length"]:
    """Calibration windows, from documents shuffled by the config's seed, without the config's `samples`.

    If the text for perplexity has the same bytes, only the first 80 % of its documents are used here; the named corpora
    have fixed splits. Raises UserError where the text cannot be read or is too short.
    """
    return training_tokens(tokenizer, config, evaluation_text, times=1)


def training_tokens(
    tokenizer: PreTrainedTokenizerBase,
    config: CalibrationConfig,
    evaluation_text: str | None = None,
    times: int = TRAINING_TIMES,
) -> Int64[Tensor, "sequences length"]:
    """The calibration windows and, for training, those after them: `times` as many, or all. Raises UserError, too."""
    documents = read_documents(config.text, "calibration", evaluation_text)
    random.Random(config.seed).shuffle(documents)
    count = config.sequences * config.length
    tokens = _first_tokens(tokenizer, documents, times * count)
    if len(tokens) < count:
        sequences = len(tokens) // config.length
        fewer = Message("lower sequences to {sequences}, lower length", sequences=sequences)
        raise UserError(
            "{text!r} has {tokens} tokens for calibration, expected {sequences} x {length} = {count}; {advice}, or "
            "choose a longer text",
            text=display_name(config.text),
            tokens=len(tokens),
            sequences=config.sequences,
            length=config.length,
            count=count,
            advice=fewer if sequences else Message("lower sequences and length"),
        )
    return tokens[: len(tokens) // config.length * config.length].view(-1, config.length)


def evaluation_tokens(
    tokenizer: PreTrainedTokenizerBase, config: EvaluationConfig, calibration_text: str | None = None
) -> Int64[Tensor, "windows window"]:
    """Evaluation windows, from documents in order: as many whole windows as fit into the config's tokens.

    `calibration_text` may be a digest. If it has the same bytes, only the last 20 % of its documents are used here; the
    named corpora have fixed splits. Raises UserError where the text cannot be read or is too short.
    """
    documents = read_documents(config.text, "evaluation", calibration_text)
    windows = config.tokens // config.window
    count = windows * config.window
    tokens = _first_tokens(tokenizer, documents, count)
    if len(tokens) < count:
        fewer = Message("lower the number of tokens to {tokens} or less, or choose a longer text", tokens=len(tokens))
        raise UserError(
            "{text!r} has {tokens} tokens for evaluation, expected {count} in windows of {window}; {advice}",
            text=display_name(config.text),
            tokens=len(tokens),
            count=count,
            window=config.window,
            advice=fewer if len(tokens) >= config.window else Message("choose a longer text"),
        )
    return tokens.view(windows, config.window)


def require_held_out(text: str, calibration_text: str, evaluation_text: str) -> None:
    """Raise UserError if a calibration read all of `text`. The other two may be digests (see `text_digest`).

    It held out a part of its file only where that was the text of its own evaluation too.
    """
    if calibration_text in NAMED_CORPORA or text in NAMED_CORPORA or text == evaluation_text:
        return
    path = _readable_path(text)
    if _same_text(path, calibration_text) and not _same_text(path, evaluation_text):
        raise UserError(
            "the model was calibrated on all of {file!r}, so none of it is held out; evaluate on another text, or "
            "calibrate again with this text for calibration and evaluation: a fifth of it is then held out",
            file=path.name,
        )


def count_evaluation_tokens(tokenizer: PreTrainedTokenizerBase, text: str, calibration_text: str | None = None) -> int:
    """The number of tokens of a text for `evaluation_tokens`. Raises UserError where it cannot be read."""
    documents = read_documents(text, "evaluation", calibration_text)
    characters = sum(len(document.encode()) + 2 for document in documents)  # no token is shorter than a byte
    return len(_first_tokens(tokenizer, documents, characters))


def text_digest(text: str) -> str | None:
    """A digest of the bytes of a user's text, by which other functions here know it; None for a named corpus."""
    if text in NAMED_CORPORA or (path := _existing(text)) is None:
        return None
    return DIGEST + file_sha256(path)


def describe(text: str) -> Message:
    """A description of the text for people, with source and licence."""
    return NAMED_CORPORA.get(text) or Message("{name}, your own file", name=display_name(text))


def read_documents(text: str, part: Part, other: str | None = None) -> list[str]:
    """The documents of one part of a text: only some of a file that is also `other`, the text of the other part.

    Raises UserError if `text` is neither a named corpus nor a readable file with text in it.
    """
    if text in ("default", "wikipedia"):
        return _wikipedia(part)
    if text == "wikitext2":
        return _wikitext2(part)
    path = _readable_path(text)
    documents = read_text_file(path)
    if other is None or other in NAMED_CORPORA or not _same_text(path, other):
        return documents
    if len(documents) < 2:
        raise UserError(
            "{file!r} has only one document; calibration and evaluation together need at least two. Separate "
            "documents by blank lines, or use different files for the two",
            file=path.name,
        )
    cut = max(1, len(documents) * 4 // 5)
    return documents[:cut] if part == "calibration" else documents[cut:]


def _wikipedia(part: Part) -> list[str]:
    articles = json.loads(fetch(WIKIPEDIA).read_text(encoding="utf-8"))
    # The file is sorted by subject; the order of hashes mixes subjects, and is the same on all platforms.
    digests = {title: int.from_bytes(hashlib.sha256(title.encode()).digest()[:8]) for title in articles}
    titles = (title for title in articles if (digests[title] % 5 == 0) == (part == "evaluation"))
    return [articles[title]["extract"] for title in sorted(titles, key=digests.__getitem__)]


def _wikitext2(part: Part) -> list[str]:
    split = "train" if part == "calibration" else "test"
    file = f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet"
    try:
        path = hf_hub_download(WIKITEXT, file, repo_type="dataset", local_files_only=True)
    except LocalEntryNotFoundError:
        if not hub_is_reachable():
            raise UserError(
                "wikitext2 is not in the local Hugging Face cache, and the Hub is not reachable; "
                "connect to the internet, or use 'default' or a file of your own"
            ) from None
        try:
            path = hf_hub_download(WIKITEXT, file, repo_type="dataset")
        except OSError as error:
            message = "could not download wikitext2 ({reason}); try again"
            raise UserError(message, reason=" ".join(str(error).split())) from error
    return _articles(pandas.read_parquet(path, columns=["text"])["text"])


def _articles(lines: Iterable[str]) -> list[str]:
    """Group WikiText's rows into articles, whose concatenation is the usual WikiText-2 stream."""
    articles: list[list[str]] = [[]]
    for line in lines:
        if _WIKITEXT_TITLE.fullmatch(line) and any(map(str.strip, articles[-1])):
            articles.append([])
        articles[-1].append(line)
    return ["\n\n".join(article) for article in articles]


def display_name(text: str) -> str:
    """A text's name for messages and records: without its folder, which is private, and not too long."""
    return Path(text).name[:100]


def _readable_path(text: str) -> Path:
    path = _existing(text)
    if path is None:
        raise UserError("text {text!r} not found; expected {choices}", text=display_name(text), choices=_CHOICES)
    if path.suffix.lower() not in READERS:
        message = "{file!r} is a {type} file; expected {choices}"
        bare = "{file!r} has no extension; expected {choices}"
        raise UserError(message if path.suffix else bare, file=path.name, type=path.suffix, choices=_CHOICES)
    return path


def _existing(text: str) -> Path | None:
    try:
        path = Path(text).expanduser()
        return path if path.is_file() else None
    except (OSError, RuntimeError):  # a name that is too long, or the home folder of an unknown user
        return None


def _same_text(path: Path, other: str) -> bool:
    """Whether a file has the bytes of `other`, a file or a digest."""
    other_digest = other if other.startswith(DIGEST) else text_digest(other)
    return other_digest == text_digest(str(path))


def _first_tokens(tokenizer: PreTrainedTokenizerBase, documents: list[str], count: int) -> Int64[Tensor, " tokens"]:
    """The first `count` tokens of the joined documents, or all if there are fewer. Does not tokenise much more."""
    total = sum(map(len, documents)) + 2 * (len(documents) - 1)
    max_characters, characters = min(total, CHARACTERS_PER_TOKEN * (count + 16)), 6 * count
    while True:
        ids = encode(tokenizer, _beginning(documents, characters))
        # The last few tokens of a truncated text may differ from those of the whole text.
        if len(ids) >= count + 16 or characters >= max_characters:
            return torch.tensor(ids[:count], dtype=torch.int64)
        characters *= 2


def _beginning(documents: list[str], characters: int) -> str:
    """The first characters of the documents joined by blank lines."""
    pieces, length = [], -2
    for document in documents:
        if length >= characters:
            break
        pieces.append(document[:characters])
        length += 2 + len(document)
    return "\n\n".join(pieces)[:characters]
