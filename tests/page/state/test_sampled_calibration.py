"""A calibration of the page on text and on samples of the dense model, and what without samples stays as it was."""

import torch
from tiny_page import SOMEBODY

from components.estimator import measure
from components.estimator.measure import RatioSearches
from components.frame import handlers
from components.state import readings
from intraslice.core.cache import cache_path
from intraslice.core.errors import UserError
from intraslice.core.progress import ignore_progress
from intraslice.samples import kept_samples


def test_a_calibration_reads_its_text_and_then_what_the_dense_model_samples(session, tiny, monkeypatch) -> None:
    sampled = tiny.with_settings(samples=3)
    statuses = [event.text for event in session.prepare(sampled, SOMEBODY)]
    assert any("Sampling text from the dense model, token" in text for text in statuses)
    reads = "Calibrated on 8 x 32 tokens: text.txt, your own file, and 3 x 32 that the dense model sampled"
    assert statuses[-1].endswith(reads)
    plain, whole = session.calibrated(tiny), session.calibrated(sampled)
    assert torch.equal(whole.tokens[:8], plain.tokens)
    assert torch.equal(whole.tokens[8:], kept_samples(whole.loaded.model, (3, 32), 1.0, 0, ignore_progress))
    assert torch.equal(whole.training, plain.training)
    for request in (tiny, sampled):
        *_, last = session.measure(request, SOMEBODY)
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
    [*RatioSearches(session).measure(sampled, SOMEBODY)]
    ((text, count, skip),) = asked
    assert torch.equal(text, plain.training[8:16])  # the text after the calibration's
    assert (count, skip) == (16, 3)


def test_the_minutes_of_the_budgets_are_those_of_the_chosen_model(session, tiny) -> None:
    quick, thorough = session.check(tiny.settings.model).budget_seconds.values()
    assert 0 < quick < thorough
    info = handlers.minutes(session, tiny.settings.model)["budget"]["info"]
    assert info.endswith(f"about {quick:.0f} s and {thorough:.0f} s.")
    assert "Thorough: 128 x 512, and 16 x 512 that the dense model samples" in info
    assert "about" not in handlers.minutes(session, "no/such/model")["budget"]["info"]
