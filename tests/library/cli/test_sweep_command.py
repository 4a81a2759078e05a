"""The sweep over types of the weights on the command line."""

from __future__ import annotations

from intraslice.__main__ import main


def test_sweep_with_types_of_weights_shows_the_dense_model_and_says_which_model_has_no_file(run, words, capsys):
    chosen = ["sweep", "--methods", "intraslice", "--estimators", "pca", "--sparsities", "0.2", "--no-speed"]
    rows = run(*chosen, "--quantise", "none", "q4_0")["rows"]
    assert [(row["method"], row["quantise"]) for row in rows] == [
        (method, kind) for method in ("dense", "intraslice") for kind in ("none", "q4_0")
    ]
    assert rows[0]["perplexity"] == rows[0]["dense_perplexity"]
    assert rows[0]["bytes"] > rows[2]["bytes"]
    assert "tokenizer" in rows[3]["note"]  # of words, which llama.cpp does not have
    for types, shown in (["none", "q4_0"], True), (["none"], False):
        assert main([*chosen, *(word for word in words if word != "--json"), "--quantise", *types]) == 0
        assert ("quantise" in capsys.readouterr().out) == shown
