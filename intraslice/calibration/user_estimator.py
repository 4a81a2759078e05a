"""An estimator from a file of one's own, by `path.py:function` or `path.json`.

A JSON file has the importances themselves, layer by layer (`untrusted/importance_files.py`), such as `exchange` writes.
To run somebody's Python file is the caller's to allow. Its function is given the statistics of one layer's modules,
`LayerCalibration`, and answers with the importance of their units, as `Importances` or as a pair of tensors:

    def importances(layer):
        # attention: equal parts of the channels that enter o_proj, in their order, from all channels to whole heads
        channels = layer.attention_gradients.square().sum(0)  # (heads * dim)
        # mlp: neurons
        return channels, layer.mlp_gradients.square().sum(0)  # (neurons)

Importances are what the loss is expected to suffer without each unit, on one scale for all layers: finite, none below
0. It is called once a layer, when a model is calibrated or its calibration is opened.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from intraslice.core.errors import UserError
from intraslice.core.registry import ESTIMATORS
from intraslice.planning.estimators import Estimator, Importances, LayerCalibration
from intraslice.untrusted.importance_files import read_importances


def load_estimator(place: str) -> Estimator:
    """Read the file that `path.json` or `path.py:function` names, and register what it gives as an estimator.

    Its name is that of file and function with a digest of the file, since results are kept by it: another version of
    the file is another estimator. Where `place` has a digest, too, the file must be that version. Raises UserError for
    anything else.
    """
    where, expected = place, ""
    if "@" in place.rpartition("/")[2]:
        where, _, expected = place.rpartition("@")
    where, function = (where, "") if where.endswith(".json") else where.rpartition(":")[::2]
    path = Path(where).expanduser()
    if path.suffix != ".json" and (path.suffix != ".py" or not function.isidentifier()):
        raise UserError(f"estimator {place!r} is none of {', '.join(ESTIMATORS)}, and no path.py:function or path.json")
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    except OSError as error:
        raise UserError(f"{where} cannot be read ({error.strerror}); name the file of your estimator") from error
    if expected and expected != digest:
        raise UserError(
            f"{path.name} is of version {digest}, expected {expected}; leave out @{expected} to take it as it is"
        )
    if path.name.split() != [path.name]:
        raise UserError(f"{path.name!r} has blanks in its name; call it by one word, such as mine.py")
    name = f"{path.name}:{function}@{digest}" if function else f"{path.name}@{digest}"
    if name in ESTIMATORS:
        return ESTIMATORS[name]
    own = _function(path, function, f"own_estimator_{digest}") if function else _from_file(path)
    label = f"{function} ({path.name})" if function else path.stem
    explanation = f"{function} of {path.name}" if function else path.name
    return ESTIMATORS.register(Estimator(name, label, explanation, _checked(name, own), "units"))


def _from_file(path: Path) -> Callable[[LayerCalibration], Any]:
    layers = read_importances(path)

    def importances(layer: LayerCalibration) -> tuple[list[float], list[float]]:
        if layer.index >= len(layers):
            raise UserError(f"{path.name} has {len(layers)} layers, and the model more; expected its own file")
        return layers[layer.index]["attention"], layers[layer.index]["mlp"]

    return importances


def _function(path: Path, function: str, module_name: str) -> Callable[[LayerCalibration], Any]:
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # as for every .py file
    assert spec.loader is not None
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file does
        raise UserError(f"{path.name} cannot be run ({_said(error)}); mend it and try again") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise UserError(f"{path.name} has no function {function!r}; name one that it has")
    return found


def _checked(name: str, function: Callable[[LayerCalibration], Any]) -> Callable[[LayerCalibration], Importances]:
    """The function, whose answer is looked at before anything is made of it."""

    def importance(layer: LayerCalibration) -> Importances:
        try:
            answer = function(layer)
            attention, mlp = (answer.attention, answer.mlp) if isinstance(answer, Importances) else answer
            attention, mlp = (torch.as_tensor(values, dtype=torch.float32) for values in (attention, mlp))
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"estimator {name} failed ({_said(error)}); expected importances of attention, mlp"
            ) from error
        sizes = layer.sizes
        _require_importances(name, "mlp", mlp, [sizes.neurons])
        units = [sizes.heads * parts for parts in range(1, sizes.dim + 1) if sizes.dim % parts == 0]
        _require_importances(name, "attention", attention, units)
        return Importances(attention, mlp)

    return importance


def _require_importances(name: str, module: str, values: Tensor, counts: list[int]) -> None:
    if values.dim() != 1 or len(values) not in counts:
        expected = " or ".join(map(str, counts))
        raise UserError(f"estimator {name} gives {module} the shape {tuple(values.shape)}; expected ({expected},)")
    if not (values.isfinite() & (values >= 0)).all():
        raise UserError(f"estimator {name} gives {module} importances below 0 or not finite; expected numbers from 0")


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
