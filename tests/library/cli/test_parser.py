"""The options: their help, commands from outside, and what is said of those without a use."""

import argparse
import re
from dataclasses import fields
from pathlib import Path

import pytest

from intraslice import api
from intraslice.__main__ import main
from intraslice.cli import parser as module
from intraslice.cli.parser import parser
from intraslice.cli.run import Run, names_of
from intraslice.core.config import CalibrationConfig, EvaluationConfig, SliceConfig
from intraslice.core.registry import ESTIMATORS, RECOVERIES
from intraslice.methods.registry import METHODS

COMMANDS = next(action for action in parser()._actions if isinstance(action, argparse._SubParsersAction))
GREET = '''
"""Greet somebody.

More of it.
"""

UNUSED = "calibration"


def add_options(command):
    command.add_argument("--whom", required=True)


def run(run):
    return {"greeted": run.arguments.whom}, f"hello {run.arguments.whom}, at {run.recipe.slicing.sparsity:g}"
'''


@pytest.mark.parametrize("name", COMMANDS.choices)
def test_every_command_explains_its_options_in_groups(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # no word is broken at its hyphen
    assert [action.dest for action in COMMANDS.choices[name]._actions if not action.help] == []
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert re.findall(r"^(\w+):$", text, re.M)[1:] == ["model", "slicing", "calibration", "evaluation", "output"]
    for entry in (*METHODS.values(), *ESTIMATORS.values(), *RECOVERIES.values()):
        assert f"{entry.name}: {entry.explanation}" in text


def test_defaults_are_shown_once():
    text = " ".join(COMMANDS.choices["sweep"].format_help().split())
    assert "sampled answers and of the search for ratios (default: 0)" in text
    assert "parameters to remove (default: 0.1 0.2 0.3 0.4)" in text
    assert "number of CPU threads (default: PyTorch's) slicing:" in text
    assert "default: None" not in text
    assert "default: False" not in text


def test_every_field_of_a_config_is_an_option():
    for config, apart in ((SliceConfig, {"fit"}), (CalibrationConfig, set()), (EvaluationConfig, {"window"})):
        assert names_of(config).keys() == {field.name for field in fields(config)} - apart
    assert {*api.OPTIONS} >= names_of(SliceConfig).keys() - {"sparsity"}


def test_a_file_in_the_folder_of_extensions_is_a_command(tmp_path: Path, monkeypatch, capsys, caplog) -> None:
    folder = tmp_path / "greetings" / module.EXTENSIONS
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    (folder / "greet.py").write_text(GREET.lstrip())
    monkeypatch.setattr(module, "CLONE", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["greet", "--whom", "you", "--sparsity", "0.2", "--seed", "1"]) == 0
    assert capsys.readouterr().out == "hello you, at 0.2\n"
    assert caplog.messages == ["--seed ignored: not used by the command greet"]
    with pytest.raises(SystemExit):
        parser().parse_args(["--help"])
    assert "greet somebody\n" in capsys.readouterr().out
    monkeypatch.setattr(module, "EXTENSIONS", "no_such_folder")
    assert module.extensions() == {}
    assert parser().parse_args(["ratios"]).command == "ratios"


def test_a_file_of_an_extension_is_light() -> None:
    """All commands import it, so it must not import what it is for."""
    lines = Path(str(module.extensions()["publish"].__file__)).read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if line.startswith(("from .", "from components", "import components"))]


@pytest.mark.parametrize(
    ("line", "unused"),
    [
        ("evaluate --seed 1 --lock 1 mlp 5 --head-fraction 0.5 --cap 0.7 --order one-shot", ""),
        ("evaluate --recover distill --epochs 2", ""),
        ("evaluate --method intraslice+ --epochs 2", ""),
        ("ratios --ratios search --passes 5", ""),
        ("search --out m.json --passes 5 --cap 0.7", ""),
        ("sensitivity --head-fraction 0.5 --estimator uniform --ratio 0.2", ""),
        ("sensitivity --context --sparsity 0.2 --bias 1", ""),
        ("sweep --methods wanda intraslice --head-fraction 0.5 --seed 1 --prompt-tokens 9", ""),
        ("evaluate --method wanda --estimator pca --bias 1.3 --order one-shot", "--estimator, --order: method wanda"),
        ("ratios --method shortgpt --bias 1.3 --cap 0.7 --align mlp=8", "--bias, --cap, --align: method shortgpt"),
        ("ratios --method crossmodule --lock 1 mlp 25", "--lock: method crossmodule"),
        ("evaluate --method crossmodule --slicing 0.2 --sparsity 0.3", "--sparsity: --slicing"),
        ("evaluate --estimator uniform --head-fraction 0.5", "--head-fraction: estimator uniform"),
        ("evaluate --epochs 0 --passes 3", "--passes: ratios without a search; --epochs: recovery none"),
        ("ratios --eval-tokens 600 --recover distill", "--recover, --eval-tokens: the command ratios"),
        ("export --gguf f.gguf --sparsity 0.3 --seed 1 --eval e", "--sparsity, --seed, --eval: the command export"),
        ("slice --out folder --size 2 MB --context 9 --sparsity 0.2", "--sparsity: --size"),
        ("evaluate --context 9", "--context: a slice without --size"),
        ("slice --out folder --type q8_0", "--type: a slice without --gguf"),
        ("sensitivity --sparsity 0.2 --method wanda", "--method, --sparsity: sensitivity without --context"),
        ("sensitivity --context --ratio 0.2", "--ratio: --context"),
        ("inspect --method crossmodule --slicing 0.2", "--slicing: the command inspect"),
        ("sweep --sparsity 0.2 --methods wanda --shapes runtime", "--sparsity: the command sweep"),
        ("sweep --no-speed --prompt-tokens 9 --seeds 1 --seed 3", "--prompt-tokens: --no-speed; --seed: --seeds"),
        ("device --sparsity 0.3", "--device, --sparsity: the command device"),
    ],
)
def test_given_options_without_a_use_are_named(line, unused, caplog):
    Run(parser().parse_args([*line.split(), "--device", "cpu"]))
    assert "; ".join(caplog.messages).replace(" ignored: not used by", ":") == unused
