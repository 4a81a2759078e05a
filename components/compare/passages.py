"""Next-token candidates of both models, and the loss increase per token of a passage, as plain numbers."""

from __future__ import annotations

from intraslice.core import checks
from intraslice.core.errors import UserError
from intraslice.diagnostics.token_scores import NextToken, Passage, compare_next_tokens, score_passage
from intraslice.evaluation.generation import prompt_tokens
from intraslice.pretrained.tokenizer import encode

from .. import limits
from ..i18n.language import lazy_gettext
from ..jobs.job import Job
from ..jobs.status import Status
from ..state.request import Request
from .models import Columns, encode_off_turn
from .views import MAX_GUESSES

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
