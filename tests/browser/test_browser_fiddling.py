"""A user who fiddles with the page of a tiny model, at any moment of a start with and without a calibration."""

import random

import pytest
from browsing import PATIENCE, Opened
from fiddling import VIEWPORT, Fiddler


@pytest.mark.parametrize("seed", [1, 3, 64])  # which together do everything
def test_a_user_who_fiddles_ends_with_one_setting_on_the_whole_page(
    seed, chromium, address, tiny_query, page_session
) -> None:
    with chromium.new_context(viewport=VIEWPORT) as context:
        context.set_default_timeout(PATIENCE)
        models = [f"{address}{tiny_query}&bias=1.0", f"{address}{tiny_query}&seed={seed}"]
        jobs = page_session.jobs.scheduler
        fiddler = Fiddler(Opened(context.new_page()), random.Random(seed), models, lambda: not jobs.jobs)
        fiddler.fiddle(7, patience=120)
