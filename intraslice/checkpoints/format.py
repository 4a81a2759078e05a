"""Saves a sliced model as a folder and loads it without the dense model. Nothing is unpickled.

The folder is in transformers format; its `config.json` has the shape of every layer (see auto_class.py).
`intraslice.json` records how the model was made, with a SHA-256 of that record, the shapes and the weights.
"""

import copy
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from intraslice.checkpoints.auto_class import RECORD, WEIGHTS, IntraSliceConfig, IntraSliceForCausalLM, shape_of
from intraslice.checkpoints.model_card import CARD, model_card
from intraslice.core.cache import resumable_write, temporary_sibling, write_whole
from intraslice.core.errors import UserError
from intraslice.modeling.hidden_states import require_model
from intraslice.modeling.offload import fetch_tensor
from intraslice.pretrained import reader
from intraslice.pretrained.reader import Weights, read_json, weight_files

FORMAT = 3
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"


def is_checkpoint(folder: str | Path) -> bool:
    """Whether the folder holds a sliced model, written by `save` or by `save_pretrained`."""
    folder = Path(folder).expanduser()
    model_type = _read_json_or_empty(folder / CONFIG).get("model_type")
    return (folder / RECORD).is_file() or model_type == IntraSliceConfig.model_type


def require_free(folder: Path) -> None:
    """Raise UserError if `folder` cannot be moved into place: a checkpoint never overwrites anything."""
    if folder.is_symlink() or os.path.ismount(folder):
        raise UserError(f"{folder} is a link or a mount point, which cannot be replaced; name a new folder inside it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; name a new folder, or remove that one first")


def require_new_file(file: str | Path, suffix: str) -> Path:
    """The expanded path of a file to write later. Raises UserError if it exists or cannot be written."""
    file = Path(file).expanduser()
    if file.suffix != suffix:
        raise UserError(f"the file name must end in {suffix}, got {file}")
    if file.exists():
        raise UserError(f"{file} exists; name a new file, or remove that one first")
    try:
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {file.parent} ({error.strerror or error}); name another folder") from error
    return file


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path, record: dict[str, Any]
) -> None:
    """Write a sliced model. `record` (source, plan, protocol ...) is saved unchanged, so it must be JSON.

    The folder is created atomically. Raises UserError if it exists and is not empty, or if the disk is full.
    """
    require_model(model)
    folder = Path(folder).expanduser()
    require_free(folder)
    tensors = {name: fetch_tensor(model, name, tensor) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    config = IntraSliceConfig.of(model, record)
    with written_whole(folder, sum(tensor.nbytes for tensor in tensors.values())) as temporary:
        temporary.mkdir()
        write_tensors(tensors, temporary / WEIGHTS)
        write_parts(temporary, model, tokenizer, config, folder.name)


@contextmanager
def written_whole(target: Path, size: float) -> Iterator[Path]:
    """A path for the content of `target`, moved there on exit, atomically. Raises UserError if the disk is full."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_sibling(target) as scratch:
            yield scratch / target.name
            if target.exists():  # an empty folder
                target.rmdir()
            os.replace(scratch / target.name, target)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"cannot write {size / 1e6:.0f} MB to {target}: {error}; nothing was written. Free some space, or choose "
            "another folder"
        ) from error


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a safetensors file with the permissions of any new file; safetensors would let its owner alone read it."""
    file.touch()
    mode = file.stat().st_mode
    stored = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(stored, file, metadata={"format": "pt"})
    file.chmod(mode)


def write_parts(
    temporary: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: IntraSliceConfig, name: str
) -> None:
    """Write the files of the model folder `name` except its tensors, last the record, with a checksum of all."""
    tokenizer.save_pretrained(temporary)
    config.save_pretrained(temporary)
    generation = copy.deepcopy(model.generation_config)
    generation.compile_config = None  # which transformers does not read
    # `save_pretrained` refuses what many published models have, such as a temperature without sampling.
    generation.to_json_file(temporary / "generation_config.json")
    (temporary / CARD).write_text(model_card(config, name), encoding="utf-8")
    content: dict[str, Any] = {"format": FORMAT, "record": config.record}
    content["sha256"] = _digest(temporary, content)
    (temporary / RECORD).write_text(json.dumps(content, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class Shards:
    """A model folder that is written layer by layer: a shard for each layer, and the first one for all other weights.

    A shard is written whole or not at all. `folder` is one that the same run finds again; beside it are the shapes of
    the layers that are written.
    """

    folder: Path
    model: PreTrainedModel

    def has_layer(self, index: int) -> bool:
        """Whether the layer is written."""
        return self._file(index + 1).exists() and bool(_read_json_or_empty(self._shape(index)))

    def write_layer(self, index: int) -> None:
        """Write a layer in its present state. Raises UserError if it cannot be written."""
        layer = self.model.model.layers[index]
        self._write(index + 1, {f"model.layers.{index}.{name}": tensor for name, tensor in layer.state_dict().items()})
        shape = json.dumps(shape_of(layer))
        write_whole(self._shape(index), lambda partial: partial.write_text(shape, encoding="utf-8"))

    def finish(self, tokenizer: PreTrainedTokenizerBase, record: dict[str, Any], target: Path) -> None:
        """Write all else and move the folder to `target`. After a UserError, the same run may be started again."""
        names = [name for name in self.model.state_dict() if not name.startswith("model.layers.")]
        if self.model.config.tie_word_embeddings:
            names.remove("lm_head.weight")
        self._write(0, {name: fetch_tensor(self.model, name, self.model.get_parameter(name)) for name in names})
        with resumable_write(target):
            tensors = {file: reader.safetensors_shapes(file) for file in self.folder.glob("*.safetensors")}
            places = {name: file.name for file, shapes in tensors.items() for name in shapes}
            values = sum(math.prod(shape) for shapes in tensors.values() for shape in shapes.values())
            total = {"total_size": values * self.model.dtype.itemsize}
            index = {"metadata": total, "weight_map": dict(sorted(places.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
            layers = [read_json(self._shape(index)) for index in range(len(self.model.model.layers))]
            config = IntraSliceConfig.of(self.model, record, layers)
            write_parts(self.folder, self.model, tokenizer, config, target.name)
            if target.exists():  # and is empty
                target.rmdir()
            os.replace(self.folder, target)

    def _write(self, shard: int, tensors: dict[str, Tensor]) -> None:
        write_whole(self._file(shard), lambda partial: write_tensors(tensors, partial))

    def _file(self, shard: int) -> Path:
        return self.folder / f"model-{shard + 1:05d}-of-{len(self.model.model.layers) + 1:05d}.safetensors"

    def _shape(self, index: int) -> Path:
        return self.folder.with_name(f"shape.{index}")


def load(
    folder: str | Path, device: str = "cpu", dtype: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Load a folder that `save` wrote: the model (with `generate()`), its tokenizer, and the record of its slicing.

    Raises UserError if a file is missing, truncated, or not the one that was saved.
    """
    folder = Path(folder).expanduser()
    _verify(folder)
    with reader.as_user_error(f"{folder} is not a complete sliced checkpoint", "copy the folder again"):
        config = IntraSliceConfig.from_pretrained(folder)
        with reader.quiet_transformers():
            model, report = IntraSliceForCausalLM.from_pretrained(
                folder, config=config, dtype=dtype or "auto", output_loading_info=True
            )
        tokenizer = reader.read_tokenizer(Weights(folder, str(folder)))
        if wrong := sorted(str(name) for names in report.values() for name in names):
            raise ValueError(f"the tensors do not match the model's configuration: {wrong[0]}")
    tokenizer.padding_side = "left"
    return model.requires_grad_(False).to(device), tokenizer, config.record or {"source": str(folder)}


def _read_json_or_empty(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing or cannot be read."""
    try:
        return read_json(file)
    except (OSError, ValueError, RecursionError):
        return {}


def _verify(folder: Path) -> None:
    """Raise UserError unless the record and its SHA-256 are right; a folder that transformers wrote has no record."""
    if not is_checkpoint(folder):
        raise UserError(f"{folder} contains no sliced model; name a folder in which a sliced model was saved")
    if not (folder / RECORD).is_file():
        return
    record = _read_json_or_empty(folder / RECORD)
    # "made" is what older versions wrote.
    if record.get("format") != FORMAT or record.keys().isdisjoint(("record", "made")):
        raise UserError(
            f"{folder / RECORD} cannot be read or is of format {record.get('format')!r}, expected {FORMAT}; "
            "copy the folder again, or slice the model again"
        )
    try:
        intact = _digest(folder, record) == record.get("sha256")
    except (OSError, ValueError):  # no weights, or an index of shards that cannot be read
        intact = False
    if not intact:
        raise UserError(
            f"the weights, {CONFIG} or {RECORD} in {folder} are not what was saved there; copy the folder again"
        )


def _digest(folder: Path, record: dict[str, Any]) -> str:
    """SHA-256 of the weights, the record and the configuration: an edited head map makes a different model."""
    digest = hashlib.sha256()
    for shard in weight_files(folder):
        with shard.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    described = {name: value for name, value in json.loads(json.dumps(record)).items() if name != "sha256"}
    described["config"] = _read_json_or_empty(folder / CONFIG)
    digest.update(json.dumps(described, sort_keys=True).encode())
    return digest.hexdigest()
