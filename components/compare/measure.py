"""Facts: each model's answers to the library's short questions, stored for the default model, or measured in a job."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from intraslice.core.errors import UserError
from intraslice.evaluation.facts import (
    Fact,
    encode_questions,
    fact_changes,
    fact_counts,
    fact_questions,
    facts_record,
    measure_facts,
)
from intraslice.pretrained.tokenizer import encodes_in_child

from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.jobs import job_progress
from ..jobs.status import Status
from ..state.caches import BoundedCache
from ..state.precomputed import FACTS, StoredFacts
from ..state.request import DENSE, Request, SliceKey
from ..state.views import HERE
from .models import Column, Columns, columns_of
from .views import FactsColumn, FactsView

JOB = "facts"


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
                columns[name] = FactsColumn(here, fact_counts(questions, here))
            elif found and stored and found.value.questions == questions:
                columns[name] = FactsColumn(stored.facts, fact_counts(questions, stored.facts), stored.percent)
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

        def work(job: Job) -> None:
            for name, column in columns_of(request, pinned, "").items():
                with suppress(UserError) if name == "crossmodule" else nullcontext():  # it cannot reach every sparsity
                    self.facts(job, column, language)
                if (view := self.view(request, language)) is not None:
                    job.emit(view)

        session = self.columns.session
        yield from session.jobs.run(client, JOB, work, ready=partial(session.ready, request), request=request)

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
