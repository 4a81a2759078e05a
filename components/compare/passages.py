"""Next-token candidates of both models, and the loss increase per token of a passage, as plain numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from intraslice.core import checks
from intraslice.core.errors import UserError
from intraslice.diagnostics.token_scores import NextToken, TokenScore, compare_next_tokens, score_passage
from intraslice.evaluation.generation import prompt_tokens
from intraslice.pretrained.tokenizer import encode

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import Request
from .models import Columns, encode_off_turn
from .views import Candidate, PassageToken, PassageView

MAX_CANDIDATES = 8  # of either model
MAX_ALTERNATIVES = 3  # per token of the passage
PassageResult = tuple[Candidate, ...] | PassageView


def next_tokens(
    columns: Columns, request: Request, prompt: str, raw: bool, client: str
) -> Iterator[Status | tuple[Candidate, ...]]:
    """The most likely first tokens of the answer; ends with a ready or an error status."""

    def work(job: Job) -> None:
        checks.require_words("the prompt", prompt)
        models = columns.pair(job, request)
        tokenizer = columns.dense(job, request).tokenizer
        job.emit(Status(lazy_gettext("Reading the prompt")))
        encode_off_turn(job, tokenizer, lambda: prompt_tokens(tokenizer, prompt, not raw))
        pair, pause = (models["dense"], models["intraslice"]), job.checkpoint
        tokens = compare_next_tokens(*pair, tokenizer, prompt, MAX_CANDIDATES, chat=not raw, pause=pause)
        job.emit(tuple(map(_candidate, tokens)))

    ready = partial(columns.session.ready, request)
    yield from columns.session.jobs.run(client, "next tokens", work, ready=ready, request=request)


def score(columns: Columns, request: Request, text: str, client: str) -> Iterator[Status | PassageView]:
    """Score every token of a text with both models; ends with a ready or an error status."""
    run, ready = columns.session.jobs.run, partial(columns.session.ready, request)
    work = partial(score_tokens, columns=columns, request=request, text=text)
    yield from run(client, "passage", lambda job: job.emit(work(job)), ready=ready, request=request)


def score_tokens(job: Job, columns: Columns, request: Request, text: str) -> PassageView:
    """The work of `score`, inside a job. Raises UserError for a text that is too short or too long."""
    models = columns.pair(job, request)
    tokenizer = columns.dense(job, request).tokenizer
    encode_off_turn(job, tokenizer, lambda: encode(tokenizer, text.strip()))
    count = len(encode(tokenizer, text.strip()))
    if not 2 <= count <= limits.MAX_PASSAGE_TOKENS:  # the first has no score
        limit = limits.MAX_PASSAGE_TOKENS
        raise UserError("The passage must have 2 to {limit} tokens, got {count:,}.", count=count, limit=limit)
    job.emit(Status(lazy_gettext("Scoring the passage")))
    passage = score_passage(models["dense"], models["intraslice"], tokenizer, text.strip(), MAX_ALTERNATIVES)
    return PassageView(passage.first, tuple(map(_token, passage.tokens)), passage.agreement)


def _token(score: TokenScore) -> PassageToken:
    candidates = tuple(map(_candidate, score.likeliest))
    return PassageToken(score.text, math.exp(score.dense), math.exp(score.sliced), score.extra_loss, candidates)


def _candidate(token: NextToken) -> Candidate:
    return Candidate(token.text, token.dense, token.sliced)
