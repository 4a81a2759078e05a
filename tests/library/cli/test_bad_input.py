"""Bad input: one line, exit code 2, and nothing written; before any work where the values alone decide."""

from pathlib import Path
from unittest.mock import Mock

import pytest

from intraslice.__main__ import main

BEFORE_LOADING = [
    ("evaluate --slicing 0.2", "method intraslice does not slice the residual stream"),
    ("evaluate --method flap --ratios search", "an estimator's ratios, which method flap does not use"),
    ("evaluate --method crossmodule --slicing 1", "slicing must be at least 0 and below 1"),
    ("evaluate --method crossmodule --slicing nan", "slicing must be at least 0"),
    ("evaluate --eval-tokens 3", "--eval-tokens must be at least --length, 24 tokens, got 3"),
    ("sweep --eval-length 200", "--eval-tokens must be at least --eval-length, 200 tokens, got 96"),
    ("evaluate --eval-length 1", "window must be"),
    ("evaluate --threads 0", "threads"),
    ("evaluate --lock 1 mlp much", "1 mlp much"),
    ("evaluate --ratios bad.csv", "bad.csv, row 2 (layer 1): mlp_ratio must be a number"),
    ("evaluate --ratios none.csv", "none.csv cannot be read as ratios"),
    ("evaluate --align mlp=64 --shapes runtime", "runtime shapes have an alignment already"),
    ("ratios --csv folder", "cannot write folder (Is a directory)"),
    ("ratios --csv nowhere/there.csv", "does not exist"),
    ("ratios --method crossmodule --csv there.csv", "no ratios to write"),
    ("ratios --ratios search --shapes runtime", "requires shapes 'free'"),
    ("ratios --ratios search --estimator uniform", "requires an estimator with importances"),
    ("slice", "--out FOLDER, --gguf FILE, or both"),
    ("slice --gguf there.gguf --method crossmodule", "shortcut"),
    ("export --gguf there", ".gguf"),
    ("export --gguf /no/such/folder/there.gguf", "cannot write"),
    ("generate --max-new-tokens 0", "max"),
    ("generate --prompt ' '", "--prompt is empty"),
    ("generate --temperature inf", "temperature must be"),
    ("sensitivity --ratio 0.3 0", "ratio must be above 0"),
    ("sensitivity --context --method crossmodule", "prunes individual modules"),
    ("search --out nowhere/there.json", "--out must be a .json file"),
    ("search --out there.json --sparsities 0.99", "sparsity must be"),
    ("search --out there.json --sequences 2", "10 or more windows, got 4; there are two for each"),
    ("search --out there.json --lock 1 mlp 5", "requires that no ratio is locked"),
    ("search --out there.json --bias 1.2", "decide the bias, got 1.2"),
    ("search --out there.json --windows 0", "windows must be"),
    ("search --out there.json --passes -1", "passes must be"),
    ("search --depth --out there.json --sparsities 0.4", "--out must be a .csv file"),
    ("search --depth --out there.csv", "--depth requires one sparsity, such as --sparsities 0.3, got 4"),
    ("search --depth --out there.csv --sparsities 0.4 --lock 1 mlp 5", "requires that no ratio is locked"),
    ("sweep --ratios search", "--ratios search works with"),
    ("search --out there.json --estimator auto", "--estimator auto works with"),
    ("sweep --prompt-tokens 0", "prompt"),
    ("sweep --csv /no/such/folder/rows.csv", "does not exist"),
    ("sweep --csv folder", "cannot write folder (Is a directory)"),
    ("sweep --sparsities 0.31 0.99", "sparsity must be"),
    ("paper --sparsities 0.3 1.5", "fraction of the decoder layers' parameters, such as 0.3), got 1.5"),
    ("tasks --tasks which --limit 0", "limit"),
]
BY_THE_MODEL = [
    ("ratios --head-fraction 0.4", "head_fraction must be one of 0.125, 0.25, 0.5, 1 for heads of 8 channels, got 0.4"),
    ("ratios --method flatllm --lock 3 mlp 30", "layer 3 does not exist"),
    ("ratios --ratios deep.csv", "layer 30 does not exist, so it cannot be locked; layers are 0 to 2"),
    ("ratios --ratios much.csv", "the locked ratios remove 8"),
    ("evaluate --eval-tokens 9000", "tokens"),
    ("evaluate --length 513 --eval-tokens 513", "length must be at most 512"),
    ("sweep --also-eval a/one.txt b/one.txt", "same name"),
    ("slice --gguf there.gguf", "WordLevel"),
    ("export --gguf there.gguf", "WordLevel"),
    ("paper --length 600 --eval-tokens 600", "the model's maximum context length"),
    ("paper --sequences 900000000", "GiB is free"),
]
BY_ARGPARSE = [
    ("sweep --method other", "invalid choice: 'other'"),
    ("sweep --estimators none", "invalid choice: 'none'"),
    ("sweep --nonsense", "unrecognized arguments: --nonsense"),
    ("ratios --estimator none.py:energy", "cannot be read"),
    ("ratios --estimator mine.py:nothing", "does not define"),
    ("ratios --estimator mine.py", "write mine.py:FUNCTION"),
    ("prices", "was removed; use search"),
    ("evaluate --answers 251", "expected a number of prompts up to 250, got 251"),
    ("evaluate --method svd", "was removed; use modegpt"),
    ("sweep --methods intraslice svd", "was removed; use modegpt"),
    ("export --vllm folder", "was removed; use --gguf"),
    ("slice --out folder --iterative", "iterative was removed; use order sequential"),
]


@pytest.fixture
def refusal(home, error_of):
    """The last line on stderr of a command that must fail and write nothing."""
    (home / "folder").mkdir()
    (home / "mine.py").write_text("def energy(layer):\n    return None\n")
    (home / "bad.csv").write_text("layer,attention_ratio,mlp_ratio\n0,0.3,0.3\n1,0.3,lots\n")
    (home / "deep.csv").write_text("layer,mlp_ratio\n30,0.3\n")
    (home / "much.csv").write_text("layer,attention_ratio,mlp_ratio\n" + "".join(f"{i},0.9,0.9\n" for i in range(3)))

    def files() -> list[Path]:
        return sorted(file for file in Path().rglob("*") if "__pycache__" not in file.parts)

    def line(text: str) -> str:
        before, message = files(), error_of(text)
        assert files() == before
        return message

    return line


@pytest.mark.parametrize(("line", "named"), BEFORE_LOADING)
def test_values_are_refused_before_anything_is_loaded(refusal, line, named, monkeypatch):
    monkeypatch.setattr("intraslice.pipeline.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    assert named in refusal(line)


@pytest.mark.parametrize(("line", "named"), [*BY_THE_MODEL, *BY_ARGPARSE])
def test_bad_input_is_one_line_and_two(refusal, line, named):
    assert named in refusal(line)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "python -m intraslice: interrupted"),
        (OSError(28, "No space left on device"), 2, "python -m intraslice: [Errno 28] No space left on device"),
        (OSError("first\nsecond"), 2, "python -m intraslice: first second"),
    ],
)
def test_an_interruption_and_a_file_error_are_one_line(words, error, code, line, capsys, monkeypatch):
    monkeypatch.setattr("intraslice.pipeline.load_model", Mock(side_effect=error))
    assert main(["evaluate", *words]) == code
    assert capsys.readouterr().err == f"{line}\n"
