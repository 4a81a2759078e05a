"""Who may import whom (`[tool.importlinter]` in pyproject.toml), and how long files, folders and signatures may be."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
# The mathematics: modules and packages that import torch, jaxtyping and `intraslice.core` alone.
PURE = ("core.linalg", "planning", "slicing.attention", "slicing.mlp")
ALLOWED_IN_PURE = {"__future__", "collections", "dataclasses", "functools", "typing", "numpy", "torch", "jaxtyping"}
PACKAGES = ("intraslice", "components")
MAX_LINES, MAX_FILES, MAX_PARAMETERS = 300, 12, 7
# Signatures that are transformers' own, and the handlers that gradio calls with a value an input.
FOREIGN = {"forward", "from_pretrained"}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The result of `lint-imports` there. The width keeps it from breaking lines."""
    command, environment = (
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        {**os.environ, "COLUMNS": "300"},
    )
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def copy_packages(folder: Path) -> None:
    """Copy what `lint-imports` reads into an empty folder, to be changed there."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def test_imports_keep_to_the_layers():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


PLANTED = {  # a new module, its text, and the line of the report that must name it
    "intraslice/cli/planted.py": ("import gradio", "intraslice.cli.planted -> gradio"),
    "intraslice/core/planted.py": (
        "from intraslice.modeling.counts import kv_bytes_per_token",
        "intraslice.core.planted -> intraslice.modeling.counts",
    ),
    "intraslice/modeling/first.py": ("import intraslice.modeling.second", "No cycle between modules BROKEN"),
    "intraslice/modeling/second.py": (
        "import intraslice.modeling.first",
        "No cycles are allowed in intraslice.modeling.",
    ),
    "components/ui/planted.py": (
        "from components.frame import theme",
        "components.ui.planted -> components.frame.theme",
    ),
    "components/frame/planted.py": (
        "if TYPE_CHECKING:\n    from components.compare import panel",
        "components.frame.planted -> components.compare.panel",
    ),
    "components/ratios/planted.py": (
        "from components.compare import panel",
        "components.ratios.planted -> components.compare.panel",
    ),
    "components/sweep/planted.py": ("def late():\n    import torch", "components.sweep.planted -> torch"),
    "components/spectra/planted.py": (
        "from intraslice.methods.registry import METHODS",
        "components.spectra.planted -> intraslice.methods.registry",
    ),
    "components/i18n/planted.py": ("import app", "components.i18n.planted -> app"),
    "components/unlisted/__init__.py": ("", "- components.unlisted"),
}


def test_planted_imports_are_reported(tmp_path):
    copy_packages(tmp_path)
    (tmp_path / "components/unlisted").mkdir()
    for path, (text, _) in PLANTED.items():
        (tmp_path / path).write_text(f"{text}\n", encoding="utf-8")
    report = lint_imports(tmp_path).stdout
    assert {line for _, line in PLANTED.values() if line not in report} == set()


def test_the_mathematics_imports_numpy_torch_and_the_core_alone():
    graph = grimp.build_graph("intraslice", include_external_packages=True, cache_dir=None)
    for name in PURE:
        package = f"intraslice.{name}"
        for module in {package, *graph.find_descendants(package)}:
            for imported in graph.find_modules_directly_imported_by(module):
                inside = f"{imported}.".startswith(("intraslice.core.", f"{package}."))
                assert inside or imported in ALLOWED_IN_PURE, f"{module} imports {imported}"


def test_no_file_is_too_long():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in files(*PACKAGES, "tests")}
    assert {str(path): length for path, length in lengths.items() if length > MAX_LINES} == {}


def test_no_folder_is_crowded():
    counts = Counter(path.parent for path in files(*PACKAGES, "tests"))
    assert {str(folder): count for folder, count in counts.items() if count > MAX_FILES} == {}


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names of what is given to a function, `self` aside."""
    arguments = function.args
    names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return [name for name in names if name not in ("self", "cls")]


def test_no_function_takes_too_much():
    found = []
    for path in files(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name not in FOREIGN:
                names = parameters(node)
                called_by_gradio = "request" in names and "components" in (path.parent.name, path.parent.parent.name)
                if len(names) > MAX_PARAMETERS and not called_by_gradio:
                    found.append(f"{path.relative_to(ROOT)}: {node.name} takes {len(names)}")
    assert found == []


def test_the_entry_is_small():
    assert len((ROOT / "app.py").read_text(encoding="utf-8").splitlines()) <= 81
