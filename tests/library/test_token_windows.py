"""Text to windows, against text whose every word is one known token."""

import random
from pathlib import Path
from unittest.mock import Mock

import pandas
import pytest
import torch
from file_formats import write_documents, write_table
from refusing import refused

from intraslice import token_windows
from intraslice.core.config import CalibrationConfig, EvaluationConfig
from intraslice.token_windows import NAMED_CORPORA, calibration_tokens, describe, evaluation_tokens, read_documents

# 20 documents of 10 words, no word twice: a token says which document it comes from.
DOCUMENTS = [" ".join(f"d{document}w{word}" for word in range(10)) for document in range(20)]
FILES = ("own.txt", "own.jsonl", "own.csv", "own.parquet")


@pytest.fixture
def tokenizer(word_tokenizer):
    return word_tokenizer(" ".join(DOCUMENTS).split())


def write(folder: Path, name: str, documents: list[str] = DOCUMENTS) -> Path:
    return write_documents(folder / name, documents)


def text_of(tokenizer, tokens: torch.Tensor) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokens.flatten().tolist())


def refusal(text: str | Path, **options: str) -> str:
    return refused(read_documents, str(text), "calibration", **options)


@pytest.mark.parametrize("name", FILES)
def test_evaluation_reads_in_order_calibration_by_the_seed_and_both_apart(name, tmp_path, tokenizer, monkeypatch):
    path = str(write(tmp_path, name))
    tokens = evaluation_tokens(tokenizer, EvaluationConfig(path, tokens=100, window=15))
    assert (tokens.shape, tokens.dtype) == ((6, 15), torch.int64)
    assert text_of(tokenizer, tokens) == " ".join(DOCUMENTS).split()[:90]
    tokens = calibration_tokens(tokenizer, CalibrationConfig(path, sequences=7, length=25, seed=3))
    shuffled = list(DOCUMENTS)
    random.Random(3).shuffle(shuffled)
    assert tokens.shape == (7, 25)
    assert text_of(tokenizer, tokens) == " ".join(shuffled).split()[:175]
    monkeypatch.chdir(tmp_path)  # one file for both is split into disjoint documents
    seen = calibration_tokens(tokenizer, CalibrationConfig(path, sequences=16, length=10), name)
    unseen = evaluation_tokens(tokenizer, EvaluationConfig(name, tokens=40, window=10), path)
    assert set(text_of(tokenizer, seen)) == set(" ".join(DOCUMENTS[:16]).split())
    assert text_of(tokenizer, unseen) == " ".join(DOCUMENTS[16:]).split()


@pytest.mark.parametrize(("sequences", "read"), [(1, 5), (3, 8), (8, 8)])
def test_training_reads_on_where_calibration_ends_as_far_as_the_text_goes(tmp_path, tokenizer, sequences, read):
    config = CalibrationConfig(str(write(tmp_path, "own.txt")), sequences, length=25, seed=3)
    tokens = token_windows.training_tokens(tokenizer, config)
    assert tokens.shape == (read, 25)
    assert torch.equal(tokens[:sequences], calibration_tokens(tokenizer, config))


def test_two_files_are_each_used_whole(tmp_path, tokenizer):
    first, second = write(tmp_path, "first.txt"), write(tmp_path, "second.jsonl")
    tokens = calibration_tokens(tokenizer, CalibrationConfig(str(first), sequences=20, length=10), str(second))
    assert set(text_of(tokenizer, tokens)) == set(" ".join(DOCUMENTS).split())
    assert len(read_documents(str(first), "evaluation", "wikitext2")) == 20


def test_documents_are_joined_by_blank_lines_without_special_tokens(default_model, tmp_path):
    path = write(tmp_path, "own.jsonl", ["One line.\nAnother.", "A second document."])
    tokens = evaluation_tokens(default_model.tokenizer, EvaluationConfig(str(path), tokens=10, window=10))
    assert default_model.tokenizer.decode(tokens[0]) == "One line.\nAnother.\n\nA second"


def test_paragraphs_else_lines_are_documents_and_empty_rows_are_skipped(tmp_path):
    (tmp_path / "own.txt").write_bytes("\ufeffone\ntwo\r\n\r\n\n\nthree é\n\n \n\n".encode())
    assert read_documents(str(tmp_path / "own.txt"), "evaluation") == ["one\ntwo", "three é"]
    (tmp_path / "own.txt").write_text("one\ntwo\nthree\n")
    path = str(tmp_path / "own.txt")
    assert read_documents(path, "calibration", path) == ["one", "two"]
    assert read_documents(path, "evaluation", path) == ["three"]
    (tmp_path / "own.csv").write_text('text,id\n"a, b",1\nNA,2\n,3\n" ",4\n')
    assert read_documents(str(tmp_path / "own.csv"), "evaluation") == ["a, b", "NA"]
    (tmp_path / "own.jsonl").write_text('{"text": "a"}\n{"text": null}\n{"text": ""}\n')
    assert read_documents(str(tmp_path / "own.jsonl"), "evaluation") == ["a"]


@pytest.fixture
def taken(tokenizer, monkeypatch) -> list[int]:
    """The lengths of what is tokenised."""
    lengths: list[int] = []
    tokenize = type(tokenizer).__call__

    def counting(self: object, text: str, **options: object) -> object:
        lengths.append(len(text))
        return tokenize(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "__call__", counting)
    return lengths


def test_a_long_text_is_not_tokenised_whole(tmp_path, tokenizer, taken):
    path = str(write(tmp_path, "own.txt", DOCUMENTS * 500))
    tokens = evaluation_tokens(tokenizer, EvaluationConfig(path, tokens=150, window=150))
    assert text_of(tokenizer, tokens) == " ".join(DOCUMENTS).split()[:150]
    assert sum(taken) < 6000  # of half a million characters


def test_a_text_of_little_else_than_blanks_is_not_tokenised_whole(tmp_path, tokenizer, taken):
    path = str(write(tmp_path, "own.txt", ["d0w0" + " " * 500_000 + "d0w1", "d0w2"]))
    message = refused(evaluation_tokens, tokenizer, EvaluationConfig(path, tokens=60, window=60))
    assert "has 1 tokens for evaluation, expected 60" in message
    assert max(taken) < 2 * token_windows.CHARACTERS_PER_TOKEN * 76


def test_too_few_tokens_says_how_many_there_are(tmp_path, tokenizer):
    path = str(write(tmp_path, "own.txt"))
    for config, words in (
        (CalibrationConfig(path, 5, 64), "has 200 tokens for calibration, expected 5 x 64 = 320; lower sequences to 3"),
        (CalibrationConfig(path, 1), "expected 1 x 512 = 512; lower sequences and length, or choose"),
        (EvaluationConfig(path), "expected 16384 in windows of 512; choose a longer"),
        (EvaluationConfig(path, 640, 64), "expected 640 in windows of 64; lower the number of tokens to 200"),
    ):
        read = calibration_tokens if isinstance(config, CalibrationConfig) else evaluation_tokens
        assert words in refused(read, tokenizer, config)
    message = refused(evaluation_tokens, tokenizer, EvaluationConfig(path), path)
    assert message.startswith("'own.txt' has 40 tokens")  # where it lies is nobody's business


@pytest.mark.parametrize("text", ["nothing", "wiki text", "", "absent.txt", "a\0b", "~nobody/own.txt", "x" * 100_000])
def test_an_unknown_name_lists_the_known_ones(text):
    message = refusal(text)
    assert len(message) < 300
    assert all(name in message for name in ["default", "wikipedia", "wikitext2", ".txt", ".jsonl", ".csv", ".parquet"])


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl", "own.csv"])
def test_text_that_is_not_utf8(name, tmp_path, capfd):
    path = write(tmp_path, name, ["a plain start", "a café"] * 5)
    path.write_bytes(path.read_text(encoding="utf-8").replace("\\u00e9", "é").encode("latin-1"))
    assert "is not UTF-8" in refusal(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", FILES)
def test_files_without_text_are_refused(name, tmp_path, capfd):
    """`untrusted/test_text_files.py` has those that are broken."""
    path = tmp_path / name
    path.touch()
    assert "is empty" in refusal(path)
    assert "no text in it" in refusal(write(tmp_path, name, ["  ", "\n"]))
    if path.suffix != ".txt":
        write_table(path, text=[5, 6])
        kind = {".csv": "numbers", ".jsonl": "int", ".parquet": "int64"}[path.suffix]
        assert refusal(path) == f"{name} has {kind} in its column 'text'; expected strings"
    (tmp_path / "own.pdf").write_text("text")
    assert "is a .pdf file" in refusal(tmp_path / "own.pdf")
    refusal(tmp_path)  # a folder
    assert capfd.readouterr() == ("", "")


def test_one_document_cannot_serve_both(tmp_path):
    path = write(tmp_path, "own.jsonl", ["only one"])
    assert "has only one document" in refusal(path, other=str(path))


def test_the_parts_of_the_default_are_disjoint_and_whole():
    calibration, evaluation = read_documents("default", "calibration"), read_documents("default", "evaluation")
    assert len(calibration) + len(evaluation) == 10_033
    assert not set(calibration) & set(evaluation)
    assert 0.18 < len(evaluation) / 10_033 < 0.22
    assert read_documents("wikipedia", "evaluation") == evaluation  # the same text by its plain name


def test_the_default_gives_the_windows_it_always_gave(default_model):
    tokenizer = default_model.tokenizer
    evaluation = evaluation_tokens(tokenizer, EvaluationConfig())
    assert evaluation.shape == (32, 512)
    assert tokenizer.decode(evaluation[0]).startswith("Gypsum is a soft sulfate mineral composed of calcium sulfate")
    assert calibration_tokens(tokenizer, CalibrationConfig()).shape == (32, 512)


def test_wikitext_without_the_hub_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(
        token_windows, "hf_hub_download", Mock(side_effect=token_windows.LocalEntryNotFoundError("not cached"))
    )
    assert "use 'default'" in refusal("wikitext2")


def test_wikitext_is_the_usual_stream_in_articles(tmp_path, monkeypatch):
    rows = ["", " = One = \n", "", " text = of one \n", " = = Section = = \n", "", " = Two = \n", " text \n"]
    pandas.DataFrame({"text": rows}).to_parquet(tmp_path / "part.parquet")
    served = Mock(return_value=str(tmp_path / "part.parquet"))
    monkeypatch.setattr(token_windows, "hf_hub_download", served)
    articles = read_documents("wikitext2", "evaluation")
    assert [article.strip().splitlines()[0].strip() for article in articles] == ["= One =", "= Two ="]
    assert "\n\n".join(articles) == "\n\n".join(rows)
    read_documents("wikitext2", "calibration")
    requested = [call.args[1] for call in served.call_args_list]
    assert ["test" in requested[0], "train" in requested[1]] == [True, True]


def test_descriptions_name_source_and_licence():
    assert set(NAMED_CORPORA) == {"default", "wikipedia", "wikitext2"}
    assert "Wikipedia" in describe("default")
    assert "CC BY-SA 4.0" in describe("default")
    assert describe("folder/own.txt") == "own.txt, your own file"
