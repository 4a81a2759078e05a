"""The page on a tiny model: settings, a session and a visitor that the tests of its parts share."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from components.activations.measure import ShiftViews
from components.compare.models import Columns
from components.export.published.measure import Publisher
from components.session.session import Session
from components.session.settings import Settings
from components.session.work import jobs
from components.session.work.scheduler import Scheduler
from components.spectra.measure import SpectraViews

SOMEBODY = SimpleNamespace(session_hash="somebody", query_params={})


def tiny_settings(home: Path, make_model: Callable, word_tokenizer: Callable) -> Settings:
    """Settings whose model and text are written to `home`. Token n is the word `wn`."""
    words = [f"w{index}" for index in range(4, 256)]
    model = make_model()
    model.generation_config.eos_token_id = None  # random weights end their answers at random
    model.save_pretrained(home / "tiny")
    word_tokenizer(words).save_pretrained(home / "tiny")
    paragraphs = [" ".join(words[(start * 7 + step * 3) % 252] for step in range(120)) for start in range(60)]
    (home / "text.txt").write_text("\n\n".join(paragraphs))
    return Settings(model=str(home / "tiny"), text=str(home / "text.txt"), sequences=8, length=32)


def stepwise(session: Session) -> Session:
    """The session without its worker: jobs go on only while somebody listens, so that every event is seen."""
    session.jobs.scheduler = Scheduler(worker=False)
    return session


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_llama_gqa, word_tokenizer):
    """Settings for a tiny model; the cache is this module's."""
    home = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        patch.setattr(jobs, "EVERY", 0.0)
        yield tiny_settings(home, tiny_llama_gqa, word_tokenizer)


@pytest.fixture(scope="module")
def session(tiny) -> Session:
    """A session in which the tiny model is calibrated."""
    session = stepwise(Session(evaluation_tokens=256))
    *_, last = session.prepare(tiny, SOMEBODY.session_hash)
    assert last.kind == "ready", last.text
    return session


def publisher(session: Session) -> Publisher:
    """As the Export tab has it."""
    return Publisher(SpectraViews(session), ShiftViews(session), Columns(session))
