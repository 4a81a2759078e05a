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

ROOT = Path(__file__).parents[3]
NOTEBOOK, FOLDER = ROOT / "assets" / "explore.ipynb", ROOT / "docs" / "exercises"
NAMES = ["1_explained_variance", "2_fuse_a_rotation", "3_which_layer_hurts_most", "4_beat_the_estimator"]
# Parameters of the tiny model's run; each notebook has some of these.
TINY = {"SEQUENCES": 8, "LENGTH": 32, "LAYER": 1, "TOKENS": 256, "WINDOW": 32, "SPARSITY": 0.4, "WIDTHS": [6, 4]}


@pytest.fixture(autouse=True)
def as_before(monkeypatch) -> Iterator[None]:
    """The estimators and the folders of modules end as they were, without those that a notebook adds."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = dict(ESTIMATORS)
    yield
    ESTIMATORS.clear()
    ESTIMATORS.update(before)


@pytest.fixture
def parameters(tiny) -> dict[str, Any]:
    return {"MODEL": tiny.settings.model, "TEXT": tiny.settings.text, **TINY}


def cells_of(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text(encoding="utf-8"))["cells"]


def tags_of(cell: dict[str, Any]) -> list[str]:
    return cell["metadata"].get("tags", [])


def run(file: Path, changed: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """What each cell's last expression came to, and the names that are there in the end: a notebook without Jupyter.

    Some parameters are changed in a cell after them, as papermill has it. Tables are printed.
    """
    first, *others = ["".join(cell["source"]) for cell in cells_of(file) if cell["cell_type"] == "code"]
    assigned = {node.id for node in ast.walk(ast.parse(first)) if isinstance(node, ast.Name)}
    values = "\n".join(f"{key} = {value!r}" for key, value in changed.items() if key in assigned)
    names, results = {}, []
    with torch.enable_grad():  # restores what a notebook sets for all of its cells
        for number, cell in enumerate([first, values, *others]):
            body = ast.parse(cell).body
            last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), f"cell {number}", "exec"), names)
            result = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None
            if isinstance(result, pandas.DataFrame):
                print(result, end="\n\n")
            results.append(result)
    return results, names


def test_every_cell_runs(parameters, capsys, monkeypatch) -> None:
    monkeypatch.chdir(NOTEBOOK.parent)
    results, names = run(NOTEBOOK, parameters)
    drawn = [result for result in results if isinstance(result, go.Figure)]
    titles = "Pruning ratio per layer", "Importances in layer 1 and the global thresholds"
    assert [figure.layout.title.text for figure in drawn] == [*titles, "Perplexity against parameters removed"]
    assert all('"@' not in figure.to_json() for figure in drawn)  # the page's names of colours are none of plotly's
    plan, sliced = names["plan"], names["sliced"]
    assert sum(weight.numel() for weight in sliced.parameters()) == plan.parameters.sliced_total
    assert plan.removed_fraction == pytest.approx(0.4, abs=0.02)
    bars = [trace for trace in drawn[0].data if trace.type == "bar"]
    assert list(bars[1].y) == pytest.approx([layer.mlp_ratio for layer in plan.layers], rel=1e-4)
    at = names["frame"].query("method == 'intraslice' and sparsity == 0.4")["perplexity"].item()
    assert names["perplexities"] == pytest.approx({"dense": names["frame"]["dense_perplexity"][0], "sliced": at})
    assert "sliced: " in capsys.readouterr().out


def solve(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]) -> dict[str, Any]:
    """Run an exercise in `folder`; returns its names. Has assertions about results, besides those in the notebook."""
    monkeypatch.chdir(folder)
    _, names = run(FOLDER / f"{name}.ipynb", changed)
    if name.startswith("1"):
        assert len(names["frame"]) == sum(len(heads) for heads in names["stats"].kv_heads)
        assert 0 < names["error"] < 1
    elif name.startswith("2"):
        assert list(names["table"].index) == sorted(names["WIDTHS"])
        assert names["after"] < names["before"]
    elif name.startswith("3"):
        assert names["rho"].abs().max().max() <= 1
    else:
        results = pandas.DataFrame(names["results"]).T
        assert list(results.index) == ["uniform", "fisher", "pca", "mine.py:importances", "mine.json"]
        assert results["removed"].tolist() == pytest.approx([names["SPARSITY"]] * 5, abs=0.02)
    return names


@pytest.mark.parametrize("name", NAMES)
def test_an_exercise_is_its_solution_with_gaps(name) -> None:
    exercise, solution = (cells_of(FOLDER / f"{name}{kind}.ipynb") for kind in ("", "_solution"))
    assert [cell["id"] for cell in exercise] == [cell["id"] for cell in solution]
    pairs = list(zip(exercise, solution, strict=True))
    assert [left for left, right in pairs if "gap" not in tags_of(left) and left != right] == []
    gaps = [(left, right) for left, right in pairs if "gap" in tags_of(left)]
    assert len(gaps) >= 3
    assert all("solution" in tags_of(right) and left["source"] != right["source"] for left, right in gaps)


@pytest.mark.parametrize("file", [NOTEBOOK, *sorted(FOLDER.glob("*.ipynb"))], ids=lambda file: file.stem)
def test_they_are_small_and_saved_without_outputs(file) -> None:
    cells = cells_of(file)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [index for index, cell in enumerate(code) if tags_of(cell) == ["parameters"]] == [0]
    for cell in code:
        ast.parse("".join(cell["source"]))
    assert file.stat().st_size < 20_000


@pytest.mark.parametrize("name", NAMES)
def test_every_solution_runs(name, parameters, tmp_path, monkeypatch) -> None:
    solve(f"{name}_solution", tmp_path, monkeypatch, parameters)


def test_the_exercise_without_gaps_runs_as_it_is(parameters, tmp_path, monkeypatch) -> None:
    names = solve(NAMES[-1], tmp_path, monkeypatch, parameters)
    assert names["results"]["mine.json"]["KL"] == pytest.approx(names["results"]["pca"]["KL"], abs=1e-3)  # factors of 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", NAMES)
def test_every_solution_runs_on_the_default_model(name, tmp_path, monkeypatch) -> None:
    solve(f"{name}_solution", tmp_path, monkeypatch, {})
