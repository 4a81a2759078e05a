"""A user who fiddles with the page of a tiny model, at any moment of a start with and without a calibration."""

import random

import pytest
from browsing import Opened
from fiddling import Fiddler, open_page


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_user_who_fiddles_ends_with_one_setting_on_the_whole_page(seed, chromium, address, tiny_query) -> None:
    page = open_page(chromium)
    warm, cold = f"{tiny_query}&bias=1.0", f"{tiny_query}&seed={seed}"
    fiddler = Fiddler(Opened(page), address, random.Random(seed), [warm, cold])
    fiddler.start()
    fiddler.act(8)
    fiddler.check(patience=60)
    page.context.close()
