"""The notebook runs from its first to its last cell, here on a tiny model, and its figures are ordinary plotly ones."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

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


def test_it_is_small_and_saved_without_outputs() -> None:
    assert len(CELLS) <= 12
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert [cell["metadata"].get("tags") for cell in code].index(["parameters"]) == 0


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
