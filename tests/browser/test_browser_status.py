"""The status line in a real browser: whatever ends a job, nothing of what it said remains."""

import random
from collections.abc import Callable, Iterator

import pytest
from browsing import Opened

from components.i18n.language import translate
from components.jobs.job import Job
from components.jobs.status import Status
from components.state.session import Session

NOTHING = "no words"
# What jobs say, in the order in which they say it; those of the first row go on when the slider moves.
PREPARING = ("Loading", "Calibrating")
MEASURING = ("Perplexity of the dense model, window", "Slicing, layer", "Perplexity of the sliced model, window")
ENDS = ("moved", "cancelled", "failed")


class Gate:
    """Where a job that has said something that begins with `words` goes no further, or fails."""

    def __init__(self, emit: Callable[[Job, object], None]) -> None:
        self.words, self.fails, self._emit = NOTHING, False, emit

    def emit(self, job: Job, event: object) -> None:
        self._emit(job, event)
        while isinstance(event, Status) and translate(event.text).startswith(self.words):
            if self.fails:
                raise OSError("the disk is full")
            job.sleep(0.02)


@pytest.fixture
def gate(monkeypatch, page_session: Session) -> Iterator[Gate]:
    gate = Gate(Job.emit)
    monkeypatch.setattr(Job, "emit", lambda job, event: gate.emit(job, event))
    monkeypatch.setattr(page_session, "prefetch", lambda request, client: None)  # says nothing of what it makes
    yield gate
    gate.words = NOTHING


SAYS = """([words, hasBar]) => {
    const status = document.querySelector('#status');
    return status.innerText.includes(words) && (hasBar || !status.querySelector('progress'));
}"""


def says(opened: Opened, words: str, has_bar: bool = False) -> None:
    """Wait for the status: what a job that has ended said stays for ever where nothing takes its place."""
    opened.until(SAYS, arg=[words, has_bar])


def test_the_status_ends_with_its_job_whatever_ends_that(visit, tiny_query, page_session: Session, gate) -> None:
    chance = random.Random(0)
    gate.words = PREPARING[0]
    opened = visit(f"{tiny_query}&dtype=float32")  # which no other test loads
    for words in (*PREPARING, *MEASURING):
        gate.words, gate.fails = words, False
        for end in chance.sample(ENDS, 2 if words in PREPARING else 3):
            says(opened, words, has_bar=True)
            if end == "moved":
                opened.slide(chance.uniform(1, 60))  # nothing is measured there: the slider is not released
                says(opened, *((words, True) if words in PREPARING else ("Calibrated on",)))
            elif end == "cancelled":
                opened.page.click("#cancel")
                says(opened, "Cancelled.")
            else:
                gate.fails = True
                says(opened, "The disk is full.")
                gate.fails = False
            if words in MEASURING:
                opened.page.press("#sparsity input[type=range]", "ArrowRight")
            elif end != "moved":
                opened.call("#calibrate")
                says(opened, words, has_bar=True)
    gate.words = NOTHING
    says(opened, "Calibrated on")
    arriving = ["<!--5-->b", "<!--4-->a", "<!--5-->c", "d"]
    shown = opened.page.evaluate("texts => texts.map(text => isx.newest('an element', text))", arriving)
    assert shown == ["b", "b", "c", "c"]
