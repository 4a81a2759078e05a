"""The read-only layer under the page's caches: results that it ships with in `assets/cache/`.

It has a folder for each set of weights, with a manifest and a file for each kind of result, which `python -m
components.make_snapshots` writes. Of other weights than those of the loaded model only plans are made.

The `Profile`s of a running calibration, for the ratios' convergence, are cached in such files, too.
"""

import datetime
import json
import lzma
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from intraslice.core.cache import cache_path, read_result, write_result
from intraslice.core.config import MODULE_KINDS, CalibrationConfig, SliceConfig
from intraslice.evaluation.facts import Fact, Question
from intraslice.evaluation.perplexity import Estimate
from intraslice.loading import LoadedModel
from intraslice.planning.estimators import Importances
from intraslice.planning.kept_heads import HeadTable
from intraslice.planning.profile import LayerProfile, Profile
from intraslice.planning.sizes import LayerSizes
from intraslice.pretrained.precision import Precision

from ..assets import ASSETS
from ..i18n.language import LazyString, day, lazy_gettext
from .plan_views import Source
from .request import DENSE, NOTHING_REMOVED, CalibrationKey
from .units import ModelUnits, load_units, save_units
from .views import Provenance

Value = TypeVar("Value")

FOLDER = ASSETS / "cache"
MANIFEST = "manifest.json"
KINDS = ("choice", "profile", "units", "perplexity", "spectra", "shift", "sensitivity", "facts")
CHOICE, PROFILE, UNITS, PERPLEXITY, SPECTRA, SHIFT, SENSITIVITY, FACTS = KINDS
DIGITS = 9  # significant: all of float32
FORMAT = "3"  # of cached profiles: raise it when changed code alters them


class Entry(NamedTuple):
    """When, in which precision and on how many tokens a result was measured."""

    day: datetime.date
    dtype: Precision
    tokens: int


class Found(NamedTuple, Generic[Value]):
    """A precomputed result, and the digest of the weights that it is of."""

    value: Value
    entry: Entry
    source: Provenance
    weights: str


@dataclass(frozen=True)
class Manifest:
    """What the results of a folder belong to."""

    model: str  # its name in the page's list of models
    name: str  # of the weights, for people
    weights: Mapping[Precision, str]  # `LoadedModel.weights_digest`
    calibration: CalibrationConfig
    entries: Mapping[str, Entry] = field(default_factory=dict)  # by kind

    def has(self, kind: str, key: CalibrationKey) -> bool:
        """Whether it has a result of this calibration, perhaps with other weights."""
        return kind in self.entries and (self.model, self.calibration) == (key.model, key.config)

    def has_weights(self, key: CalibrationKey) -> bool:
        """Whether the model has these weights. Before it is loaded, it is assumed to: its file is pinned."""
        return not key.weights or key.weights in self.weights.values()

    def provenance(self, kind: str) -> Provenance:
        """Where a result comes from."""
        config, on_day = self.calibration, LazyString(lambda: day(self.entries[kind].day))
        label = lazy_gettext(
            "{model} on {sequences} x {length} tokens of Wikipedia's lead sections, {day}.",
            model=self.name,
            sequences=config.sequences,
            length=config.length,
            day=on_day,
        )
        return Provenance("before", config.sequences, config.sequences, on_day, label)


class Precomputed:
    """The results of all manifests."""

    def __init__(self, folder: Path = FOLDER) -> None:
        read = TypeAdapter(Manifest).validate_json
        self.manifests = {path.parent: read(path.read_bytes()) for path in sorted(folder.glob(f"*/{MANIFEST}"))}
        self._found: Callable[[Path, str, Any], Found[Any]] = cache(self._read)  # asked for at every move of the slider
        self._sources: dict[tuple[Path, CalibrationKey], Source] = {}  # they rank their units once

    def find(self, kind: str, key: CalibrationKey, form: type[Value]) -> Found[Value] | None:
        """The result of this kind, which is a `form`, for a calibration and the weights of its model, or None."""
        for folder, manifest in self.manifests.items():
            if manifest.has(kind, key) and manifest.has_weights(key):
                return self._found(folder, kind, form)
        return None

    def _read(self, folder: Path, kind: str, form: Any) -> Found[Any]:
        manifest, text = self.manifests[folder], lzma.decompress((folder / f"{kind}.json.xz").read_bytes())
        entry = manifest.entries[kind]
        value, weights = TypeAdapter(form).validate_json(text), manifest.weights.get(entry.dtype, "")
        return Found(value, entry, manifest.provenance(kind), weights)

    def source(self, key: CalibrationKey) -> Source | None:
        """What plans of a calibration are computed from before it is made, preferably of the model's own weights."""
        found = [entry for entry in self.manifests.items() if entry[1].has(PROFILE, key)]
        if not found:
            return None
        folder, manifest = max(found, key=lambda entry: entry[1].has_weights(key))
        if (folder, key) not in self._sources:
            profile = load_profile(folder / f"{PROFILE}.npz")
            profile = replace(profile, bytes_per_value=getattr(torch, key.dtype).itemsize)
            # The model's head is tied to its embeddings; outside of the layers there is only the last norm besides.
            head_weights = profile.other_parameters - profile.layers[0].sizes.hidden
            units = load_units(folder / f"{UNITS}.npz") if manifest.has(UNITS, key) else None
            self._sources[folder, key] = Source(profile, head_weights, key, manifest.provenance(PROFILE), units)
        return self._sources[folder, key]


class Line(NamedTuple):
    """Measurements of a sliced model: values and standard errors; speeds in multiples of the dense model's."""

    estimator: str
    order: str
    percent: int  # of sparsity
    perplexity: float
    perplexity_error: float | None
    ratio: float  # to the dense model's perplexity
    ratio_error: float | None
    divergence: float  # KL, nats per token
    divergence_error: float | None
    prefill: float | None = None
    decode: float | None = None


@dataclass(frozen=True)
class Measurements:
    """Measurements on the held-out text by estimator, order and percentage, with otherwise the default settings."""

    window: int  # tokens
    dense: Estimate  # perplexity
    lines: tuple[Line, ...] = ()
    threads: int = 1  # of the speeds

    def at(self, slicing: SliceConfig) -> Line | None:
        """The line of a setting; None if there is none, such as for a percentage between whole ones."""
        line = self._of(slicing).get(round(100 * slicing.sparsity))
        return line if line and math.isclose(line.percent, 100 * slicing.sparsity) else None

    def curve(self, slicing: SliceConfig) -> dict[float, float]:
        """Perplexity by sparsity (a fraction) of the setting's estimator and order, to interpolate between."""
        return {percent / 100: line.perplexity for percent, line in self._of(slicing).items()}

    def _of(self, slicing: SliceConfig) -> dict[int, Line]:
        """The lines of a setting's estimator and order, by percentage; empty unless the rest is the default."""
        series = {name: getattr(slicing, name) for name in ("sparsity", "estimator", "order")}
        is_stored = vars(slicing) == {**vars(NOTHING_REMOVED), **series}
        return self._series.get((slicing.estimator, slicing.order), {}) if is_stored else {}

    @cached_property
    def _series(self) -> dict[tuple[str, str], dict[int, Line]]:
        value, error = self.dense
        series: dict[tuple[str, str], dict[int, Line]] = {}
        for line in self.lines:
            dense = Line(line.estimator, line.order, 0, value, error, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)
            series.setdefault((line.estimator, line.order), {0: dense})[line.percent] = line
        return series


class FactsLine(NamedTuple):
    """A model's answers to all questions; its percentage is that of sparsity."""

    method: str
    percent: int
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class StoredFacts:
    """Answers to questions by method and percentage, with otherwise the settings that the page opens with."""

    questions: tuple[Question, ...]
    lines: tuple[FactsLine, ...] = ()

    def nearest(self, method: str, slicing: SliceConfig, opening: SliceConfig) -> FactsLine | None:
        """The line of a method whose percentage is nearest to a setting's; None if it has none."""
        lines = [line for line in self.lines if line.method == method]
        is_stored = slicing == replace(opening, sparsity=slicing.sparsity)
        if not lines or not (is_stored or method == DENSE):
            return None
        return min(lines, key=lambda line: abs(line.percent - 100 * slicing.sparsity))


def write(folder: Path, manifest: Manifest, kind: str, value: Any, entry: Entry) -> Manifest:
    """Write a result, whose numbers get `DIGITS` significant digits; returns the manifest with its entry."""
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(value, Profile):
        save_profile(value, folder / f"{kind}.npz")
    elif isinstance(value, ModelUnits):
        save_units(value, folder / f"{kind}.npz")
    else:
        numbers = json.loads(json.dumps(asdict(value)), parse_float=lambda text: float(f"{float(text):.{DIGITS}g}"))
        (folder / f"{kind}.json.xz").write_bytes(lzma.compress(json.dumps(numbers).encode()))
    manifest = replace(manifest, entries={**manifest.entries, kind: entry})
    (folder / MANIFEST).write_bytes(TypeAdapter(Manifest).dump_json(manifest, indent=1) + b"\n")
    return manifest


def save_profile(profile: Profile, path: Path) -> None:
    """Write a profile with layers of equal size."""
    layers = profile.layers
    importances = {
        f"{estimator}_{module}": torch.stack(profile.importances(estimator, module)).float().cpu().numpy()
        for estimator in profile.estimators
        for module in MODULE_KINDS
    }
    about = {
        "estimators": profile.estimators,
        "sizes": asdict(layers[0].sizes),
        "kv_head": layers[0].kv_head,
        "other_parameters": profile.other_parameters,
        "bytes_per_value": profile.bytes_per_value,
    }
    arrays: dict[str, Any] = {
        **importances,
        "alive": np.packbits(np.stack([layer.table.alive.cpu().numpy() for layer in layers]), axis=-1),
        "dim": np.stack([layer.table.dim.cpu().numpy() for layer in layers]).astype(np.int16),
        "about": json.dumps(about),
    }
    if rules := [layer.table.rule for layer in layers if layer.table.rule is not None]:
        arrays["rule"] = np.stack([rule.cpu().numpy() for rule in rules]).astype(np.int8)
    np.savez_compressed(path, **arrays)


def load_profile(path: Path) -> Profile:
    """The profile in a file."""
    with np.load(path) as arrays:
        about = json.loads(str(arrays["about"]))
        sizes = LayerSizes(**about["sizes"])
        alive = torch.from_numpy(np.unpackbits(arrays["alive"], axis=-1, count=sizes.heads).astype(bool))
        dim = torch.from_numpy(arrays["dim"].astype(np.int64))
        rule = torch.from_numpy(arrays["rule"].astype(np.int64)) if "rule" in arrays else [None] * len(dim)
        importances = {}  # by estimator, of each layer
        for estimator in about["estimators"]:
            stacked = (torch.from_numpy(arrays[f"{estimator}_{module}"]) for module in MODULE_KINDS)
            importances[estimator] = list(map(Importances, *stacked))
    kv_head = tuple(about["kv_head"])
    layers = tuple(
        LayerProfile(sizes, table, kv_head, {name: of_layers[index] for name, of_layers in importances.items()})
        for index, table in enumerate(map(HeadTable, alive, dim, rule))
    )
    return Profile(layers, about["other_parameters"], about["bytes_per_value"])


def cache_profile(loaded: LoadedModel, tokens: Tensor, sequences: int, profile: Profile) -> None:
    """Cache the profile from the first `sequences` of the calibration tokens (sequences, length)."""
    path = _folder(loaded, tokens) / f"{sequences}.npz"
    write_result(path, lambda temporary: save_profile(profile, temporary), "the convergence of the ratios")


def cached_profiles(loaded: LoadedModel, tokens: Tensor) -> dict[int, Profile]:
    """The cached profiles by their number of sequences; without damaged files."""
    files = _folder(loaded, tokens).glob("*.npz")
    return {int(path.stem): profile for path in files if (profile := read_result(path, load_profile))}


def _folder(loaded: LoadedModel, tokens: Tensor) -> Path:
    return cache_path("convergence", "", FORMAT, loaded.fingerprint, loaded.model.dtype, tokens)
