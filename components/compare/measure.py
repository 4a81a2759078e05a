"""What the Compare tab measures beside answers and costs: next tokens, scores of a passage, and short questions."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from intraslice.core import checks
from intraslice.core.errors import UserError
from intraslice.diagnostics.token_scores import compare_next_tokens, score_passage
from intraslice.evaluation.facts import (
    Fact,
    encode_questions,
    fact_changes,
    fact_questions,
    facts_record,
    measure_facts,
)
from intraslice.evaluation.generation import prompt_tokens
from intraslice.pretrained.tokenizer import encode, encodes_in_child

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..state.caches import BoundedCache
from ..state.precomputed import FACTS, StoredFacts
from ..state.request import DENSE, Request, SliceKey
from ..state.views import HERE
from .models import Column, Columns, columns_of, encode_off_turn
from .views import MAX_GUESSES, FactsColumn, FactsView, NextToken, Passage

JOB = "facts"
MAX_CANDIDATES = 8  # of either model


def next_tokens(job: Job, columns: Columns, request: Request, prompt: str, raw: bool) -> tuple[NextToken, ...]:
    """The most likely first tokens of the answer, inside a job. Raises UserError for an empty prompt."""
    checks.require_words("the prompt", prompt)
    loaded, sliced = columns.dense(job, request), columns.session.slice(job, request)
    job.emit(Status(lazy_gettext("Reading the prompt")))
    encode_off_turn(job, loaded.tokenizer, lambda: prompt_tokens(loaded.tokenizer, prompt, not raw))
    models, tokenizer, pause = (loaded.model, sliced), loaded.tokenizer, job.checkpoint
    return compare_next_tokens(*models, tokenizer, prompt, MAX_CANDIDATES, chat=not raw, pause=pause)


def score_tokens(job: Job, columns: Columns, request: Request, text: str) -> Passage:
    """The scores of a text's tokens, inside a job. Raises UserError for a text that is too short or too long."""
    loaded, sliced, text = columns.dense(job, request), columns.session.slice(job, request), text.strip()
    encode_off_turn(job, loaded.tokenizer, lambda: encode(loaded.tokenizer, text))
    count = len(encode(loaded.tokenizer, text))
    if not 2 <= count <= limits.MAX_PASSAGE_TOKENS:  # the first has no score
        raise UserError(
            "The passage must have 2 to {limit} tokens, got {count:,}.", count=count, limit=limits.MAX_PASSAGE_TOKENS
        )
    job.emit(Status(lazy_gettext("Scoring the passage")))
    return score_passage(loaded.model, sliced, loaded.tokenizer, text, MAX_GUESSES)


class FactsCache:
    """The answers of each model, by model and language."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._facts: BoundedCache[tuple[SliceKey, str], tuple[Fact, ...]] = BoundedCache(1000)

    def view(self, request: Request, language: str) -> FactsView | None:
        """The answers at a setting: those measured here, else stored ones of the nearest percentage; None without."""
        found = self.columns.session.precomputed.find(FACTS, request.calibration, StoredFacts)
        questions, columns = fact_questions(language), dict[str, FactsColumn]()
        for name, column in columns_of(request, None, "").items():
            key = column.key()
            stored = found and found.value.nearest(key.method, request.slicing)
            if here := self._facts.get((key, language)):
                columns[name] = FactsColumn(here)
            elif found and stored and found.value.questions == questions:
                columns[name] = FactsColumn(stored.facts, stored.percent)
        if DENSE not in columns:
            return None
        lost, gained = fact_changes(columns[DENSE].facts, columns.get("intraslice", columns[DENSE]).facts)
        is_stored = any(column.stored_at is not None for column in columns.values())
        source = found.source if found and is_stored else HERE
        return FactsView(questions, columns, 100 * request.slicing.sparsity, lost, gained, source)

    def measure(
        self, request: Request, pinned: Request | None, language: str, client: str
    ) -> Iterator[Status | FactsView]:
        """Measure all columns and the pinned setting; a view after each, or an error status. A move cancels it."""

        work, session = partial(self.complete, request=request, pinned=pinned, language=language), self.columns.session
        yield from session.jobs.run(client, JOB, work, ready=partial(session.ready, request), request=request)

    def complete(self, job: Job, request: Request, pinned: Request | None, language: str) -> FactsView | None:
        """Measure inside a job, where nothing is cached; emits a view after each column, and returns the last."""
        view = None
        for name, column in columns_of(request, pinned, "").items():
            with suppress(UserError) if name == "crossmodule" else nullcontext():  # it cannot reach every sparsity
                self.facts(job, column, language)
            if (view := self.view(request, language)) is not None:
                job.emit(view)
        return view

    def record(self, job: Job, request: Request, language: str) -> dict[str, Any]:
        """What `python -m intraslice evaluate --facts` measures, as JSON. Raises UserError as `facts` does."""
        names = {"dense": DENSE, "sliced": "intraslice"}
        facts = {name: self.facts(job, Column(request, method), language) for name, method in names.items()}
        return facts_record(fact_questions(language), facts)

    def facts(self, job: Job, column: Column, language: str) -> Sequence[Fact]:
        """The answers of a column's model, measured now or cached. Raises UserError if there is no such model."""
        key = column.key(), language
        if cached := self._facts.get(key):
            return cached
        tokenizer = self.columns.dense(job, column.request).tokenizer
        with job.waiting() if encodes_in_child(tokenizer) else nullcontext():
            questions = encode_questions(tokenizer, fact_questions(language))
        model = self.columns.model(job, column.request, column.method)

        def measure(job: Job) -> tuple[Fact, ...]:
            report = job_progress(job, lazy_gettext("Asking the {method} model, question", method=column.method))
            return self._facts.put(key, measure_facts(model, tokenizer, questions, progress=report))

        return job.share((JOB, key), measure)
