"""The short questions of the Compare tab, and all that a published page shows of the tab."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

from intraslice.core.errors import UserError
from intraslice.evaluation.facts import (
    Fact,
    encode_questions,
    fact_changes,
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
from ..state.choices import FACT_LANGUAGES
from ..state.precomputed import FACTS, StoredFacts
from ..state.request import DENSE, Request, SliceKey
from ..state.views import HERE, Reading
from .answers import score_tokens, write_answers
from .models import Column, Columns, columns_of
from .views import COLUMNS, FactsColumn, FactsView, Question

JOB = "facts"


class FactsCache:
    """The answers of each model, by model and language."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self._facts: BoundedCache[tuple[SliceKey, str], tuple[Fact, ...]] = BoundedCache(1000)

    def view(self, request: Request, language: str) -> FactsView | None:
        """The answers at a setting: those measured here, else stored ones of the nearest percentage; None without."""
        session = self.columns.session
        found, opening = session.precomputed.find(FACTS, request.calibration, StoredFacts), session.opening.slicing
        questions, columns = fact_questions(language), dict[str, FactsColumn]()
        for name, column in columns_of(request, None, "").items():
            key = column.key()
            stored = found and found.value.nearest(key.method, request.slicing, opening)
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
        ready = partial(session.ready, request)
        yield from session.jobs.run(client, JOB, work, ready=ready, request=request, language=language)

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


def measure_all(
    job: Job, cache: FactsCache, request: Request, prompts: Sequence[str], tokens: int, passage: str
) -> dict[str, Any]:
    """What a published page shows of the tab, by the names of its `Step`. Raises UserError for an invalid text.

    The cross-module numbers are None if that cannot reach the sparsity. Short questions are asked now unless those of
    this percentage are stored.
    """
    columns, session = cache.columns, cache.columns.session
    dense, _ = session.losses(job, request, session.calibrations.calibrate(job, request.calibration))
    cross, facts = columns.cross_losses(job, request), cache.view(request, FACT_LANGUAGES[0])
    if facts is None or not facts.is_exact or len(facts.columns) < len(COLUMNS):
        facts = cache.complete(job, request, None, FACT_LANGUAGES[0])
    answers = [write_answers(job, columns, request, Question(prompt, tokens)) for prompt in prompts]
    return {
        "costs": columns.cached_costs(request),
        "cross": None if cross is None else Reading(*cross.perplexity(), cross.done, cross.total),
        "cross_ratio": None if cross is None else Reading(*cross.ratio(dense), cross.done, cross.total),
        "answers": tuple(answers),
        "facts": facts,
        "passage": score_tokens(job, columns, request, passage) if passage else None,
    }
