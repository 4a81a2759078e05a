"""Answers that several jobs ask for: generated once, and as if for each of them alone."""

import gc
import weakref

import pytest
from stepping import Stepped
from tiny_page import in_job

from components import limits
from components.compare import answers as streaming
from components.compare import token_streams
from components.compare.models import Columns
from components.compare.token_streams import TokenStream
from components.compare.views import COLUMNS, Question
from components.jobs.status import Status
from components.state.request import Request
from intraslice.evaluation.generation import Sampling, stream_tokens

QUESTION = Question("w10 w20 w30", 12)


def counting(begun: list[int], count: int = 4, pauses: int = 0):
    """An answer of the tokens 0, 1, ..., that notes when it begins and pauses before the first."""

    def begin(pause):
        begun.append(count)
        for _ in range(pauses):
            pause()
        yield from range(count)

    return begin


def reading(stream: TokenStream):
    """A job that reads all tokens of an answer."""

    def work(job):
        seen = []
        while stream.reach(job, len(seen)):
            seen.extend(stream.tokens[len(seen) :])
            job.checkpoint()
        return seen

    return work


def test_an_answer_is_generated_once_for_all_and_who_comes_late_has_the_first_tokens_at_once() -> None:
    begun, scheduler = [], Stepped()
    stream = TokenStream(counting(begun), ends={3})
    first = scheduler.start("a", reading(stream))
    for _ in range(2):
        scheduler.step()
    late = scheduler.start("b", reading(stream))
    scheduler.run()
    assert first.result == late.result == [0, 1, 2, 3]
    assert begun == [4]
    assert stream.state == "ended"


def test_an_answer_that_nobody_reads_any_more_leaves_no_cycle_that_would_keep_its_model() -> None:
    class Model:
        pass

    def beginning(model):
        def begin(pause):
            pause()
            while model:
                yield 0

        return begin

    scheduler, model = Stepped(), Model()
    stream, freed = TokenStream(beginning(model), ends=set()), weakref.ref(model)
    job = scheduler.start("a", reading(stream))
    for _ in range(3):
        scheduler.step()
    gc.disable()
    try:
        job.stop()
        scheduler.run()
        del job, stream, model
        assert freed() is None
    finally:
        gc.enable()


def test_an_answer_without_an_end_token_is_cut() -> None:
    stream = TokenStream(counting([]), ends={9})
    scheduler = Stepped()
    scheduler.start("a", reading(stream))
    scheduler.run()
    assert stream.state == "cut"


def test_who_leaves_while_the_prompt_is_read_leaves_the_answer_to_the_others(monkeypatch) -> None:
    monkeypatch.setattr(limits, "PROMPT_POLL_SECONDS", 0.001)
    begun, scheduler = [], Stepped()
    stream = TokenStream(counting(begun, pauses=3), ends=set())
    leaving = scheduler.start("a", reading(stream))
    scheduler.step()
    staying = scheduler.start("b", reading(stream))
    scheduler.step()
    leaving.stop()
    while not staying.ended:
        scheduler.run()
        scheduler.until(lambda: staying.ended or not staying.is_away)
    assert staying.result == [0, 1, 2, 3]
    assert begun == [4, 4]


def test_a_failure_reaches_whoever_asks_and_the_next_tries_again() -> None:
    failing = [True]

    def begin(pause):
        yield 0
        if failing.pop():
            raise ValueError("broken")
        yield 1

    scheduler = Stepped()
    failing[:] = [False, True]
    stream = TokenStream(begin, ends=set())
    first = scheduler.start("a", reading(stream))
    scheduler.run()
    with pytest.raises(ValueError, match="broken"):
        first.join()
    second = scheduler.start("b", reading(stream))
    scheduler.run()
    assert second.result == [0, 1]


@pytest.fixture(scope="module")
def columns(session) -> Columns:
    return Columns(session)


def ask(columns: Columns, request: Request, client: str = "a"):
    events = list(streaming.answer(columns, request, QUESTION, client))
    assert events[-1].kind == "ready", events[-1].text
    return [event for event in events if not isinstance(event, Status)][-1]


def test_clients_who_ask_the_same_share_the_answers_and_each_is_what_one_alone_gets(
    columns, session, tiny, monkeypatch
) -> None:
    request, begun = tiny.with_settings(sparsity=30), []

    def noted(model, *arguments, **options):
        begun.append(model)
        return stream_tokens(model, *arguments, **options)

    monkeypatch.setattr(token_streams, "stream_tokens", noted)
    first = ask(columns, request)
    assert len(begun) == len(COLUMNS)
    monkeypatch.setattr(session, "slice", None)  # a finished answer needs no model
    assert ask(columns, request, "b") == first
    assert len(begun) == len(COLUMNS)
    monkeypatch.undo()
    tokenizer = session.calibrated(request).loaded.tokenizer
    for name in ("intraslice", "crossmodule"):
        model = in_job(session, session.slice, request, name)
        alone = list(stream_tokens(model, tokenizer, QUESTION.prompt, Sampling(QUESTION.tokens)))
        assert first[name].text == tokenizer.decode(alone, skip_special_tokens=True)


def test_another_setting_question_or_seed_is_another_answer(session, tiny) -> None:
    tokenizer = session.calibrated(tiny).loaded.tokenizer

    def key(request: Request = tiny, **question: object) -> str:
        return token_streams.stream_key(request.slice_key("intraslice"), tokenizer, QUESTION._replace(**question))

    assert key() == key(seed=5)  # greedy
    others = [key(prompt="w10"), key(tokens=13), key(temperature=1.0), key(temperature=1.0, seed=5)]
    others += [key(tiny.with_settings(sparsity=31)), key(tiny.with_settings(cap=70))]
    assert len({key(), *others}) == 7


def test_without_sparsity_all_columns_share_the_dense_answer(columns, tiny, monkeypatch) -> None:
    begun = []

    def noted(model, *arguments, **options):
        begun.append(model)
        return stream_tokens(model, *arguments, **options)

    monkeypatch.setattr(token_streams, "stream_tokens", noted)
    answers = ask(Columns(columns.session), tiny.with_settings(sparsity=0))
    assert len(begun) == 1
    assert {answer.text for answer in answers.values()} == {answers["dense"].text}
