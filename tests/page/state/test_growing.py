"""Answers that grow: calibrations, also on samples, that are used while they are made; perplexities by window."""

import math
from functools import partial
from itertools import groupby

import pytest
import torch
from stepping import Clock, OnlyWhileAwaited
from tiny_page import SOMEBODY, in_job, precomputed_for, stepwise

from components.estimator import measure
from components.estimator.measure import RatioSearches
from components.export import files
from components.frame import handlers
from components.jobs.job import Job
from components.state import caches, calibrations, readings
from components.state.estimator_choice import note_stored
from components.state.precomputed import Precomputed
from components.state.request import Request, parse
from components.state.session import Session
from components.state.settings import Settings
from components.state.views import Perplexities, Provenance
from components.ui import pinned_text
from components.ui.formatting import provenance
from components.ui.handlers import LiveOutput
from components.ui.screen import headline
from intraslice.calibration import driver
from intraslice.core.cache import cache_path
from intraslice.core.errors import UserError
from intraslice.core.progress import ignore_progress
from intraslice.evaluation import perplexity as perplexity_module
from intraslice.planning.ratios import make_plan
from intraslice.pretrained import memory
from intraslice.samples import kept_samples
from intraslice.search.choice import Choice, choose_estimator

pytestmark = pytest.mark.usefixtures("one_by_one")


def measured(session: Session, settings: Request) -> list[Perplexities]:
    """What is known after every event of a measurement, each once."""
    seen = []
    for event in session.measure(settings, "somebody"):
        assert event.kind != "error", event.text
        seen.append(session.perplexities(settings))
    return [known for known, _ in groupby(seen)]


def test_a_stopped_measurement_goes_on_after_the_windows_that_it_has(fresh, tiny, monkeypatch) -> None:
    measure_window, windows = perplexity_module.head_losses, []
    monkeypatch.setattr(perplexity_module, "head_losses", lambda *a: windows.append(1) or measure_window(*a))
    list(fresh.prepare(tiny, "somebody"))
    for _ in fresh.measure(tiny, "somebody"):
        known = fresh.perplexities(tiny).sliced
        if known is not None and known.windows >= 3:
            break
    assert 3 <= known.windows < known.all_windows
    last = measured(fresh, tiny)[-1]
    assert last.source.kind == "here"
    assert len(windows) <= 2 * known.all_windows + 1  # of both models once, and one that was being measured


def test_plans_come_from_what_the_calibration_has_seen_so_far_and_how_they_converge_is_kept(fresh, tiny) -> None:
    said = []
    assert fresh.convergence(tiny) is None
    for _ in fresh.prepare(tiny, "somebody"):
        plan = fresh.plan(tiny)
        if plan and (not said or provenance(plan.source) != said[-1]):
            said.append(provenance(plan.source))
    assert said == [*(f"Calibrated on {count} of 8 sequences so far." for count in (1, 2, 4)), ""]
    view = fresh.convergence(tiny)
    assert view.sequences == (1, 2, 4, 8)
    assert view.attention[-1] == view.mlp[-1] == view.largest[-1] == 0
    stats = fresh.calibrated(tiny).stats
    fewer = driver.calibrate(fresh.calibrated(tiny).loaded, fresh.calibrated(tiny).tokens[:2], progress=False)
    few, all_of_it = (make_plan(which.profile, tiny.slicing).layers for which in (fewer, stats))
    distances = [abs(a.mlp_ratio - b.mlp_ratio) for a, b in zip(few, all_of_it, strict=True)]
    assert view.mlp[1] == pytest.approx(sum(distances) / len(distances), abs=1e-6)
    again = stepwise(Session(evaluation_tokens=256))
    list(again.prepare(tiny, "somebody"))  # from the disk, where nothing grows
    assert again.convergence(tiny) == view


def test_where_plans_are_precomputed_a_calibration_is_used_from_four_sequences_on(fresh, tiny, monkeypatch) -> None:
    monkeypatch.setattr(fresh.precomputed, "source", lambda key: Precomputed().source(parse(Settings()).calibration))
    list(fresh.prepare(tiny, "somebody"))
    assert list(fresh.calibrations.partial_sources(tiny.calibration)) == [4]


def test_a_model_that_a_calibration_uses_is_not_loaded_again_once_its_cache_has_evicted_it(
    fresh, tiny, monkeypatch
) -> None:
    """A second copy would need memory where there is none, and the first one frees nothing."""
    list(fresh.prepare(tiny, "somebody"))
    loaded = fresh.calibrated(tiny).loaded
    for entry in fresh._caches.models.entries():
        fresh._caches.models.drop(entry)
    monkeypatch.setattr(calibrations, "load_model", None)
    assert in_job(fresh, fresh.calibrations.load, tiny.calibration) is loaded


def test_both_perplexities_grow_with_their_errors(fresh, tiny) -> None:
    list(fresh.prepare(tiny, "somebody"))
    known = measured(fresh, tiny)
    assert sorted({k.sliced.windows for k in known if k.sliced}) == list(range(1, 9))
    first, last = next(k for k in known if k.sliced and k.sliced.windows == 2), known[-1]
    assert first.values[1] is None
    # While it grows it is the dense model's perplexity on all windows times the ratio on those that are read.
    assert first.sliced.value == pytest.approx(first.dense.value * first.ratio.value)
    assert first.sliced.error == pytest.approx(first.dense.value * first.ratio.error)
    assert last.values[1] == last.sliced.value == pytest.approx(last.dense.value * last.ratio.value)
    assert 0 < last.ratio.error < first.ratio.value


def test_a_slice_is_measured_before_the_calibration_is_whole_and_again_after_first_on_half_a_window(
    fresh, tiny, monkeypatch, tmp_path
) -> None:
    monkeypatch.setattr(perplexity_module, "BLOCK", 7)
    monkeypatch.setattr(readings, "BLOCK", 7)
    *growing, last = measured(fresh, tiny)
    known = [known for known in (*growing, last) if known.sliced]
    assert known[0].sliced.windows == 0.5
    assert known[0].sliced.error > 0
    assert " after 0.5 of 8 windows" in headline(fresh.plan(tiny), known[0])
    # Not where a number is shown already, such as that of an earlier part of the calibration.
    halves = [index for index, k in enumerate(known) if k.sliced.windows == 0.5]
    assert {known[index].source.sequences for index in halves} == {calibrations.MIN_SEQUENCES}
    early = [known for known in growing if known.values[1] is not None and known.source.sequences < 8]
    assert {known.source for known in early} == {Provenance("so far", calibrations.MIN_SEQUENCES, 8)}
    assert last.source == Provenance("here", 8, 8)
    assert early[0].sliced != last.sliced
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))
    whole = stepwise(Session(evaluation_tokens=256))
    in_job(whole, whole.measure_perplexities, tiny)
    assert last.sliced == whole.perplexities(tiny).sliced


def test_two_who_want_the_same_calibration_share_it(fresh, tiny, monkeypatch) -> None:
    batches = []
    calibrate = driver._calibrate_batch
    monkeypatch.setattr(driver, "_calibrate_batch", lambda *a: batches.append(a[3]) or calibrate(*a))
    first, second = fresh.measure(tiny, "a"), fresh.measure(tiny.with_settings(sparsity=40), "b")
    assert next(event for event in first if "Calibrating" in event.text)
    assert list(second)[-1].kind == list(first)[-1].kind == "ready"
    assert sorted(batches) == list(range(8))


def test_who_leaves_ends_a_calibration_that_nobody_else_wants_and_what_follows_it_does_not_begin_it_again(
    fresh, tiny
) -> None:
    events = fresh.prepare(tiny, "a")
    assert next(event for event in events if "Calibrating" in event.text)
    fresh.jobs.halt("a")
    assert list(events)[-1].text == "Cancelled."
    assert [*map(list, handlers.on_prepared(fresh, tiny, 0, None, "a"))] == [["measured"]]
    assert not fresh.is_calibrated(tiny)
    assert not fresh.jobs.scheduler.jobs


@pytest.mark.parametrize("leaves", [False, True])
def test_a_calibration_for_which_there_is_no_memory_waits_for_those_before_it(fresh, tiny, leaves) -> None:
    in_job(fresh, fresh.calibrations.load, tiny.calibration)  # which reserves memory, too
    fresh._caches.job_bytes = 0
    first, second = (fresh.prepare(tiny.with_settings(seed=seed), str(seed)) for seed in (1, 2))
    while not fresh.calibrations._memory._needed:
        next(first)
    assert next(e.text for e in second if "Waiting" in e.text) == "Waiting for memory; jobs ahead: 1"
    known = tiny.with_settings(seed=2).calibration
    assert fresh.calibrations.best(known) is None
    first.close() if leaves else list(first)
    *_, last = second
    assert last.kind == "ready"
    assert fresh.calibrations.whole(known) is not None
    assert fresh.calibrations._memory._needed == {}


def test_a_slice_for_which_there_is_no_memory_waits_for_those_before_it_for_a_while(fresh, tiny, monkeypatch) -> None:
    fresh.jobs.scheduler = OnlyWhileAwaited(clock=Clock())  # turns alternate, however long each takes
    monkeypatch.setattr(caches, "LOOK", 0.01)
    list(fresh.prepare(tiny, "somebody"))
    fresh._caches.job_bytes = 0
    sliced = {}

    def work(job: Job, request: Request) -> None:
        sliced[request.settings.sparsity] = fresh.slice(job, request)

    first, second = (
        fresh.jobs.run(str(sparsity), "slice", partial(work, request=tiny.with_settings(sparsity=sparsity)))
        for sparsity in (10, 20)
    )
    while not fresh.slice_memory._needed:
        next(first)
    assert any(event.text == "Waiting for memory; jobs ahead: 1" for event in second)
    list(first)
    assert 10 in sliced  # perhaps with the second one's, which goes on as soon as the first one's memory is free
    list(second)
    assert sliced.keys() == {10, 20}
    assert fresh.slice_memory._needed == {}


def test_where_there_is_memory_calibrations_go_side_by_side(fresh, tiny) -> None:
    first, second = (fresh.prepare(tiny.with_settings(seed=seed), str(seed)) for seed in (1, 2))
    texts: list[str] = []
    while len(fresh.calibrations._memory._needed) < 2:
        texts += [next(first).text, next(second).text]
    assert not any("Waiting" in text for text in texts)
    first.close()
    second.close()


def test_what_to_expect_lies_between_what_is_measured(fresh, tiny) -> None:
    assert fresh.perplexities(tiny).expected is None
    for sparsity in (20, 40):
        measured(fresh, tiny.with_settings(sparsity=sparsity))
    points = {s: fresh.perplexities(tiny.with_settings(sparsity=s)) for s in (0, 10, 20, 30, 40)}
    assert points[30].sliced is None
    assert points[30].expected == pytest.approx(math.sqrt(points[20].sliced.value * points[40].sliced.value))
    assert points[10].expected == pytest.approx(math.sqrt(points[0].dense.value * points[20].sliced.value))
    assert all(points[s].expected == pytest.approx(points[s].sliced.value) for s in (20, 40))
    assert fresh.perplexities(tiny.with_settings(sparsity=45)).expected is None  # nothing is predicted beyond
    assert fresh.perplexities(tiny.with_settings(sparsity=30, estimator="uniform")).expected is None


def test_what_does_not_fit_into_memory_is_refused_before_any_work(fresh, tiny, monkeypatch) -> None:
    in_job(fresh, fresh.calibrations.load, tiny.calibration)
    monkeypatch.setattr(memory, "available_bytes", lambda _: 100_000)
    monkeypatch.setattr(calibrations, "calibrate", None)
    *_, last = fresh.prepare(tiny, "somebody")
    assert last.kind == "error"
    assert "in addition to the model, needs" in last.text


def test_what_is_known_by_the_whole_calibration_is_not_replaced_by_less(fresh, tiny, monkeypatch, tmp_path) -> None:
    """Where memory was short and another visitor calibrates anew."""
    in_job(fresh, fresh.measure_perplexities, tiny)
    whole = fresh._caches.losses.get(tiny.slice_key("intraslice"))
    key = tiny.calibration
    fresh._caches.calibrations.drop(*fresh._caches.calibrations.entries())
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "another"))
    early = in_job(fresh, fresh.calibrations.calibrate, key, whole=False)
    assert early.sequences < 8
    assert in_job(fresh, fresh.readings.losses, tiny.slice_key("intraslice"), early) == whole.value
    assert fresh._caches.losses.get(tiny.slice_key("intraslice")) == whole
    assert fresh.calibrations.best(key) == early


@pytest.mark.parametrize(
    "work", [files.evaluation, partial(files.answers, prompt="w10", tokens=4, temperature=0, seed=0)]
)
def test_a_job_goes_on_with_what_the_caches_evict_meanwhile(work, fresh, tiny, monkeypatch, tmp_path) -> None:
    caches, evicted = fresh._caches, 0
    job = fresh.jobs.scheduler.start("somebody", partial(work, session=fresh, request=tiny))
    for _ in job.events():
        if fresh.is_calibrated(tiny):
            for cache in (caches.models, caches.calibrations, caches.slices):
                for entry in cache.entries():
                    cache.drop(entry)
                    evicted += 1
    assert evicted > 2
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path / "other"))  # so that nothing measured is found there
    other = stepwise(Session(evaluation_tokens=256))
    assert job.result == in_job(other, work, other, tiny)


def test_a_calibration_reads_its_text_and_then_what_the_dense_model_samples(session, tiny, monkeypatch) -> None:
    sampled = tiny.with_settings(samples=3)
    statuses = [event.text for event in session.prepare(sampled, "somebody")]
    assert any("Sampling text from the dense model, token" in text for text in statuses)
    reads = "Calibrated on 8 x 32 tokens: text.txt, your own file, and 3 x 32 that the dense model sampled"
    assert statuses[-1].endswith(reads)
    plain, whole = session.calibrated(tiny), session.calibrated(sampled)
    assert torch.equal(whole.tokens[:8], plain.tokens)
    assert torch.equal(whole.tokens[8:], kept_samples(whole.loaded.model, (3, 32), 1.0, 0, ignore_progress))
    assert torch.equal(whole.training, plain.training)
    for request in (tiny, sampled):
        *_, last = session.measure(request, "somebody")
        assert last.kind == "ready", last.text
    measured = [session.perplexities(request) for request in (tiny, sampled)]
    assert measured[0].dense == measured[1].dense
    assert measured[0].sliced != measured[1].sliced
    for request, perplexities in zip((tiny, sampled), measured, strict=True):
        assert ("from the same source, and 3 x 32 that" in str(perplexities.protocol)) == (request == sampled)

    key = tiny.slice_key("intraslice")
    parts = plain.loaded.fingerprint, plain.loaded.model.dtype, plain.windows, plain.training, 8, key.method, key.config
    assert readings._path(key, plain) == cache_path("losses", ".json", readings.FORMAT, *parts)  # as before samples

    asked = []

    def windows(loaded, text, count, **options):
        asked.append((text, count, options["skip"]))
        raise UserError("enough")

    monkeypatch.setattr(measure, "search_windows", windows)
    [*RatioSearches(session).measure(sampled, "somebody")]
    ((text, count, skip),) = asked
    assert torch.equal(text, plain.training[8:16])  # the text after the calibration's
    assert (count, skip) == (16, 3)


def test_the_estimator_is_chosen_by_measurement_once_and_then_is_the_setting(fresh, tiny) -> None:
    tiny = tiny.with_settings(seed=1)  # for which it is another one than the default
    asked, always = tiny.with_settings(estimator="auto"), list[LiveOutput]()
    move = partial(handlers.move, fresh, always, always, layer=0, active_tab="", pinned=None, client=SOMEBODY)
    assert asked.is_undecided
    assert asked.slicing.estimator == "pca"
    answers = list(handlers.on_release(fresh, asked, 0, None, SOMEBODY))
    choice = asked.calibration.choice
    assert any("Choosing the estimator by measurement" in str(answer.get("status")) for answer in answers)
    before = next(answer["readout"] for answer in answers if "until then it is" in answer.get("readout", ""))
    assert "until then it is PCA-aware." in before
    assert sum("again" in answer for answer in answers) >= 1  # after which the page moves

    calibrated = fresh.calibrated(tiny)
    text = calibrated.training[tiny.calibration.config.sequences :]
    assert choose_estimator(calibrated.loaded, calibrated.stats, text, 1, progress=False) == choice
    assert choice.name == "output-error"
    known = asked.now()
    assert (known.is_undecided, known.slicing.estimator, known.named.estimator) == (False, choice.name, choice.name)
    assert fresh.perplexities(known) == fresh.perplexities(tiny.with_settings(estimator=choice.name))
    assert fresh.perplexities(known).source.kind == "here"
    shown = move(known)
    assert shown["estimator"] == choice.name
    assert "chosen by measurement" in shown["readout"]
    assert pinned_text.write(known) == pinned_text.write(tiny.with_settings(estimator=choice.name))
    shown = move(tiny.with_settings(estimator=choice.name))
    assert "chosen by measurement" in shown["readout"]
    assert not {"estimator", "again"} & shown.keys()
    others = (name for name in choice.excess)
    assert not any("chosen by measurement" in move(tiny.with_settings(estimator=name))["readout"] for name in others)

    other = tiny.with_settings(estimator="auto", seed=2)  # another calibration, after which the page measures by itself
    assert other.is_undecided
    list(fresh.prepare(other, SOMEBODY))
    assert any("again" in answer for answer in handlers.on_prepared(fresh, other, 0, None, SOMEBODY))
    assert not other.is_undecided


def test_a_stored_choice_is_that_of_its_weights(fresh, tiny, tmp_path) -> None:
    asked = tiny.with_settings(seed=3, estimator="auto")
    stored = Choice("fisher", {"pca": [0.1, 0.02]}, 0.75)
    weights = in_job(fresh, fresh.calibrations.load, asked.calibration).weights_digest
    note_stored(precomputed_for(tmp_path, asked, "of another model", choice=stored))
    assert asked.is_undecided
    note_stored(precomputed_for(tmp_path, asked, weights, choice=stored))
    assert asked.calibration.choice == stored
    assert asked.now().slicing.estimator == "fisher"


def test_the_minutes_of_the_budgets_are_those_of_the_chosen_model(session, tiny) -> None:
    quick, thorough = session.check(tiny.settings.model).budget_seconds.values()
    assert 0 < quick < thorough
    info = handlers.minutes(session, tiny.settings.model)["budget"]["info"]
    assert info.endswith(f"about {quick:.0f} s and {thorough:.0f} s.")
    assert "Thorough: 128 x 512, and 16 x 512 that the dense model samples" in info
    assert "about" not in handlers.minutes(session, "no/such/model")["budget"]["info"]
