"""IntraSlice in a notebook: `explore`, and the exercises of the course."""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas
import plotly.graph_objects as go
import pytest
import torch

from intraslice.core.registry import ESTIMATORS

NOTEBOOK = Path(__file__).parents[3] / "assets" / "explore.ipynb"
CELLS = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def executed(cells: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """What each cell's last expression came to, and the names that are there in the end: a notebook without Jupyter."""
    names, results = {}, []
    for number, cell in enumerate(cells):
        body = ast.parse(cell).body
        last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
        exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
        results.append(eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None)
    return results, names


@pytest.fixture
def given(tiny, monkeypatch) -> str:
    """A cell after the parameters, as papermill has it: a tiny model and few tokens; in the notebook's folder."""
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    sizes = {"SEQUENCES": 8, "LENGTH": 32, "TOKENS": 256, "SPARSITY": 0.4, "LAYER": 1}
    values = {"MODEL": tiny.settings.model, "TEXT": tiny.settings.text, **sizes}
    return "\n".join(f"{name} = {value!r}" for name, value in values.items())


def test_every_cell_runs(given, capsys) -> None:
    parameters, *others = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
    results, names = executed([parameters, given, *others])
    figures = [result for result in results if isinstance(result, go.Figure)]
    assert [figure.layout.title.text for figure in figures] == [
        "Pruning ratio per layer",
        "Importances in layer 1 and the global thresholds",
        "Perplexity against parameters removed",
    ]
    assert all('"@' not in figure.to_json() for figure in figures)  # the page's names of colours are none of plotly's
    plan, sliced = names["plan"], names["sliced"]
    assert sum(weight.numel() for weight in sliced.parameters()) == plan.parameters.sliced_total
    assert plan.removed_fraction == pytest.approx(0.4, abs=0.02)
    bars = [trace for trace in figures[0].data if trace.type == "bar"]
    assert list(bars[1].y) == pytest.approx([layer.mlp_ratio for layer in plan.layers], rel=1e-4)
    assert names["perplexities"]["dense"] == pytest.approx(names["frame"]["dense_perplexity"][0])
    at = names["frame"].query("method == 'intraslice' and sparsity == 0.4")["perplexity"].item()
    assert names["perplexities"]["sliced"] == pytest.approx(at)
    assert "sliced: " in capsys.readouterr().out


FOLDER = Path(__file__).parents[3] / "docs" / "exercises"
NAMES = ["1_explained_variance", "2_fuse_a_rotation", "3_which_layer_hurts_most", "4_beat_the_estimator"]
# Parameters of the tiny model's run; each notebook has some of these.
TINY = {"SEQUENCES": 8, "LENGTH": 32, "LAYER": 1, "TOKENS": 256, "WINDOW": 32, "SPARSITY": 0.4, "WIDTHS": [6, 4]}


@pytest.fixture(autouse=True)
def registered_estimators() -> Iterator[None]:
    """The estimators as they were, without those that a notebook registers."""
    before = dict(ESTIMATORS)
    yield
    ESTIMATORS.clear()
    ESTIMATORS.update(before)


def cells_of(name: str) -> list[dict[str, Any]]:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


def tags_of(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def sources(name: str) -> list[str]:
    return ["".join(cell["source"]) for cell in cells_of(name) if cell["cell_type"] == "code"]


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]) -> dict[str, Any]:
    """Run a notebook in `folder`, with some parameters changed, and print its tables. Returns the names at its end."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    parameters, *others = sources(name)
    assigned = {node.id for node in ast.walk(ast.parse(parameters)) if isinstance(node, ast.Name)}
    values = "\n".join(f"{key} = {value!r}" for key, value in changed.items() if key in assigned)
    with torch.enable_grad():  # restores what a notebook sets for all of its cells
        results, names = executed([parameters, values, *others])
    for result in results:
        if isinstance(result, pandas.DataFrame):
            print(result, end="\n\n")
    return names


def check(name: str, names: dict[str, Any]) -> None:
    """Assertions about results, besides those in the notebook."""
    if name == "1_explained_variance":
        assert len(names["frame"]) == sum(len(heads) for heads in names["stats"].kv_heads)
        assert 0 < names["error"] < 1
    elif name == "2_fuse_a_rotation":
        assert list(names["table"].index) == sorted(names["WIDTHS"])
        assert names["after"] < names["before"]
    elif name == "3_which_layer_hurts_most":
        assert names["rho"].abs().max().max() <= 1
    else:
        results = pandas.DataFrame(names["results"]).T
        assert list(results.index) == ["uniform", "fisher", "pca", "mine.py:importances", "mine.json"]
        assert results["removed"].tolist() == pytest.approx([names["SPARSITY"]] * 5, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_is_its_solution_with_gaps(name) -> None:
    exercise, solution = cells_of(name), cells_of(f"{name}_solution")
    assert [cell["id"] for cell in exercise] == [cell["id"] for cell in solution]
    pairs = list(zip(exercise, solution, strict=True))
    assert [left for left, right in pairs if "gap" not in tags_of(left) and left != right] == []
    gaps = [(left, right) for left, right in pairs if "gap" in tags_of(left)]
    assert len(gaps) >= 3
    assert all("solution" in tags_of(right) and left["source"] != right["source"] for left, right in gaps)


@pytest.mark.parametrize("file", [NOTEBOOK, *sorted(FOLDER.glob("*.ipynb"))], ids=lambda file: file.stem)
def test_they_are_small_and_saved_without_outputs(file) -> None:
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [index for index, cell in enumerate(code) if tags_of(cell) == ["parameters"]] == [0]
    for cell in code:
        ast.parse("".join(cell["source"]))
    assert file.stat().st_size < 20_000


@pytest.mark.parametrize("name", NAMES)
def test_every_solution_runs(name, tiny, tmp_path, monkeypatch) -> None:
    changed = {"MODEL": tiny.settings.model, "TEXT": tiny.settings.text, **TINY}
    check(name, run(f"{name}_solution", tmp_path, monkeypatch, changed))


def test_the_exercise_without_gaps_runs_as_it_is(tiny, tmp_path, monkeypatch) -> None:
    changed = {"MODEL": tiny.settings.model, "TEXT": tiny.settings.text, **TINY}
    names = run("4_beat_the_estimator", tmp_path, monkeypatch, changed)
    check("4_beat_the_estimator", names)
    assert names["results"]["mine.json"]["KL"] == pytest.approx(names["results"]["pca"]["KL"], abs=1e-3)  # factors of 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_every_solution_runs_on_the_default_model(name, tmp_path, monkeypatch) -> None:
    check(name, run(f"{name}_solution", tmp_path, monkeypatch, {}))
