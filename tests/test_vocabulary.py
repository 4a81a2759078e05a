"""The field's words: names and phrases that no reader from outside knows are found where they come back."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Whole names. What is public in an output, a link or an option keeps its name where that is written as a string.
NAMES = {
    *("foretell", "foretold", "foreseen", "lots", "twin", "felt", "spoken", "told", "say", "later", "Words"),
    *("hearing", "looking_at", "listening", "whenever", "follower", "followers", "Follower", "let_go", "at_rest"),
    *("while_open", "stranger", "strangers", "visitor", "visitors", "given", "known", "own", "wanted"),
    *("Served", "draft", "settled", "settling", "parts_from", "HARD", "NONE", "price"),
}
PATTERN = re.compile(r"MOST(_\w+)?")
PHRASES = re.compile(
    r"\b(foret(?:ell|old)\w*|foresee[ns]?|drawn by lot|went astray|parts? from the dense|what (?:goes|stays)\b"
    r"|strangers?|visitors?|things of yours|the loss feels|gives? most|gives? alike)",
    re.IGNORECASE,
)
CODE = [ROOT / "app.py", *sorted((ROOT / "intraslice").rglob("*.py")), *sorted((ROOT / "components").rglob("*.py"))]
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "assets" / "texts").rglob("*.*")),
    *sorted((ROOT / "assets").rglob("*.js")),
]
# Environment variables and keys of JSON outputs keep their names.
COMPATIBLE = re.compile(r'INTRASLICE_\w+|VISITOR_\w+|"foretold"')


def retired_names(source: str) -> set[str]:
    """The retired names that a module uses for its variables, parameters, attributes, functions and classes."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.keyword(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
    return {name for name in names if name and (name.strip("_") in NAMES or PATTERN.fullmatch(name))}


def test_no_name_is_retired() -> None:
    found = {path.relative_to(ROOT).as_posix(): retired_names(path.read_text(encoding="utf-8")) for path in CODE}
    assert {path: names for path, names in found.items() if names} == {}


def test_no_phrase_is_retired() -> None:
    texts = {path: COMPATIBLE.sub("", path.read_text(encoding="utf-8")) for path in CODE + TEXTS}
    found = {path.relative_to(ROOT).as_posix(): PHRASES.findall(text) for path, text in texts.items()}
    assert {path: phrases for path, phrases in found.items() if phrases} == {}
