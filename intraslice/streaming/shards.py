"""Writes a sliced model shard by shard: one file for each layer, and the first one for all other weights."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from intraslice.checkpoints.auto_class import IntraSliceConfig
from intraslice.checkpoints.format import write_parts, write_tensors
from intraslice.checkpoints.shapes import Shape, shape_of
from intraslice.core.errors import UserError
from intraslice.modeling.families import DenseModule
from intraslice.streaming.journal import Journal, write_whole
from intraslice.streaming.weights import StreamedModel

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Shards:
    """The folder of a sliced model that is being written. A shard is written whole or not at all."""

    folder: Path
    dense: StreamedModel
    journal: Journal  # step shape.N: the shape of layer N

    def has_layer(self, index: int) -> bool:
        """Whether the sliced layer is written."""
        return self.journal.is_finished(f"shape.{index}") and self._file(index + 1).exists()

    def write_layer(self, index: int, layer: DenseModule) -> None:
        """Write a sliced layer."""
        self._write(index + 1, {f"model.layers.{index}.{name}": tensor for name, tensor in layer.state_dict().items()})
        self.journal.write_json(f"shape.{index}", shape_of(layer))

    def finish(self, tokenizer: PreTrainedTokenizerBase, made: dict[str, Any], target: Path) -> None:
        """Write all other weights, the index of the shards, and the other files; move the folder to `target`.

        Raises UserError if they cannot be written; the same run may then be started again.
        """
        try:
            self._finish(tokenizer, made, target)
        except OSError as error:
            raise UserError(
                f"cannot write {target}: {error}; free some space and run the same command again; it continues where "
                "it stopped"
            ) from error

    def _finish(self, tokenizer: PreTrainedTokenizerBase, made: dict[str, Any], target: Path) -> None:
        if not self._file(0).exists():
            self._write(0, self.dense.read(self.dense.outer_names))
        shapes: list[Shape] = [self.journal.read_json(f"shape.{index}") for index in range(self.dense.layers)]
        places: dict[str, str] = {}
        total = 0
        for shard in range(self.dense.layers + 1):
            with safe_open(self._file(shard), framework="pt") as file:
                places |= dict.fromkeys(file.keys(), self._file(shard).name)
                total += sum(file.get_tensor(tensor).nbytes for tensor in file.keys())  # noqa: SIM118  not a dict
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        (self.folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
        config = IntraSliceConfig.with_shapes(self.dense.model, shapes, made)
        write_parts(self.folder, self.dense.model, tokenizer, config, target.name)
        if target.exists():  # and is empty
            target.rmdir()
        os.replace(self.folder, target)

    def _write(self, shard: int, tensors: dict[str, Tensor]) -> None:
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_whole(self._file(shard), lambda partial: write_tensors(tensors, partial))

    def _file(self, shard: int) -> Path:
        return self.folder / f"model-{shard + 1:05d}-of-{self.dense.layers + 1:05d}.safetensors"
