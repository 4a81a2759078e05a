"""Facts: grid, endpoint, command line and stored answers have the same numbers; a stopped job leaves nothing."""

import json
from dataclasses import replace

import pytest
from stepping import OnlyWhileAwaited
from tiny_page import SOMEBODY, options_of, precomputed_for, tiny_settings

from components import api
from components.compare import facts_panel
from components.compare.charts import facts_chart
from components.compare.measure import FactsCache
from components.compare.models import Columns
from components.make_snapshots import ask_facts
from components.state.request import Request, parse
from components.ui.chart_bridge import overlay
from intraslice.__main__ import main
from intraslice.evaluation.facts import fact_questions


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_llama_gqa, all_bytes_tokenizer) -> Request:
    """A model that reads any text."""
    home = tmp_path_factory.mktemp("facts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        yield parse(tiny_settings(home, tiny_llama_gqa, lambda _: all_bytes_tokenizer)._replace(dtype="float32"))


@pytest.fixture
def cache(session) -> FactsCache:
    return FactsCache(Columns(session))


def measured(cache: FactsCache, request: Request, language: str = "en", pinned: Request | None = None) -> dict:
    """The last chart of a measurement that ends well."""
    answers = list(facts_panel.measure(cache, request, pinned, language, SOMEBODY))
    assert "isx-ready" in answers[-1]["status"], answers[-1]
    return json.loads([answer["facts"] for answer in answers if "facts" in answer][-1])


def test_another_language_ends_the_questions_of_this_one(cache, tiny) -> None:
    answers = facts_panel.measure(cache, tiny, None, "en", "another")
    next(answers)
    facts_panel.choose(cache, tiny, "de", "another")
    assert not any("facts" in answer for answer in answers)


@pytest.mark.parametrize("language", ["en", "de"])
def test_grid_endpoint_and_command_line_have_the_same_numbers(cache, session, tiny, language, capsys) -> None:
    chart = measured(cache, tiny, language)
    told = api.facts(session, tiny, language, "a program")
    options = ["--sparsity", "0.3", "--order", "one-shot", "--dtype", "float32", "--eval-tokens", "256"]
    assert main(["evaluate", *options_of(tiny), *options, "--facts", language, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"] == told
    for column, (name, model) in enumerate((("Dense", "dense"), ("IntraSlice, 30%", "sliced"))):
        assert chart["table"]["columns"][2 + column] == f"{name}: says, selects"
        counts = told[model]["counts"].values()
        shown = [[row[1], row[2 + column]] for row in chart["table"]["rows"]]
        assert shown == [[str(count["of"]), f"{count['says']}, {count['selects']}"] for count in counts]
    drawing = chart["drawing"]
    prompts = [prompt for _, prompt, *_ in drawing["questions"]]
    for kind in ("lost", "gained"):
        assert [prompts[index] for index in drawing[kind]] == [row["prompt"] for row in told["sliced"][kind]]
    assert drawing["lost"] or drawing["gained"]
    assert [column["colour"] for column in drawing["columns"]] == ["dense", "intraslice", "cross"]


def test_stored_answers_are_those_of_a_measurement_and_follow_the_slider_until_there_is_one(
    cache, session, tiny, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("components.make_snapshots.MAX_PERCENT", 60)
    monkeypatch.setattr("components.make_snapshots.FACTS_STEP", 30)
    tiny = tiny.with_settings(estimator=session.opening.settings.estimator)
    stored = ask_facts(session, tiny)
    weights = session.calibrated(tiny).loaded.weights_digest
    monkeypatch.setattr(session, "precomputed", precomputed_for(tmp_path, tiny, weights, facts=stored))
    near = facts_chart(cache.view(tiny.with_settings(sparsity=35), "en"))
    assert "IntraSlice, 30%: says, selects" in near.columns
    assert "Precomputed: Tiny weights" in near.caption()
    assert near.drawing == facts_chart(cache.view(tiny, "en")).drawing
    shown = facts_panel.show(cache, tiny, 0, SOMEBODY)["facts"]
    assert json.loads(overlay(shown))["drawing"] == json.loads(shown)["drawing"]  # what a pinned setting adds
    chart = measured(cache, tiny, pinned=tiny.with_settings(sparsity=50))
    assert chart["drawing"] == json.loads(shown)["drawing"]
    assert "Precomputed" not in chart["note"]
    assert cache.view(tiny.with_settings(sparsity=50), "en").columns["intraslice"].stored_at is None
    others = cache.view(tiny.with_settings(estimator="uniform"), "en").columns
    assert [*others] == ["dense", "crossmodule"]  # which has no estimator; stored ones are of the default settings
    assert cache.view(tiny, "de") is None
    reworded = replace(stored, questions=(fact_questions()[0]._replace(prompt="?"), *fact_questions()[1:]))
    monkeypatch.setattr(session, "precomputed", precomputed_for(tmp_path / "other", tiny, weights, facts=reworded))
    assert FactsCache(Columns(session)).view(tiny, "en") is None


@pytest.mark.parametrize("how", ["stopped", "moved"])
def test_a_measurement_that_is_cancelled_leaves_the_status_clean_and_what_it_has_finished(
    cache, session, tiny, how
) -> None:
    session.jobs.scheduler = OnlyWhileAwaited()
    session.jobs.set_view("ada", request=tiny)
    answers = facts_panel.measure(cache, tiny, None, "en", "ada")
    assert next(answer for answer in answers if "facts" in answer)  # the dense model's
    assert "<progress" in next(answer["status"] for answer in answers if "Asking" in answer.get("status", ""))
    if how == "stopped":
        session.jobs.halt("ada", "facts")
    else:
        session.jobs.set_view("ada", request=tiny.with_settings(sparsity=31))
    *_, last = answers
    assert "isx-ready" in last["status"]
    assert session.view(tiny, "ada").status.kind == "ready"
    assert [*cache.view(tiny, "en").columns] == ["dense"]


def test_the_chosen_language_stays_while_the_slider_moves(cache, session, tiny) -> None:
    measured(cache, tiny, "de")
    chosen = facts_panel.choose(cache, tiny, "de", "ada")
    assert len(json.loads(chosen["facts"])["drawing"]["questions"]) == 32
    assert facts_panel.show(cache, tiny, 0, "ada") == chosen
    assert "questions" not in json.loads(facts_panel.show(cache, tiny, 0, "bob")["facts"])["drawing"]
