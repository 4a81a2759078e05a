"""The house as CONTRIBUTING.md draws it: two floors, arrows one way, rooms of a size. Read off the imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Whatever stands further down may import what stands above it, and nothing the other way round.
LIBRARY = (
    *("core", "distributed"),  # the ground
    *("untrusted", "planning", "modeling", "pretrained", "checkpoints", "loading", "data"),
    *("calibration", "slicing", "methods", "evaluation", "diagnostics", "reporting", "cli", "__init__", "__main__"),
)
PAGE = (
    *("assets", "i18n", "jobs", "state", "ui", "serving", "lesson", "frame"),
    *("ratios", "spectra", "activations", "compare", "sweep", "export"),
    *("tabs", "api", "make_snapshots", "intraslice_commands"),
)
STANDARD = {"__future__", "collections", "dataclasses", "functools", "typing"}
PURE = ("core/linalg.py", "planning", "slicing/attention.py", "slicing/mlp.py")
# The library's only doors on the page, beside `jobs/`, `state/` and the files called `measure.py`.
DOORS = {
    *("compare/models.py", "compare/answers.py", "compare/passages.py", "export/files.py"),
    *("make_snapshots.py", "intraslice_commands/publish.py"),
}
MOST_LINES, MOST_FILES, MOST_PARAMETERS = 300, 12, 7
# Signatures that are transformers' own, and the handlers that gradio calls with a value an input.
FOREIGN = {"forward", "from_pretrained"}


def modules(text: str) -> Iterator[str]:
    """Dotted names that a file imports, wherever in the file, `TYPE_CHECKING` included."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def cases(folder: str) -> list:
    return [pytest.param(path, id=path.relative_to(ROOT).as_posix()) for path in files(folder)]


def floor_of(name: str, floors: tuple[str, ...]) -> str | None:
    """The floor that a dotted name of the package lies on."""
    _, *rest = name.split(".")
    return rest[0] if rest and rest[0] in floors else None


def arrows_up(path: Path, text: str, floors: tuple[str, ...]) -> list[str]:
    """Imports of a file that lead from a lower floor to a higher one."""
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    found = {name for name in modules(text) if name.split(".")[0] == package}
    reached = {name: floor_of(name, floors) for name in found}
    return [name for name, floor in reached.items() if floor and floors.index(floor) > floors.index(rest[0])]


def strangers(path: Path, text: str) -> set[str]:
    """What a file imports that its place does not allow."""
    names = set(modules(text))
    packages = {name.split(".")[0] for name in names}
    place = path.relative_to(ROOT).as_posix()
    floor, _, rest = place.partition("/")
    if floor == "intraslice":
        found = packages & {"gradio", "plotly", "components", "app"}
        if any(rest == pure or rest.startswith(f"{pure}/") for pure in PURE):
            found |= packages - STANDARD - {"torch", "jaxtyping", "intraslice"}
            allowed = {"intraslice.core"} | ({"intraslice.planning"} if rest.startswith("planning/") else set())
            library = {name for name in names if name.startswith("intraslice.")}
            found |= {name for name in library if not any(f"{name}.".startswith(f"{room}.") for room in allowed)}
        return found
    if rest.startswith(("jobs/", "state/")) or path.name == "measure.py" or rest in DOORS:
        return packages & {"app"}
    return packages & {"torch", "transformers", "intraslice", "app"}


def imported_files(path: Path) -> set[Path]:
    """The project's own files that a file imports."""
    found = set()
    for name in modules(path.read_text(encoding="utf-8")):
        parts = name.split(".")
        if parts[0] in ("intraslice", "components"):
            place = ROOT.joinpath(*parts)
            found |= {file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()}
    return found - {path}


@pytest.mark.parametrize("path", cases("intraslice"))
def test_arrows_of_the_library_run_one_way(path):
    assert arrows_up(path, path.read_text(encoding="utf-8"), LIBRARY) == []


@pytest.mark.parametrize("path", cases("components"))
def test_arrows_of_the_page_run_one_way(path):
    assert arrows_up(path, path.read_text(encoding="utf-8"), PAGE) == []


@pytest.mark.parametrize("path", [*cases("intraslice"), *cases("components")])
def test_a_file_imports_what_its_place_allows(path):
    assert strangers(path, path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize("package", ["intraslice", "components"])
def test_no_two_files_import_each_other(package):
    whole = {path: imported_files(path) for path in files(package)}
    faces = {path for path in whole if path.name == "__init__.py"}  # they only hand names on
    TopologicalSorter({path: found - faces for path, found in whole.items() if path not in faces}).prepare()


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("intraslice/cli/deep/inside.py", "import gradio"),
        ("intraslice/planning/deep/inside.py", "from transformers import AutoConfig"),
        ("intraslice/slicing/mlp.py", "from intraslice.modeling.mlp import SlicedMLP"),
        ("intraslice/core/linalg.py", "from intraslice.distributed.sharing import all_reduce_"),
        ("components/sweep/charts.py", "def late():\n    import torch"),
        ("components/new_tab/panel.py", "from intraslice.methods.registry import METHODS"),
    ],
)
def test_a_planted_stranger_is_seen(place, line):
    assert strangers(ROOT / place, line)


@pytest.mark.parametrize(
    ("place", "line", "floors"),
    [
        ("intraslice/planning/deep/inside.py", "from intraslice.methods.registry import Plan", LIBRARY),
        ("intraslice/core/linalg.py", "import intraslice.modeling.counts", LIBRARY),
        ("intraslice/core/cache.py", "from intraslice.distributed.sharing import rank", LIBRARY),
        ("components/ui/inside.py", "from components.frame import theme", PAGE),
        (
            "components/frame/inside.py",
            "if TYPE_CHECKING:\n    from components.compare.panel import ComparePanel",
            PAGE,
        ),
    ],
)
def test_a_planted_arrow_up_is_seen(place, line, floors):
    assert arrows_up(ROOT / place, line, floors)


def test_what_is_allowed_is_no_offence():
    assert not strangers(ROOT / "components/new_tab/measure.py", "from intraslice.methods.registry import METHODS")
    assert not strangers(ROOT / "components/state/deep/inside.py", "import torch")
    assert not arrows_up(ROOT / "components/frame/inside.py", "from components.ui import figure", PAGE)


def test_every_file_has_a_floor():
    for package, floors in (("intraslice", LIBRARY), ("components", PAGE)):
        for path in files(package):
            name = path.relative_to(ROOT / package).with_suffix("").parts[0]
            assert name in floors or (package, name) == ("components", "__init__"), f"{path} is on no floor"


@pytest.mark.parametrize("path", [*cases("intraslice"), *cases("components"), *cases("tests")])
def test_no_file_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_no_folder_is_crowded():
    folders = {path.parent for package in ("intraslice", "components", "tests") for path in files(package)}
    crowded = {folder: len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in crowded.items() if count > MOST_FILES} == {}


@pytest.mark.parametrize("path", [*cases("intraslice"), *cases("components")])
def test_no_function_takes_too_much(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name not in FOREIGN:
            parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [parameter.arg for parameter in parameters if parameter.arg not in ("self", "cls")]
            called_by_gradio = "settings" in names and path.parent.parent.name == "components"
            assert len(names) <= MOST_PARAMETERS or called_by_gradio, node.name


def test_the_entry_is_small():
    assert len((ROOT / "app.py").read_text(encoding="utf-8").splitlines()) <= 81
