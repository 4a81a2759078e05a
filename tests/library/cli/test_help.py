"""The help of the command line: every option has one, with its default."""

import argparse

import pytest

from intraslice.cli.parser import parser

COMMANDS = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))


@pytest.mark.parametrize("name", COMMANDS.choices)
def test_every_option_has_a_help(name):
    assert [action.dest for action in COMMANDS.choices[name]._actions if not action.help] == []


def test_defaults_are_shown_once():
    text = " ".join(COMMANDS.choices["sweep"].format_help().split())
    assert "sampled answers and of the search for ratios (default: 0)" in text
    assert "parameters to remove (default: 0.1 0.2 0.3 0.4)" in text
    assert "number of CPU threads (default: PyTorch's) --json" in text
    assert "default: None" not in text
    assert "default: False" not in text


def test_a_former_name_works_and_is_not_listed():
    assert "exchange" in COMMANDS.choices
    listed = [action.dest for action in COMMANDS._choices_actions]
    assert "search" in listed
    assert "exchange" not in listed
