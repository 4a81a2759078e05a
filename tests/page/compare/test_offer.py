"""A long wait for an answer of the server offers the user's own device, where that can run the models."""

import pytest
from tiny_page import SOMEBODY

from components.compare import handlers
from components.compare.models import Columns
from components.device import wllama
from components.i18n.language import use_language
from components.jobs.status import Status
from components.jobs.waiting import Waiting

LONG, SHORT = Waiting("Waiting; jobs ahead: 4", seconds_left=30), Waiting("Waiting; jobs ahead: 1", seconds_left=5)


@pytest.fixture
def told(session, tiny, monkeypatch):
    """The status of an answer whose job emits this one."""

    def status(event: Status, is_fetched: bool = True) -> str:
        monkeypatch.setattr(wllama, "is_fetched", lambda: is_fetched)
        monkeypatch.setattr(handlers.answers, "answer", lambda *_: iter([event]))
        question = "w10", 4, 0.0, 0, False, None, ""
        return list(handlers.answer(Columns(session), tiny, *question, SOMEBODY))[1].status

    return status


def test_a_long_wait_offers_the_device(told) -> None:
    assert "Waiting; jobs ahead: 4, about 30 s left. Choose “Run on: This device”" in told(LONG)
    with use_language("de"):
        assert "Waiting; jobs ahead: 4, noch etwa 30 s. Wer nicht auf den Server warten möchte" in told(LONG)


def test_a_short_wait_work_and_a_server_without_the_files_offer_nothing(told) -> None:
    for status in (told(SHORT), told(Status("Slicing", seconds_left=30)), told(LONG, is_fetched=False)):
        assert "Run on" not in status
