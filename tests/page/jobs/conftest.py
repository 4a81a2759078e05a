"""A scheduler that tests step by hand, and its clock."""

import pytest
from stepping import Clock, Stepped


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def scheduler(clock):
    return Stepped(clock)
