"""The Compare tab's handlers, called directly with a real session on a tiny model: no browser, no server."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from stepping import Stepped
from tiny_page import SOMEBODY, in_job, stepwise

from components import limits
from components.compare import answers as streaming
from components.compare import html as compare_words
from components.compare import models, panel
from components.compare.models import Columns, TokenStream, columns_of, stream_key
from components.compare.views import COLUMNS, PINNED, Answer, Cost, Costs, NextToken, Passage, Question, TokenScore
from components.jobs.status import Status
from components.jobs.waiting import JobSemaphore
from components.state.request import Request
from components.state.session import Session
from components.state.units import TOLERANCE
from components.state.views import PrecomputedCosts
from intraslice.evaluation.answers import has_loop
from intraslice.evaluation.generation import Sampling, stream_tokens
from intraslice.evaluation.perplexity import DenseStates, measure_losses, perplexity
from intraslice.modeling.counts import kv_bytes_per_token, parameters_of

PROMPT = "w10 w20 w30"


@pytest.fixture(scope="module")
def session(tiny) -> Session:
    session = stepwise(Session(evaluation_tokens=256))
    assert list(session.measure(tiny, "somebody"))[-1].kind == "ready"
    return session


@pytest.fixture(scope="module")
def columns(session) -> Columns:
    return Columns(session)


@pytest.fixture
def begun(monkeypatch) -> list:
    begun = []

    def noted(model, *arguments, **options):
        begun.append(model)
        return stream_tokens(model, *arguments, **options)

    monkeypatch.setattr(models, "stream_tokens", noted)
    return begun


def events_of(columns: Columns, request: Request, question: Question, client: str = SOMEBODY):
    work = partial(streaming.write_answers, columns=columns, request=request, question=question)
    return columns.session.jobs.run(client, "answer", work, ready=partial(columns.session.ready, request))


def asked(columns: Columns, settings: Request, client: str = SOMEBODY, **question) -> dict[str, Answer]:
    question = {"prompt": PROMPT, "tokens": 12} | question
    events = list(events_of(columns, settings, Question(**question), client))
    assert events[-1].kind == "ready", events[-1].text
    return [event for event in events if not isinstance(event, Status)][-1]


def test_the_dense_column_ends_while_other_answers_hold_all_places(columns, tiny, monkeypatch) -> None:
    monkeypatch.setattr(streaming, "SLICED_ANSWERS", JobSemaphore(1, "waiting"))
    with streaming.SLICED_ANSWERS.requested() as take:
        assert take()
        events = events_of(columns, tiny, Question("w40 w50", 12))
        shown: dict[str, Answer] = {}
        for event in events:
            if event == Status("waiting"):
                break
            shown = shown if isinstance(event, Status) else dict(event)
    assert [shown[name].state for name in COLUMNS] == ["cut", "pending", "pending"]
    *_, last = [event for event in events if not isinstance(event, Status)]
    assert {answer.state for answer in last.values()} == {"cut"}


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_mark_stands_where_the_answers_part(columns, session, tiny, temperature) -> None:
    answers = asked(columns, tiny.with_settings(bias=0.7), temperature=temperature, sample_seed=3)
    tokenizer = session.calibrated(tiny).loaded.tokenizer
    tokens = {name: tokenizer(one.text).input_ids for name, one in answers.items()}
    for name in ("intraslice", "crossmodule"):
        dense, own = tokens["dense"], tokens[name]
        at = next(place for place, pair in enumerate(zip(dense, own, strict=False)) if len({*pair}) == 2)
        assert answers[name].diverges_at == at
        assert answers[name].shared.split() == tokenizer.decode(own[:at]).split()
        assert answers[name].token.strip() == tokenizer.decode(own[at : at + 1])
        assert answers[name].dense_token.strip() == tokenizer.decode(dense[at : at + 1])
        assert answers[name].loops == has_loop(tokens[name])
        assert ("Loop:" in compare_words.answer(name, answers[name])) == answers[name].loops
        assert "Loop:" in compare_words.answer(name, replace(answers[name], loops=True))
    assert answers["dense"].diverges_at is None


def test_a_seed_gives_each_column_its_own_answer_again_and_models_that_agree_the_same(columns, tiny, begun) -> None:
    state = torch.get_rng_state()
    first, again, other = (
        asked(Columns(columns.session), tiny, temperature=2.0, sample_seed=seed) for seed in (5, 5, 6)
    )
    assert first == again
    for name in COLUMNS:
        assert first[name].text != other[name].text
        assert (first[name].count, first[name].state) == (12, "cut")
    before = len(begun)
    agreeing = asked(columns, tiny.with_settings(sparsity=0), temperature=2.0)
    assert len(begun) == before + 1  # without sparsity all columns share the dense answer
    assert len({answer.text for answer in agreeing.values()}) == 1
    assert agreeing["intraslice"].diverges_at is None
    assert "Identical to the dense answer." in compare_words.answer("intraslice", agreeing["intraslice"])
    assert torch.equal(torch.get_rng_state(), state)  # torch's own are left alone


def test_what_models_say_is_escaped_whole_answers_called_identical_and_slower_models_slower() -> None:
    def words(count: int) -> str:
        stopped = Answer("w10 " * count, count=count, state="stopped")
        return compare_words.answer("intraslice", stopped).rpartition('isx-quiet">')[2].partition("<")[0]

    assert words(0) == "0 tokens, stopped."
    assert words(3) == "3 tokens, stopped. Identical to the dense answer so far."
    dense, sliced = Cost(10, 0.0, 8, 20.0, 100.0, 30.0), Cost(8, 0.3, 6, 25.0, 130.0, 24.0)

    def cost(own: Cost) -> str:
        return compare_words.cost("intraslice", Costs({"dense": dense, "intraslice": own}, {}))

    html = cost(sliced)
    for words in ("1.30 × dense<", "0.80 × dense (slower)", "+25%", "KL from dense</dt><dd>–"):
        assert words in html
    assert "0.400 nats per token<small>± 0.050" in cost(replace(sliced, divergence=(0.4, 0.05)))
    before = PrecomputedCosts("today", 0.5, 1.2, 1.1)
    assert "0.500 nats per token<small>Precomputed on today" in cost(replace(sliced, precomputed=before))
    assert cost(dense).count("as fast as dense") == 2
    evil = '<script>alert(1)</script>"'
    candidate = NextToken(evil, 7, 0.5, 0.1)
    token = TokenScore(evil, 7, -0.7, -2.3, 0.2, False, (candidate,))
    for html in (
        compare_words.answer("intraslice", Answer(evil, evil, evil, 3, "cut", 1, evil)),
        compare_words.answer("crossmodule", Answer(state="refused", problem=evil)),
        compare_words.candidates([candidate], evil),
        compare_words.passage(Passage(evil, (token,)), 30),
    ):
        assert "<script>" not in html
        assert 'alert(1)&lt;/script&gt;"' not in html


def test_the_dense_model_answers_while_the_others_are_calibrated_for_and_made(tiny, monkeypatch) -> None:
    monkeypatch.setattr(limits, "SLICING_SECONDS", 0.0)
    columns = Columns(stepwise(Session(evaluation_tokens=256)))
    seen = []
    for event in events_of(columns, tiny.with_settings(seed=7), Question(PROMPT, 200)):
        is_status = isinstance(event, Status)
        seen.append(event.text if is_status else {name: (one.state, one.count) for name, one in event.items()})
    states = [event for event in seen if isinstance(event, dict)]
    calibrating = next(index for index, event in enumerate(seen) if "Calibrating" in event)
    crossing = next(index for index, event in enumerate(seen) if "(crossmodule)" in event)
    state, count = [event for event in seen[:crossing] if isinstance(event, dict)][-1]["dense"]
    assert calibrating < crossing
    assert state == "growing"
    assert count > 10
    middle = next(event for event in states if event["intraslice"][0] == "growing")
    assert middle["crossmodule"][0] == "pending"
    assert {state for state, _ in states[-1].values()} == {"cut"}


def test_a_column_shows_the_progress_of_its_own_slice(tiny) -> None:
    columns, request = Columns(stepwise(Session(evaluation_tokens=256))), tiny.with_settings(seed=8)
    keys = {name: column.key() for name, column in columns_of(request, None, "").items()}
    pending = {name: Answer(state="pending") for name in ("intraslice", "crossmodule")}
    told: dict[str, str] = dict.fromkeys(pending, "")
    for event in events_of(columns, request, Question(PROMPT, 4)):
        shown = panel.with_slicing_progress(pending, event, keys) if isinstance(event, Status) else pending
        told = {name: told[name] + column.problem for name, column in shown.items()}
    assert all("Calibrating" in text for text in told.values())
    slices = [("Slicing, layer" in text, "(crossmodule)" in text) for text in told.values()]
    assert slices == [(True, False), (False, True)]


def test_where_cross_module_slicing_cannot_remove_as_much_it_says_so(columns, tiny) -> None:
    answers = asked(columns, tiny.with_settings(sparsity=40))
    assert answers["crossmodule"].state == "refused"
    assert "cannot remove 40%" in answers["crossmodule"].problem
    assert answers["intraslice"].count == 12
    costs = columns.cached_costs(tiny.with_settings(sparsity=40))
    assert "cannot remove" in costs.problems["crossmodule"]


def test_a_raw_prompt_leaves_the_template_out(columns, session, tiny, monkeypatch) -> None:
    tokenizer = session.calibrated(tiny).loaded.tokenizer
    without = asked(columns, tiny)
    monkeypatch.setattr(tokenizer, "chat_template", "w7 w8 {{ messages[0].content }} w9")
    assert asked(columns, tiny, raw=True) == without
    assert asked(columns, tiny)["dense"] != without["dense"]


def test_what_cannot_be_answered_is_refused_in_one_line(columns, tiny) -> None:
    for question, words in (
        (Question("  "), "prompt is empty"),
        (Question(PROMPT, tokens=0), "max_new_tokens must be a whole number from 1 to "),
        (Question(PROMPT, temperature=-1.0), "Temperature must be a number of at least 0, got -1.0."),
        (Question("w10 " * 600), "600 tokens; expected at most 511"),
    ):
        *_, last = events_of(columns, tiny, question)
        assert (last.kind, words in last.text, "\n" in last.text) == ("error", True, False), last.text


def test_stop_halts_at_the_next_token_and_the_next_question_is_served(columns, tiny) -> None:
    answers = panel.answer(columns, tiny, Question(PROMPT, 400), None, "", SOMEBODY)
    for _ in range(12):
        next(answers)
    columns.session.jobs.halt(SOMEBODY, "answer")
    left = list(answers)
    assert "Cancelled." in left[-2]["status"]
    assert 0 < len(left) < 6
    assert left[-1]
    assert all(", stopped" in html and "aria-busy" not in html for html in left[-1].values())
    assert list(panel.costs(columns, tiny, None, "", SOMEBODY)) == [{}]  # no more work follows
    assert list(panel.passage_panel.next_tokens(columns, tiny, PROMPT, False, SOMEBODY)) == [{}]
    end = [answer for answer in panel.answer(columns, tiny, Question(PROMPT, 4), None, "", SOMEBODY) if answer]
    assert "Calibrated on" in end[-1]["status"]


def test_an_answer_leaves_the_column_of_what_is_pinned_meanwhile_empty(columns, session, tiny) -> None:
    answers = panel.answer(columns, tiny, Question(PROMPT, 30), tiny.with_settings(sparsity=20), "", SOMEBODY)
    assert any(PINNED in answer for answer in answers)
    session.jobs.set_view(SOMEBODY, pinned=tiny)
    assert not any(PINNED in answer for answer in answers)


def test_clients_who_ask_the_same_share_the_answers_and_each_is_what_one_alone_gets(
    columns, session, tiny, begun, monkeypatch
) -> None:
    request, prompt = tiny.with_settings(cap=75), "w70 w80"
    first = asked(columns, request, prompt=prompt)
    assert len(begun) == len(COLUMNS)
    monkeypatch.setattr(session, "slice", None)  # a finished answer needs no model
    assert asked(columns, request, "another", prompt=prompt) == first
    assert len(begun) == len(COLUMNS)
    monkeypatch.undo()
    loaded = session.calibrated(request).loaded
    models = {name: in_job(session, session.slice, request, name) for name in ("intraslice", "crossmodule")}
    for name, model in (models | {"dense": loaded.model}).items():
        alone = list(stream_tokens(model, loaded.tokenizer, prompt, Sampling(12)))
        assert first[name].text == loaded.tokenizer.decode(alone, skip_special_tokens=True)


def test_an_answer_from_the_cache_is_compared_with_the_whole_dense_answer(columns, session, tiny) -> None:
    request, question = tiny.with_settings(sparsity=5), Question("w100", 12)
    first = asked(columns, request, prompt="w100")
    assert first["intraslice"].diverges_at > 2
    dense = stream_key(request.slice_key("dense"), session.calibrated(tiny).loaded.tokenizer, question)
    columns.streams.put(dense, TokenStream())  # as if it were not known any more
    assert asked(columns, request, prompt="w100") == first


def test_whoever_comes_late_has_the_first_tokens_at_once_and_goes_on_where_a_cancelled_job_left(monkeypatch) -> None:
    def generate(model, tokenizer, prompt, sampling, pause):
        pause()
        yield from range(sampling)

    monkeypatch.setattr(models, "stream_tokens", generate)
    monkeypatch.setattr(models, "end_tokens", lambda ends: ends)
    scheduler, stream = Stepped(), TokenStream()

    def reading(job, count: int = 7, ends: tuple = (6,)):
        work = partial(stream.generate, model=ends, tokenizer=None, prompt="", sampling=count)
        seen = []
        with job.begin(stream, work) as shared:
            while stream.reach(shared, len(seen)):
                seen.append(stream.tokens[len(seen) :])
                job.checkpoint()
        return seen

    leaving = scheduler.start("a", reading)
    while len(stream.tokens) < 5:
        scheduler.step()
    leaving.stop()
    late = scheduler.start("b", reading)
    scheduler.run()
    assert late.result[0] == [0, 1, 2, 3, 4]
    assert stream.tokens == [0, 1, 2, 3, 4, 5, 6]
    assert stream.state == "ended"
    stream = TokenStream()
    scheduler.start("a", partial(reading, ends=()))
    scheduler.run()
    assert stream.state == "cut"


def test_another_setting_question_or_seed_is_another_answer(session, tiny) -> None:
    tokenizer = session.calibrated(tiny).loaded.tokenizer

    def key(request: Request = tiny, **question: object) -> str:
        return stream_key(request.slice_key("intraslice"), tokenizer, Question(PROMPT, 12)._replace(**question))

    assert key() == key(sample_seed=5)  # greedy
    others = [key(prompt="w10"), key(tokens=13), key(temperature=1.0), key(temperature=1.0, sample_seed=5)]
    others += [key(tiny.with_settings(sparsity=31)), key(tiny.with_settings(cap=70))]
    assert len({key(), *others}) == 7


def test_costs_are_those_of_the_models(columns, session, tiny) -> None:
    in_job(session, columns.measure_costs, tiny, None, "")
    costs = columns.cached_costs(tiny)
    windows, dense = session.calibrated(tiny).windows, session.calibrated(tiny).loaded.model
    models = {name: in_job(session, session.slice, tiny, name) for name in ("intraslice", "crossmodule")}
    for name, one in (models | {"dense": dense}).items():
        cost, counted = costs.columns[name], parameters_of(one, "own") | parameters_of(dense, "dense")
        assert cost.parameters == counted["own_total"]
        assert cost.removed == pytest.approx(1 - counted["own_decoder"] / counted["dense_decoder"], abs=1e-6)
        assert cost.kv == kv_bytes_per_token(one)
        assert cost.perplexity == pytest.approx(perplexity(one, windows, progress=False), rel=1e-5)
        far = measure_losses(one, windows, dense=DenseStates(dense), progress=False).divergence()
        assert name == "dense" or cost.divergence == pytest.approx(tuple(far), rel=1e-3)
        assert cost.prefill > 0
        assert cost.decode > 0
    assert abs(costs.columns["crossmodule"].removed - costs.columns["intraslice"].removed) < TOLERANCE
    assert "in turn" in costs.speed_protocol


def test_while_costs_are_measured_no_other_answer_can_replace_the_last_one(columns, tiny) -> None:
    setting = tiny.with_settings(sparsity=45)
    measuring = panel.costs(columns, setting, None, "", SOMEBODY)
    for _ in range(2):  # the first begins nothing
        next(measuring)
    assert panel.cached_costs(columns, setting, None, "", SOMEBODY) == {}
    assert panel.cached_costs(columns, tiny, None, "", SOMEBODY)  # another setting's
    assert panel.cached_costs(columns, setting, None, "", "another")
    *_, last = measuring
    assert last == panel.cached_costs(columns, setting, None, "", SOMEBODY) | {"status": last["status"]}
