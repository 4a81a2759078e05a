"""The page's handlers, called directly with a real session on a tiny model: no browser, no server."""

import html
from dataclasses import replace

import pytest
from tiny_page import SOMEBODY, in_job, plan_view

from components.frame import handlers
from components.i18n.language import use_language
from components.jobs.status import Status
from components.state.caches import BoundedCache
from components.state.precomputed import load_profile, save_profile
from components.state.views import Perplexities
from components.ui import formatting
from components.ui.screen import headline
from intraslice.core.config import SliceConfig
from intraslice.planning.ratios import make_plan
from intraslice.pretrained import memory


def test_a_model_that_will_not_fit_is_refused_with_the_numbers_before_it_is_loaded(session, tiny, monkeypatch) -> None:
    told = ("llama, ", "if 20% is removed", "KV cache of ", "calibrating takes about ")
    assert [words for words in told if words not in handlers.memory(session, tiny.settings.model)] == []
    monkeypatch.setattr(memory, "available_bytes", lambda device: 2**20)
    refused = handlers.memory(session, tiny.settings.model)
    assert ("isx-error" in refused, "0.0 GiB is free" in refused) == (True, True)


def test_measuring_ends_with_both_perplexities_and_their_protocol_and_nought_is_the_dense_model(session, tiny) -> None:
    settings = tiny.with_settings(sparsity=50, shapes="runtime")
    assert session.perplexities(settings).sliced is None
    *_, last = handlers.measure(session, settings, 0, None, SOMEBODY)
    measured = session.perplexities(settings)
    assert "isx-ready" in last["status"]
    assert all(f"{one.value:.2f}" in last["readout"] for one in (measured.dense, measured.sliced))
    assert "windows of 32" in last["perplexity"]
    assert "one-shot slicing, runtime shapes" in last["perplexity"]
    assert "→" in last["headline"]
    nought = tiny.with_settings(sparsity=0)
    assert list(session.measure(nought, "somebody"))[-1].kind == "ready"
    assert session.perplexities(nought).dense == session.perplexities(nought).sliced == measured.dense


@pytest.mark.parametrize(
    ("change", "button"),
    [({"order": "sequential"}, "Slice sequentially"), ({"recovery": "distill"}, "Slice and train")],
)
def test_a_release_leaves_what_takes_long_to_its_button(session, tiny, change, button) -> None:
    request = tiny.with_settings(**change)
    assert list(handlers.measure_live(session, request, 0, None, SOMEBODY)) == []
    assert f"press “{button}”" in html.unescape(handlers.moved(session, session.view(request, SOMEBODY))["headline"])


def test_a_recovered_model_is_measured_at_its_button_and_said_to_be_one(session, tiny) -> None:
    request = tiny.with_settings(recovery="distill", sparsity=45)
    *before, last = handlers.measure(session, request, 0, None, SOMEBODY)
    told = [event["status"] for event in before]
    assert any("Training the sliced model, step" in status for status in told)
    assert "one-shot slicing, recovery: Distillation" in last["perplexity"]
    plain = request.with_settings(recovery="none")
    list(session.measure(plain, "somebody"))
    assert session.perplexities(request).sliced.value != session.perplexities(plain).sliced.value
    models = [*(in_job(session, session.slice, one) for one in (request, plain)), session.calibrated(tiny).loaded.model]
    recovered, sliced, dense = ({*model.model.layers.modules()} for model in models)
    assert not (recovered & sliced) - dense  # training changes no other slice


def test_sequential_slicing_can_be_stopped_between_layers(session, tiny) -> None:
    settings = tiny.with_settings(order="sequential", sparsity=35)
    seen = []
    for answer in handlers.measure(session, settings, 0, None, SOMEBODY):
        seen.append(answer["status"])
        if "Slicing, layer 1 of" in seen[-1]:
            handlers.stop(session, [""], SOMEBODY)
    assert "Cancelled." in seen[-1]
    assert not any("layer 3 of" in status for status in seen)


def test_a_kept_profile_gives_the_same_plans(session, tiny, tmp_path) -> None:
    profile = session.calibrated(tiny).source.profile
    save_profile(profile, tmp_path / "kept.npz")
    kept = load_profile(tmp_path / "kept.npz")
    for config in (SliceConfig(0.4, estimator) for estimator in ("uniform", "fisher", "pca")):
        assert make_plan(kept, config) == make_plan(profile, config)


def test_a_cache_forgets_what_was_used_least() -> None:
    cache: BoundedCache[str, int] = BoundedCache(2)
    cache.put("a", 1)
    cache.put("b", 2)
    cache.get("a")
    for value in (3, 4):
        cache.put("c", value)
        assert [cache.get(key) for key in "abc"] == [1, None, value]
    assert len(cache.entries()) == 2


def test_the_first_line_names_the_modules_that_give_most_and_least_and_words_are_escaped() -> None:
    words = headline(plan_view(), Perplexities())
    assert "layer 0's MLP is pruned most (50%), layer 0's attention least (0%)" in words
    plan = plan_view()
    ties = replace(plan, layers=(plan.layers[1], replace(plan.layers[2], attention=0.0, mlp=0.0), *plan.layers[2:]))
    assert "layer 1's attention least" in headline(ties, Perplexities())
    with use_language("de"):
        assert "am wenigsten Schicht 1 (Attention: 0\u00a0%)" in headline(ties, Perplexities())
    assert "<script>" not in formatting.status(Status("<script>alert(1)</script>", "error"))
    assert "<script>" not in formatting.problem(ValueError("<script>"))
