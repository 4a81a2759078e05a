"""The page on a tiny model: a request, a session and a client that the tests of its parts share."""

import base64
import gzip
import json
import re
from collections.abc import Callable, Iterator
from datetime import date
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from stepping import OnlyWhileAwaited

from components import limits
from components.activations.measure import ShiftViews
from components.compare.measure import FactsCache
from components.compare.models import Columns
from components.export.measure import Publisher
from components.spectra.measure import SpectraViews
from components.state.precomputed import Entry, Manifest, Precomputed, write
from components.state.request import Request, parse
from components.state.session import Session
from components.state.settings import Settings
from components.state.views import ImportanceCurve, LayerView, PlanView
from components.ui import palette
from intraslice.calibration import driver
from intraslice.evaluation import perplexity
from intraslice.pretrained.sources import DEFAULT

SOMEBODY = "somebody"  # the id of an open page


class PageSession(Session):
    """Does real work on a tiny model; the default model stays what was precomputed, as if it were never loaded."""

    def prepare(self, request: Request, client: str) -> Iterator:
        return iter(()) if request.settings.model == DEFAULT else super().prepare(request, client)

    def measure(self, request: Request, client: str) -> Iterator:
        return iter(()) if request.settings.model == DEFAULT else super().measure(request, client)


def tiny_settings(home: Path, make_model: Callable, word_tokenizer: Callable) -> Settings:
    """Settings whose model and text are written to `home`. Token n is the word `wn`."""
    words = [f"w{index}" for index in range(4, 256)]
    model = make_model()
    model.generation_config.eos_token_id = None  # random weights end their answers at random
    model.save_pretrained(home / "tiny")
    word_tokenizer(words).save_pretrained(home / "tiny")
    paragraphs = [" ".join(words[(start * 7 + step * 3) % 252] for step in range(120)) for start in range(60)]
    (home / "text.txt").write_text("\n\n".join(paragraphs))
    return Settings(model=str(home / "tiny"), text=str(home / "text.txt"), sequences=8, length=32, sparsity=30)


def stepwise(session: Session) -> Session:
    """The session with jobs that go on only while somebody listens, so that every event is seen."""
    session.jobs.scheduler = OnlyWhileAwaited()
    return session


def in_job(session: Session, function: Callable, *arguments: Any, **options: Any) -> Any:
    """What `function(job, ...)` returns in a job of the session."""
    return session.jobs.scheduler.start("tests", lambda job: function(job, *arguments, **options)).join()


def precomputed_for(folder: Path, request: Request, weights: str, **results: Any) -> Precomputed:
    """A layer with results of a request's model by kind, measured before on 2,560 tokens."""
    key = request.calibration
    manifest = Manifest(key.model, "Tiny weights", {key.dtype: weights}, key.config)
    for kind, result in results.items():
        manifest = write(folder / "tiny", manifest, kind, result, Entry(date(2026, 11, 30), key.dtype, 2560))
    return Precomputed(folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_llama_gqa, word_tokenizer):
    """A request for a tiny model; the cache is this module's."""
    home = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        patch.setattr(limits, "STATUS_SECONDS", 0.0)
        yield parse(tiny_settings(home, tiny_llama_gqa, word_tokenizer))


@pytest.fixture(scope="module")
def session(tiny) -> Session:
    """A session in which the tiny model is calibrated."""
    session = stepwise(Session(evaluation_tokens=256))
    *_, last = session.prepare(tiny, SOMEBODY)
    assert last.kind == "ready", last.text
    return session


@pytest.fixture
def fresh(own_cache) -> Session:
    """A session that knows nothing, with an empty cache."""
    return stepwise(Session(evaluation_tokens=256))


@pytest.fixture
def one_by_one(monkeypatch) -> None:
    """A sequence and a window at a time."""
    for module in (driver, perplexity):
        monkeypatch.setattr(module, "TOKENS_PER_BATCH", 1)


def kept_rows(dense: torch.Tensor, sliced: torch.Tensor) -> list[bool]:
    """Of each row of a dense matrix, whether the sliced one has it."""
    rows = {tuple(row) for row in sliced.flatten(0, -2).tolist()}
    return [tuple(row) in rows for row in dense.flatten(0, -2).tolist()]


def publisher(session: Session) -> Publisher:
    """As the Export tab has it."""
    return Publisher(SpectraViews(session), ShiftViews(session), FactsCache(Columns(session)))


def options_of(request: Request) -> list[str]:
    """The options of a command that say the model, the texts and their sizes."""
    own = request.settings
    texts = ["--calibration", own.text, "--eval", own.text]
    return ["--model", own.model, *texts, "--sequences", str(own.sequences), "--length", str(own.length)]


def answer_text(column: str) -> str:
    """The text of an answer in its column (HTML)."""
    return unescape(re.sub("<[^>]*>", "", re.search('<p class="isx-text[^"]*">(.*?)</p>', column, re.DOTALL)[1]))


def content_of(page: str) -> Any:
    """What a published page (HTML) holds."""
    return unpacked(re.search(r'<script id="content"[^>]*>(.*?)</script>', page, re.DOTALL)[1])


def unpacked(text: str) -> Any:
    """The content of a published document, as `page.js` unpacks it."""
    parts: list[Any] = []
    for line in gzip.decompress(base64.b64decode(text)).decode().split("\n"):
        parts.append(json.loads(line, object_hook=lambda node: parts[node["$"]] if "$" in node else node))
    return parts[-1]


def plan_view(layers: int = 4, estimator: str = "pca") -> PlanView:
    ratios = [(0.1 * index, 0.5 - 0.1 * index) for index in range(layers)]
    sizes = {"parameters_dense": 1000, "parameters_sliced": 700, "decoder": (900, 600)}
    sizes |= {"kv": (400.0, 300.0), "target_sparsity": 0.3, "removed": 0.298, "bias": 1.1, "cap": 0.8}
    kept = tuple(LayerView(a, m, 5, 9, 48, 64, 1000, 1536) for a, m in ratios)
    others = {"uniform": ((0.3, 0.3),) * layers, "fisher": tuple(ratios)}
    return PlanView(estimator=estimator, layers=kept, others=others, **sizes)


def curves(threshold: float | None = 0.5) -> dict[str, ImportanceCurve]:
    below = 0.0 if threshold is None else 0.25
    curve = ImportanceCurve("neurons", [8.0, 2.0, 0.5, 0.0], [4.0, 1.0, 0.6, 0.1], threshold, below, below)
    return {"attention": curve, "mlp": curve}


def in_light(node):
    """The figure as the browser colours it."""
    colours = {**palette.COLOURS, **palette.FAINT}
    if isinstance(node, str) and node.startswith("@"):
        return colours[node[1:]].light
    if isinstance(node, dict):
        return {key: in_light(value) for key, value in node.items()}
    return [in_light(value) for value in node] if isinstance(node, list) else node
