"""Bad input: one line, exit code 2, and nothing written; before any work where the values alone decide."""

from __future__ import annotations

from pathlib import Path

import pytest

from intraslice.__main__ import main


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("INTRASLICE_CACHE", str(tmp_path_factory.getbasetemp() / "commands-cache"))


@pytest.mark.parametrize(
    ("command", "wrong", "named"),
    [
        (
            "ratios",
            ["--head-fraction", "0.4"],
            "head_fraction must be one of 0.125, 0.25, 0.5, 1 for heads of 8 channels, got 0.4",
        ),
        ("evaluate", ["--method", "crossmodule", "--slicing", "1"], "slicing"),
        ("evaluate", ["--eval-tokens", "9000"], "tokens"),
        ("evaluate", ["--length", "513", "--eval-tokens", "513"], "length must be at most 512"),
        ("evaluate", ["--threads", "0"], "threads"),
        ("generate", ["--max-new-tokens", "0"], "max_new_tokens"),
        (
            "evaluate",
            ["--lock", "1", "mlp", "150"],
            "the percentage of “1 mlp” must be a number from 0 to 100, got 150",
        ),
        ("ratios", ["--method", "flatllm", "--lock", "3", "mlp", "30"], "layer 3 does not exist"),
        ("sweep", ["--prompt-tokens", "0"], "prompt"),
        ("sweep", ["--csv", "/no/such/folder/rows.csv"], "does not exist"),
        ("sweep", ["--also-eval", "a/one.txt", "b/one.txt"], "same name"),
        ("slice", [], "--out FOLDER, --gguf FILE, or both"),
        ("slice", ["--gguf", "there.gguf", "--method", "crossmodule"], "shortcut"),
        ("slice", ["--gguf", "there.gguf"], "WordLevel"),
        ("export", ["--gguf", "there.gguf"], "WordLevel"),
        ("export", ["--gguf", "there"], ".gguf"),
        ("export", ["--gguf", "/no/such/folder/there.gguf"], "cannot write"),
    ],
)
def test_bad_input_is_one_line_and_two(words, command, wrong, named, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main([command, *words, *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert named in captured.err.splitlines()[-1]
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("command", "wrong", "named"),
    [
        ("evaluate", ["--slicing", "0.2"], "method intraslice does not slice the residual stream"),
        ("evaluate", ["--method", "crossmodule", "--slicing", "nan"], "slicing must be at least 0"),
        ("evaluate", ["--eval-tokens", "3"], "--eval-tokens must be at least --length, 24 tokens, got 3"),
        ("ratios", ["--csv", "folder"], "cannot write folder (Is a directory)"),
        ("sweep", ["--csv", "folder"], "cannot write folder (Is a directory)"),
        ("sweep", ["--sparsities", "0.31", "0.99"], "sparsity must be a number from 0 to 0.8"),
        ("search", ["--out", "there.json", "--sparsities", "0.99"], "sparsity must be a number from 0 to 0.8"),
        ("search", ["--out", "there.json", "--sequences", "2"], "10 or more windows, got 4; there are two for each"),
        ("search", ["--out", "there.json", "--lock", "1", "mlp", "5"], "requires that no ratio is locked"),
        ("search", ["--out", "there.json", "--bias", "1.2"], "decide the bias, got 1.2"),
        ("ratios", ["--ratios", "search", "--shapes", "runtime"], "requires shapes 'free'"),
        ("ratios", ["--ratios", "search", "--estimator", "uniform"], "requires an estimator with importances"),
        ("sensitivity", ["--ratio", "0.3", "0"], "ratio must be above 0"),
        ("sensitivity", ["--context", "--method", "crossmodule"], "prunes individual modules"),
        ("generate", ["--prompt", " "], "--prompt is empty"),
        ("generate", ["--temperature", "inf"], "temperature must be a number from 0 to inf"),
    ],
)
def test_values_are_refused_before_anything_is_loaded(words, command, wrong, named, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("intraslice.pipeline.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    assert main([command, *words, *wrong]) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in Path().rglob("*")] == ["folder"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "python -m intraslice: interrupted"),
        (OSError(28, "No space left on device"), 2, "python -m intraslice: [Errno 28] No space left on device"),
        (OSError("first\nsecond"), 2, "python -m intraslice: first second"),
    ],
)
def test_an_interruption_and_a_file_error_are_one_line(words, error, code, line, capsys, monkeypatch):
    def load(*_, **__):
        raise error

    monkeypatch.setattr("intraslice.pipeline.load_model", load)
    assert main(["evaluate", *words]) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize(
    ("removed", "replacement"),
    [
        (["prices"], "use search"),
        (["evaluate", "--method", "svd"], "use modegpt"),
        (["sweep", "--methods", "intraslice", "svd"], "use modegpt"),
        (["export", "--vllm", "folder"], "use --gguf"),
    ],
)
def test_a_removed_name_is_answered_with_what_replaces_it(words, removed, replacement, capsys):
    with pytest.raises(SystemExit) as caught:
        main([*removed, *words])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f" was removed; {replacement}" in line


@pytest.mark.parametrize("wrong", [["--method", "other"], ["--estimators", "none"], ["--nonsense"]])
def test_what_argparse_refuses_is_one_line_and_two(words, wrong, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["sweep", *words, *wrong])
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
