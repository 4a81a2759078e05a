"""Who may import whom (`[tool.importlinter]` in pyproject.toml); sizes of packages, files, functions and signatures."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).parent.parent
# The mathematics: modules and packages that import torch, jaxtyping and `intraslice.core` alone.
PURE = ("core.linalg", "planning", "slicing.attention", "slicing.mlp")
ALLOWED_IN_PURE = {"__future__", "collections", "dataclasses", "functools", "typing", "numpy", "torch", "jaxtyping"}
PACKAGES = ("intraslice", "components")
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_IMPORTS = 500, 60, 7, 15
# What imports from everywhere by its nature: the public names, the options of all commands, and the whole page.
ENTRIES = {"intraslice/__init__", "intraslice/cli/parser", "components/api", "components/page"}
Function = ast.FunctionDef | ast.AsyncFunctionDef
# What the page has above a limit, to be divided, and never to grow: functions and their lines, files and their imports.
LONG = {
    "build": 148,  # in frame/controls.py
    "connect": 138,
    "routes": 81,
    "write_answers": 64,
}
WIDE = {"compare/panel": 24, "export/pages": 19, "export/panel": 20, "sweep/measure": 22, "sweep/panel": 22}
WIDE |= {"make_snapshots": 23, "state/calibrations": 23, "state/precomputed": 16, "state/readings": 16}
WIDE |= {"state/session": 29}
# Signatures that are transformers' own, and the handlers that gradio calls with a value an input.
FOREIGN = {"forward", "from_pretrained"}


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The result of `lint-imports` there. The width keeps it from breaking lines."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=os.environ | {"COLUMNS": "300"}, capture_output=True, text=True)


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


def length(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def test_no_file_is_too_long_and_the_entry_small():
    found = {str(path.relative_to(ROOT)): length(path) for path in files(*PACKAGES, "tests")}
    assert {path: lines for path, lines in found.items() if lines > MAX_FILE_LINES} == {}
    assert len((ROOT / "app.py").read_text(encoding="utf-8").splitlines()) <= 81


def test_no_function_is_too_long_or_takes_too_much():
    found = []
    for path in files(*PACKAGES):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, Function):
                continue
            given = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            place, names = f"{path.relative_to(ROOT)}: {node.name}", {one.arg for one in given} - {"self", "cls"}
            called_by_gradio = "request" in names and "components" in (path.parent.name, path.parent.parent.name)
            if len(names) > MAX_PARAMETERS and node.name not in FOREIGN and not called_by_gradio:
                found.append(f"{place} takes {len(names)}")
            lines = node.end_lineno - node.lineno + 1
            if lines > LONG.get(node.name, MAX_FUNCTION_LINES):
                found.append(f"{place} has {lines} lines")
    assert found == []


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists()), None)


def imported(path: Path) -> dict[str, str]:
    """Names that a file imports from the two packages, and the modules that define them, re-exports resolved."""
    found, package = {}, list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        base = node.module or ""
        if node.level:
            base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
        if base.split(".")[0] in PACKAGES:
            file = file_of(base)
            exports = file is not None and file.name == "__init__.py" and file != path
            defined = imported(file) if exports else {}
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found[alias.asname or alias.name] = name if file_of(name) else defined.get(alias.name, base)
    return found


def test_no_file_depends_on_too_many_others():
    found = {str(path.relative_to(ROOT).with_suffix("")): {*imported(path).values()} for path in files(*PACKAGES)}
    limits = {name: WIDE.get(name.partition("/")[2], MAX_IMPORTS) for name in found.keys() - ENTRIES}
    assert {name: len(found[name]) for name, limit in limits.items() if len(found[name]) > limit} == {}
