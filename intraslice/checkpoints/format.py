"""A sliced model as a folder: safetensors, JSON and tokenizer, reopened without the dense model. Nothing is unpickled.

It is a transformers folder whose `config.json` says how every layer is shaped (see auto_class.py). `intraslice.json`
says how the model was made; its SHA-256 covers that, the shapes and the weights.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from intraslice.checkpoints.auto_class import (
    RECORD,
    WEIGHTS,
    IntraSliceConfig,
    IntraSliceForCausalLM,
    config_of_record,
)
from intraslice.checkpoints.model_card import CARD, model_card
from intraslice.core.cache import scratch_beside
from intraslice.core.errors import UserError
from intraslice.modeling.offload import fetched
from intraslice.pretrained.headers import read_json
from intraslice.pretrained.reader import quiet_transformers

FORMAT = 3
FORMAT_BEFORE = 2  # its record holds the shapes, too
CONFIG = "config.json"


def is_checkpoint(folder: str | Path) -> bool:
    """Whether the folder holds a sliced model, be it that `save` wrote it or its own `save_pretrained`."""
    folder = Path(folder).expanduser()
    return (folder / RECORD).is_file() or _said_by(folder / CONFIG).get("model_type") == IntraSliceConfig.model_type


def require_free(folder: Path) -> None:
    """Raise UserError when `folder` is there already: a checkpoint never overwrites anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder, or remove that one first")


def require_new_file(file: str | Path, suffix: str) -> Path:
    """The path, to be written later. Raises UserError, before any work, where that cannot be or something is there."""
    file = Path(file).expanduser()
    if file.suffix != suffix:
        raise UserError(f"{file} is no name for such a file; expected one that ends in {suffix}")
    if file.exists():
        raise UserError(f"{file} exists; name a new file, or remove that one first")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {file.parent} ({error.strerror or error}); name another folder") from error
    return file


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, made: dict[str, Any]) -> None:
    """Write a sliced model. `made` (source, plan, protocol ...) is kept as it is, so it must be JSON.

    The folder appears whole or not at all. Raises UserError when it exists, or when the disk is full.
    """
    folder = Path(folder).expanduser()
    require_free(folder)
    tensors = {name: fetched(model, name, tensor).contiguous().cpu() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    config = IntraSliceConfig.of(model, made)
    with new_folder(folder, tensors) as draft:
        write_parts(draft, model, tokenizer, config, model_card(config, folder.name))
        record = {"format": FORMAT, "made": made}
        record["sha256"] = _digest(draft, record)
        (draft / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


@contextmanager
def new_folder(folder: Path, tensors: dict[str, Tensor]) -> Iterator[Path]:
    """Where to write what goes into `folder` beside the tensors; it appears there whole, on leaving, or not at all.

    Raises UserError when the disk is full.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_beside(folder) as scratch:
            draft = scratch / folder.name
            draft.mkdir()
            save_file(tensors, draft / WEIGHTS, metadata={"format": "pt"})
            yield draft
            if folder.exists():
                folder.rmdir()
            os.replace(draft, folder)
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise UserError(
            f"cannot write {size / 1e6:.0f} MB to {folder}: {error}; nothing was kept, free some space"
        ) from error


def write_parts(
    draft: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, card: str
) -> None:
    """What any folder has beside its tensors."""
    for part in (model.generation_config, tokenizer, config):
        part.save_pretrained(draft)
    (draft / CARD).write_text(card, encoding="utf-8")


def load(
    folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Reopen what `save` wrote: the model (with `generate()`), its tokenizer, and how it was made.

    Raises UserError when a file is missing, truncated, or not the one that was saved.
    """
    folder = Path(folder).expanduser()
    record = _verified_record(folder)
    try:
        before = record["format"] == FORMAT_BEFORE
        config = config_of_record(record, folder / WEIGHTS) if before else IntraSliceConfig.from_pretrained(folder)
        with quiet_transformers():
            model, report = IntraSliceForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype or "auto", output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if wrong := sorted(str(name) for names in report.values() for name in names):
            raise ValueError(f"tensors do not fit: {wrong[0]}")
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder} is not a whole sliced checkpoint ({reason}); copy the folder again") from error
    tokenizer.padding_side = "left"
    return model.requires_grad_(False).to(device), tokenizer, config.made or {"source": str(folder)}


def _said_by(file: Path) -> dict[str, Any]:
    """What a JSON file says; nothing where there is none that can be read."""
    try:
        return read_json(file)
    except (OSError, ValueError, RecursionError):
        return {}


def _verified_record(folder: Path) -> dict[str, Any]:
    """What `save` left beside the model, after a look at all of it; transformers' own `save_pretrained` leaves none."""
    if not is_checkpoint(folder):
        raise UserError(f"{folder} holds no sliced model; name a folder that slicing wrote")
    if not (folder / RECORD).is_file():
        return {"format": FORMAT}
    record = _said_by(folder / RECORD)
    version = record.get("format")
    wanted = {FORMAT: {"made"}, FORMAT_BEFORE: {"made", "config", "layers"}}
    if version not in wanted or not wanted[version] <= record.keys():
        raise UserError(
            f"{folder / RECORD} cannot be read or is of format {version!r}, this version reads {FORMAT}; "
            "copy the folder again, or slice the model again"
        )
    if not (folder / WEIGHTS).is_file() or _digest(folder, record) != record.get("sha256"):
        raise UserError(
            f"{WEIGHTS}, {CONFIG} or {RECORD} in {folder} is not what was saved there; copy the folder again"
        )
    return record


def _digest(folder: Path, record: dict[str, Any]) -> str:
    """SHA-256 of the weights and of all else that is said of them: one head map edited makes another model."""
    with (folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    said = {name: value for name, value in json.loads(json.dumps(record)).items() if name != "sha256"}
    if record["format"] != FORMAT_BEFORE:
        said["config"] = _said_by(folder / CONFIG)
    digest.update(json.dumps(said, sort_keys=True).encode())
    return digest.hexdigest()
