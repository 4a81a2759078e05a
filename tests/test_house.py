"""One house, two floors: imports point one way only, and a file knows no more than its floor."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("linalg", "planning/profile", "planning/ratios", "slicing/attention", "slicing/mlp")
TENSORS = {"torch", "jaxtyping", "intraslice"}


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def files(folder: str, pattern: str = "*.py") -> list:
    found = sorted((ROOT / folder).rglob(pattern))
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in found]


@pytest.mark.parametrize("path", files("intraslice"))
def test_the_library_knows_no_page(path):
    assert not packages(path) & {"gradio", "plotly", "components", "app"}


@pytest.mark.parametrize("name", PURE)
def test_the_mathematics_imports_torch_alone(name):
    path = ROOT / "intraslice" / f"{name}.py"
    standard = {"__future__", "collections", "dataclasses", "functools"}
    assert packages(path) <= TENSORS | standard


@pytest.mark.parametrize("path", files("components"))
def test_only_the_session_and_its_parts_call_the_library(path):
    allowed = {"compare/models", "compare/answers", "compare/passages", "export/files", "make_snapshots"}
    place = path.relative_to(ROOT / "components").with_suffix("").as_posix()
    if not (place.startswith("session/") or path.name == "measure.py" or place in allowed):
        assert not packages(path) & {"torch", "transformers"}
        assert not {name for name in imports(path) if name.startswith("intraslice.")}


def test_the_entry_is_small():
    assert len((ROOT / "app.py").read_text(encoding="utf-8").splitlines()) < 80
