"""What dense and sliced model would say next, and what slicing costs every token of a passage, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator

from components.compare.models import Columns
from components.compare.views import Candidate, PassageToken, PassageView
from components.i18n.language import lazy_gettext
from components.jobs.job import Job
from components.jobs.status import Status
from components.state.request import Request
from intraslice.core.errors import UserError
from intraslice.diagnostics.token_scores import NextToken, TokenScore, compare_next_tokens, score_passage

NEXT = 8  # candidates of either model
ALTERNATIVES = 3
MAX_TOKENS = 512  # tokens of a passage: each is an element of the page
Found = tuple[Candidate, ...] | PassageView


def next_tokens(
    columns: Columns, request: Request, prompt: str, raw: bool, client: str
) -> Iterator[Status | tuple[Candidate, ...]]:
    """The likeliest first tokens of the answer; ends with a ready or an error status."""

    def work(job: Job) -> None:
        if not prompt.strip():
            raise UserError(lazy_gettext("The prompt is empty. Enter some text."))
        models = columns.pair(job, request)
        tokenizer = columns.session.calibrated(request).loaded.tokenizer
        job.emit(Status(lazy_gettext("Reading the prompt")))
        tokens = compare_next_tokens(models["dense"], models["intraslice"], tokenizer, prompt, NEXT, chat=not raw)
        job.emit(tuple(map(_candidate, tokens)))
        job.emit(columns.session.ready(request))

    yield from columns.session.jobs.run(client, "next tokens", work, request=request)


def score(columns: Columns, request: Request, text: str, client: str) -> Iterator[Status | PassageView]:
    """Every token of a text under both models; ends with a ready or an error status."""

    def work(job: Job) -> None:
        models = columns.pair(job, request)
        tokenizer = columns.session.calibrated(request).loaded.tokenizer
        count = len(tokenizer(text.strip(), add_special_tokens=False).input_ids)
        if count > MAX_TOKENS:
            raise UserError(
                lazy_gettext("The passage must have 2 to {limit} tokens, got {count:,}.", count=count, limit=MAX_TOKENS)
            )
        job.emit(Status(lazy_gettext("Scoring the passage")))
        passage = score_passage(models["dense"], models["intraslice"], tokenizer, text.strip(), ALTERNATIVES)
        job.emit(PassageView(passage.first, tuple(map(_token, passage.tokens)), passage.agreement))
        job.emit(columns.session.ready(request))

    yield from columns.session.jobs.run(client, "passage", work, request=request)


def _token(score: TokenScore) -> PassageToken:
    likeliest = tuple(map(_candidate, score.likeliest))
    return PassageToken(score.text, math.exp(score.dense), math.exp(score.sliced), score.extra_loss, likeliest)


def _candidate(token: NextToken) -> Candidate:
    return Candidate(token.text, token.dense, token.sliced)
