"""What the map says of every family's layers, opened, is what its slices are, by both methods."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_page import kept_rows

from components.ratios.anatomy_charts import across, inside
from components.state.plan_views import Plans, Source, map_view, opened_view
from components.state.units import units_of
from intraslice.core.config import SliceConfig
from intraslice.methods.crossmodule import plan_crossmodule, slice_crossmodule
from intraslice.methods.registry import slice_by
from intraslice.modeling.families import blocks
from intraslice.planning.ratios import make_plan

RESIDUAL = {"query": 2, "key": 2, "value": 2, "output": 0, "gate": 1, "up": 1, "down": 0}  # their axis of this side


def sizes_of(layer: torch.nn.Module) -> dict[str, tuple[int, int]]:
    """(residual side, other side) of a sliced layer's matrices, by the map's names."""
    weights = vars(layer.self_attn.weights()) | vars(layer.mlp.weights())
    found = {name: (weights[name], axis) for name, axis in RESIDUAL.items() if weights[name] is not None}
    sizes = {name: (matrix.shape[axis], matrix.numel() // matrix.shape[axis]) for name, (matrix, axis) in found.items()}
    return {name[0] if name in ("query", "key", "value", "output") else name: size for name, size in sizes.items()}


@pytest.mark.parametrize(
    "options", [{}, {"order": "sequential"}, {"shapes": "runtime"}], ids=["one-shot", "sequential", "runtime"]
)
def test_the_map_and_the_opened_layers_are_the_slices(every_family_case, options) -> None:
    dense, stats, tokens = every_family_case.loaded.model, every_family_case.stats, every_family_case.tokens
    plan = make_plan(stats.profile, SliceConfig(0.4, **{"order": "one-shot"} | options))
    source = Source(stats.profile, 0, units=units_of(dense, stats))
    layers = slice_by("intraslice", dense, plan, stats, tokens, progress=False).model.layers
    rows, is_ranked = map_view(source, plan).rows, "order" not in options
    for index, (row, layer, block) in enumerate(zip(rows, layers, blocks(dense), strict=True)):
        view, attention, mlp = opened_view(source, plan, index), layer.self_attn.weights(), layer.mlp.weights()
        before, matrices = block.attention.weights(), {matrix.name: matrix for matrix in inside(view)}
        assert view.row == row
        assert (len(row.heads), row.neurons) == (len(attention.query), layer.mlp.neurons)
        assert {name: matrix.kept for name, matrix in matrices.items()} == sizes_of(layer)
        assert list(matrices["q"].columns) == kept_rows(before.query, attention.query)
        assert list(matrices["k"].columns) == kept_rows(before.key, attention.key)
        if is_ranked:
            assert list(matrices["up"].columns) == kept_rows(block.mlp.weights().up, mlp.up)
        assert (view.neurons is not None) is (is_ranked or row.neurons in (0, row.sizes.neurons))


def test_the_opened_layers_are_cross_module_slices(every_family_case) -> None:
    dense, stats = every_family_case.loaded.model, every_family_case.stats
    source, plan = Source(stats.profile, 0, units=units_of(dense, stats)), make_plan(stats.profile, SliceConfig(0.3))
    views = [opened_view(source, plan, index) for index in range(len(plan.layers))]
    if every_family_case.name == "gemma3":  # it cannot be sliced so
        assert not any(across(view) or view.shortcuts for view in views)
        return
    narrow = plan_crossmodule(dense, 0.3, order="one-shot")
    sliced = slice_crossmodule(dense, narrow, stats, every_family_case.tokens, progress=False)
    for view, layer in zip(views, sliced.model.layers, strict=True):
        matrices = across(view)
        added = [matrix.kept for matrix in matrices if matrix.is_added]
        assert added == [tuple(shortcut.shape) for shortcut in layer.shortcuts]
        assert {matrix.name: matrix.kept for matrix in matrices if not matrix.is_added} == sizes_of(layer)


def test_many_who_ask_for_the_same_plan_at_once_let_it_be_made_once(case) -> None:
    plans, source, made = Plans(), Source(case.stats.profile, 0), []

    def show(number: int) -> object:
        made.append(number)
        time.sleep(0.05)
        return object()

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda n: plans.shown(source, SliceConfig(0.3), "x", lambda: show(n)), range(8)))
    assert len(found) == len(made) == 1
