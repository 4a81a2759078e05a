"""The models of test_plans.py, for all tests of plans."""

import pytest
from test_plans import MODELS, profile_of

from intraslice.planning.profile import Profile


@pytest.fixture(params=MODELS.values(), ids=MODELS)
def profile(request) -> Profile:
    return profile_of(*request.param)
