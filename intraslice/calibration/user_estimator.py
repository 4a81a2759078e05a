"""Estimators from user files, by `path.py:function` or `path.json`.

A JSON file contains the importances of every layer (`untrusted/layer_files.py`), such as the command `search`
writes. A Python file is executed, so the caller must trust it. Its function receives the statistics of one layer,
`LayerCalibration`, and returns the importance of its units, as `Importances` or as a pair of tensors:

    def importances(layer):
        # attention: equal parts of the input channels of o_proj, in their order, from single channels to whole heads
        channels = layer.attention_gradients.square().sum(0)  # (heads * dim)
        # mlp: neurons
        return channels, layer.mlp_gradients.square().sum(0)  # (neurons)

Importances are the expected increase of the loss when each unit is removed, on one scale for all layers: finite numbers
from 0. The function is called once per layer, when a model is calibrated or its calibration is loaded.
"""

import hashlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from intraslice.core.cache import cache_path, write_result
from intraslice.core.config import ModuleKind
from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators import Estimator, Importances, LayerCalibration
from intraslice.untrusted.layer_files import importances_json, read_importances


def load_estimator(spec: str) -> Estimator:
    """Load the file of `path.json` or `path.py:function`, and register an estimator for it; or find it by its name.

    Its name consists of file, function and a digest of the file, since results are cached by it: another version of the
    file is another estimator. If `spec` ends in `@digest`, the file must have that digest.

    Raises:
        UserError: the spec is invalid, or the file is missing, fails, or has another digest.
    """
    if spec in ESTIMATORS:
        return ESTIMATORS[spec]
    file, expected = spec, ""
    if "@" in spec.rpartition("/")[2]:
        file, _, expected = spec.rpartition("@")
    file, function = (file, "") if file.endswith(".json") else file.rpartition(":")[::2]
    path = Path(file).expanduser()
    if path.suffix != ".json" and (path.suffix != ".py" or not function.isidentifier()):
        raise UserError(
            f"estimator must be one of {', '.join(ESTIMATORS)}, path.py:function or path.json, got {spec!r}"
        )
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); pass the path of your estimator's file") from error
    digest = hashlib.sha256(source).hexdigest()[:8]
    if expected and expected != digest:
        raise UserError(
            f"{path.name} has the digest {digest}, expected {expected}; leave out @{expected} to use any version"
        )
    if path.name.split() != [path.name]:
        raise UserError(f"{path.name!r} has spaces in its name; rename it to one word, such as mine.py")
    name = f"{path.name}:{function}@{digest}" if function else f"{path.name}@{digest}"
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    neurons = None
    if function:
        compute = _function(path, source, function, f"user_estimator_{digest}")
    else:
        layers = read_importances(path)
        compute, neurons = _from_file(path.name, layers), tuple(len(layer["mlp"]) for layer in layers)
    label = f"{function} ({path.name})" if function else path.stem
    explanation = f"{function} of {path.name}" if function else path.name
    return ESTIMATORS.register(Estimator(name, label, explanation, _checked(name, compute), "units", neurons))


def register_importances(layers: Sequence[dict[ModuleKind, list[float]]]) -> str:
    """The name of an estimator with these importances of every layer, also kept in the cache if possible."""
    text = importances_json(layers)
    file = cache_path("search", ".json", "importances", text)
    write_result(file, lambda path: path.write_text(text, encoding="utf-8"), "the importances", len(text))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, file.name)
        copy.write_text(text, encoding="utf-8")
        return load_estimator(str(copy)).name


def _from_file(name: str, layers: Sequence[Mapping[ModuleKind, list[float]]]) -> Callable[[LayerCalibration], Any]:
    def importances(layer: LayerCalibration) -> tuple[list[float], list[float]]:
        if layer.index >= len(layers):
            raise UserError(f"{name} has {len(layers)} layers, and the model has more; expected a file for this model")
        return layers[layer.index]["attention"], layers[layer.index]["mlp"]

    return importances


def _function(path: Path, source: bytes, function: str, module_name: str) -> Callable[[LayerCalibration], Any]:
    module = sys.modules[module_name] = ModuleType(module_name)
    module.__file__ = str(path)
    try:
        exec(compile(source, path, "exec"), vars(module))  # an import could take the bytecode of an older version
    except Exception as error:  # a user's file may raise anything
        raise UserError(f"{path.name} cannot be run ({_message(error)}); correct it and try again") from error
    value = getattr(module, function, None)
    if not callable(value):
        raise UserError(f"{path.name} does not define a function {function!r}; name one that it defines")
    return value


def _checked(name: str, function: Callable[[LayerCalibration], Any]) -> Callable[[LayerCalibration], Importances]:
    """The function with validation of its result. An estimator that fails is forgotten: every calibration calls all."""

    def importance(layer: LayerCalibration) -> Importances:
        sizes = layer.sizes
        unit_counts = [sizes.heads * parts for parts in range(1, sizes.dim + 1) if sizes.dim % parts == 0]
        try:
            result = function(layer)
            attention, mlp = (result.attention, result.mlp) if isinstance(result, Importances) else result
            attention, mlp = (torch.as_tensor(values, dtype=torch.float32) for values in (attention, mlp))
            _require_importances(name, "mlp", mlp, [sizes.neurons])
            _require_importances(name, "attention", attention, unit_counts)
        except Exception as error:
            ESTIMATORS.pop(name, None)
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"estimator {name} failed ({_message(error)}); correct it so that it returns a pair (attention "
                "importances, MLP importances)"
            ) from error
        return Importances(attention, mlp)

    return importance


def _require_importances(name: str, module: str, values: Tensor, counts: list[int]) -> None:
    if values.dim() != 1 or len(values) not in counts:
        expected = " or ".join(map(str, counts))
        raise UserError(f"estimator {name} returns shape {tuple(values.shape)} for {module}; expected ({expected},)")
    if not (values.isfinite() & (values >= 0)).all():
        raise UserError(
            f"estimator {name} returns {module} importances below 0 or not finite; expected non-negative numbers"
        )


def _message(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
