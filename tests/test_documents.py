"""The documents: their links lead somewhere, their commands can be given, and they stay short enough to be read."""

import ast
import re
import shlex
from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub.cli.hf import app
from test_house import MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_IMPORTS, MAX_PARAMETERS

import intraslice
from intraslice.cli.parser import parser

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + [*(ROOT / "docs").glob("*.md")]
DOCUMENTS.append(ROOT / "docs" / "llms.txt")
EXAMPLES = {"energy", "random-heads"}  # which docs/extending.md adds; tests/test_extending.py runs those commands
MAX_LINES_OF = {
    "architecture.md": 240,
    "README.md": 90,
    "CONTRIBUTING.md": 90,
    "CHANGELOG.md": 80,
    "results.md": 530,
    "usage.md": 260,
}  # after the front matter
MAX_WORDS = 18_000  # of all documents, without the cells of tables


def text_of(document: Path) -> str:
    """Its text without the front matter of a Space's card."""
    return re.sub(r"\A---\n.*?\n---\n", "", document.read_text(encoding="utf-8"), flags=re.S)


def anchors(document: Path) -> set[str]:
    """The ids that GitHub, and the site, give to its headings."""
    text = re.sub(r"^```.*?^```", "", text_of(document), flags=re.S | re.M)
    return {re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document) -> None:
    links = re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text_of(document))
    relative = [(document.parent / file if file else document, anchor) for file, anchor in links if ":" not in file]
    assert [file for file, _ in relative if not file.exists()] == []
    assert [(file, anchor) for file, anchor in relative if anchor and anchor not in anchors(file)] == []


def test_files_that_are_named_are_there() -> None:
    named = re.compile(r"`((?:intraslice|components|assets|tests|docs)/[\w/.-]+\.(?:py|js|json|md|ipynb|npz))`")
    missing = {
        (document.name, path)
        for document in DOCUMENTS
        if document.name != "CHANGELOG.md"
        for path in named.findall(text_of(document))
        if not (ROOT / path).exists() and "summary" not in path and "energy" not in path
    }
    assert missing == set()


def test_commands_can_be_given() -> None:
    texts = "\n".join(map(text_of, DOCUMENTS))
    lines = re.findall(r"^    (?:python|torchrun .*) -m intraslice (.*)$", texts, re.M)
    # One command reads the file that the command before it writes.
    commands = [shlex.split(line.replace("pca searched.json", "pca"), comments=True) for line in lines]
    commands = [words for words in commands if not EXAMPLES & set(words)]
    assert len(commands) > 25
    for words in commands:
        if words[0] not in ("device", "publish"):  # which the page adds
            parser().parse_args(words)


def test_commands_of_a_static_space_create_it_as_static_and_upload_the_folder(monkeypatch, tmp_path) -> None:
    """Without the first command, a Space would be created as a Gradio Space, which needs a paid plan."""
    api = Mock()
    monkeypatch.setattr("huggingface_hub.cli.repos.get_hf_api", lambda *_, **__: api)
    monkeypatch.setattr("huggingface_hub.cli.upload.get_hf_api", lambda *_, **__: api)
    (create,) = re.findall(r"^    hf (repos create .*)$", text_of(ROOT / "docs" / "deployment.md"), re.M)
    upload, _ = re.findall(r"^    hf (upload .*)$", text_of(ROOT / "docs" / "deployment.md"), re.M)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site").mkdir()
    app.main(shlex.split(create), standalone_mode=False)
    created = api.create_repo.call_args.kwargs
    assert (created["repo_type"], created["space_sdk"], created["exist_ok"]) == ("space", "static", True)
    app.main(shlex.split(upload), standalone_mode=False)
    uploaded = api.upload_folder.call_args.kwargs
    assert (Path(uploaded["folder_path"]).name, uploaded["path_in_repo"]) == ("site", ".")


def test_command_of_a_live_space_makes_one_with_the_clone_at_its_top(monkeypatch) -> None:
    api = Mock()
    monkeypatch.setattr("huggingface_hub.cli.upload.get_hf_api", lambda *_, **__: api)
    _, line = re.findall(r"^    hf (upload .*)$", text_of(ROOT / "docs" / "deployment.md"), re.M)
    monkeypatch.chdir(ROOT)
    app.main(shlex.split(line), standalone_mode=False)
    created, uploaded = api.create_repo.call_args.kwargs, api.upload_folder.call_args.kwargs
    assert (created["repo_type"], created["space_sdk"]) == ("space", "gradio")
    assert (uploaded["path_in_repo"], uploaded["ignore_patterns"]) == (".", ["tests/**"])


def test_examples_use_what_the_library_has() -> None:
    used = set()
    for code in re.findall(r"```python\n(.*?)```", "\n".join(map(text_of, DOCUMENTS)), re.S):
        used |= {node.attr for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Attribute)
                 and isinstance(node.value, ast.Name) and node.value.id == "intraslice"}  # fmt: skip
    assert len(used) > 5
    assert used <= {*intraslice.__all__}


def test_they_are_short_enough_to_be_read() -> None:
    lengths = {document.name: len(text_of(document).splitlines()) for document in DOCUMENTS}
    assert {name: length for name, length in lengths.items() if length > MAX_LINES_OF.get(name, 250)} == {}
    lines = "\n".join(map(text_of, DOCUMENTS)).splitlines()
    assert sum(len(line.split()) for line in lines if not line.startswith("|")) <= MAX_WORDS


def test_the_citation_is_of_this_version_and_the_rules_have_the_numbers_that_are_tested() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == intraslice.__version__
    rules = (
        f"{MAX_FILE_LINES} lines per file, {MAX_FUNCTION_LINES} lines and {MAX_PARAMETERS} parameters per function",
        f"at most {MAX_IMPORTS} of our modules",
    )
    assert [rule for rule in rules if rule not in text_of(ROOT / "CONTRIBUTING.md")] == []
