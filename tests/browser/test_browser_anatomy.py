"""The map of the model and the opened layer in a real browser: every cell is that of the slice that is made."""

import re

import pytest
from tiny_page import in_job, kept_rows

from intraslice.modeling.families import blocks

# Walks through the map with the keyboard, and returns what it says of each part, by layer.
CELLS = """() => {
    const plot = document.querySelector('#anatomy-chart .isx-plot');
    const press = (key) => plot.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true, cancelable: true }));
    const { rows } = plot.closest('.isx-chart').isxChart.drawing;
    plot.focus();
    rows.forEach(() => press('ArrowUp'));
    const said = rows.map((row) => {
        press('Home');
        const cells = [...row.kv, ''].map(() => {
            const text = plot.querySelector('.isx-tip').innerText;
            press('ArrowRight');
            return text;
        });
        press('ArrowDown');
        return cells;
    });
    press('Escape');
    return said;
}"""
# Of every matrix of the first panel by its name, which of its columns are within what is drawn as kept, in its colour.
COLUMNS = """() => {
    const figures = [...document.querySelector('#layer-chart section').querySelectorAll('figure')];
    return Object.fromEntries(figures.map((figure) => {
    const name = figure.querySelector('b').textContent;
    const { rows } = document.querySelector('#layer-chart .isx-chart').isxChart.drawing.panels[0];
    const columns = rows.flat().find((matrix) => matrix.name === name).dense[1];
    const kept = figure.querySelector('svg path');
    const isDark = Number(getComputedStyle(kept).fill.match(/\\d+/)[0]) < 128 && kept.getBBox().height > 0;
    const isDrawn = isDark && kept.ownerSVGElement.viewBox.baseVal.width === columns;
    const covers = (column) => isDrawn && kept.isPointInFill(new DOMPoint(column + 0.5, 0.5));
    return [name, Array.from({ length: columns }, (_, column) => covers(column))];
    }));
}"""
OPENED = "layer => document.querySelector('#layer-chart .isx-title').textContent === `Layer ${layer}, opened`"


@pytest.mark.parametrize(("percent", "changes"), [(30, {}), (45, {"shapes": "runtime"}), (40, {"order": "sequential"})])
def test_the_map_and_the_opened_layers_are_the_slice(visit, tiny, tiny_query, page_session, percent, changes) -> None:
    request = tiny.with_settings(sparsity=percent, **changes)
    sliced = in_job(page_session, page_session.slice, request)
    dense = blocks(page_session.calibrated(request).loaded.model)
    query = tiny_query.replace("sparsity=30", f"sparsity={percent}") + "&bias=1.0"
    opened = visit(query + "".join(f"&{name}={value}" for name, value in changes.items()), width=2560, height=1300)
    page, is_ranked = opened.page, "order" not in changes
    opened.until("document.querySelector('#anatomy-chart .isx-chart').isxChart.drawing.rows.length === 3")
    page.wait_for_selector("#anatomy-chart canvas")
    said = page.evaluate(CELLS)
    for index, (block, layer) in enumerate(zip(dense, sliced.model.layers, strict=True)):
        before, after = block.attention.weights(), layer.self_attn.weights()
        flat = kept_rows(before.query, after.query)
        kept = [any(flat[head * 8 : head * 8 + 8]) for head in range(9)]
        assert sum(kept) == len(after.query)
        dim = after.value.shape[1]
        for head, (cell, is_kept) in enumerate(zip(said[index][:-1], kept, strict=True)):
            assert f"Layer {index}, query head {head} (key/value head {head // 3})" in cell
            assert (f"kept: 8 → {dim} channels" if is_kept else "removed: 8 → 0 channels") in cell
            assert re.search(r"explained variance kept: [0-9.]+%\nscore: [0-9.]+% of the layer's, rank \d of 9", cell)
            assert ("explained variance kept: 0.0%" in cell) is not is_kept
        assert f"Layer {index}, MLP\n132 → {layer.mlp.neurons} neurons" in said[index][-1]
        if index == 0:
            assert not page.is_visible("#layer-chart")
            page.click("#anatomy-chart .isx-open")
        else:  # a click on a row
            page.click("#anatomy-chart canvas", position={"x": 60, "y": 20.4 + 20 * (index + 0.5)})
        opened.until(OPENED, arg=index)
        page.wait_for_selector("#layer-chart svg path")
        columns = page.evaluate(COLUMNS)
        assert columns["q"] == flat
        assert columns["k"] == kept_rows(before.key, after.key)
        assert [sum(columns["o"][head * 8 : head * 8 + 8]) for head in range(9)] == [dim * one for one in kept]
        assert sum(columns["v"]) == after.value[..., 0].numel()
        neurons = kept_rows(block.mlp.weights().up, layer.mlp.weights().up)
        for name in ("gate", "up", "down"):
            assert (columns[name] == neurons) if is_ranked else (sum(columns[name]) == sum(neurons))
    assert ("known after slicing" in page.inner_text("#layer-chart")) is not is_ranked
    assert "known after slicing" not in page.inner_text("#anatomy-chart .isx-note") or not is_ranked
    page.click("#anatomy-chart .isx-open")
    assert not page.is_visible("#layer-chart")
    assert page.input_value("#layer input[type=range]") == "2"


# Where the middle of a head of layer 0 is in the canvas, and the edge of the layer's kept neurons.
PLACES = """head => {
    const { placed } = document.querySelector('#anatomy-chart .isx-plot').isxMap;
    const parts = placed.parts[0];
    const y = placed.top + placed.row / 2;
    return [{ x: parts[head].x + parts[head].width / 2, y }, { x: parts.at(-1).x + parts.at(-1).kept, y }];
}"""
LOCKED = "locks => `${[...isx.locks()].map((lock) => lock.join(' '))}` === `${locks}`"
ROW = "document.querySelector('#anatomy-chart .isx-chart').isxChart.drawing.rows[0]"


def test_in_the_opened_layer_a_click_locks_a_head_and_dragging_their_edge_the_neurons(visit, tiny_query) -> None:
    opened = visit(tiny_query + "&bias=1.0", width=1440, height=1300)
    page = opened.page
    before = opened.until(f"({ROW}.scores.length > 0) && {ROW}")
    head = before["kept"][0]
    page.click("#anatomy-chart .isx-open")
    for state, is_kept in (("remove", False), ("", True)):  # the second click unlocks it
        middle, _ = page.evaluate(PLACES, head)
        page.click("#anatomy-chart canvas", position=middle)
        opened.until(f"{ROW}.kept.includes({head}) === {str(is_kept).lower()}")
        opened.until(LOCKED, [f"0 attention head {head} {state}"] * bool(state))
    assert page.evaluate(ROW)["kept"] == before["kept"]
    _, edge = page.evaluate(PLACES, head)
    page.hover("#anatomy-chart canvas", position=edge)
    page.mouse.down()
    page.hover("#anatomy-chart canvas", position={"x": edge["x"] - 40, "y": edge["y"]})
    page.mouse.up()
    neurons = opened.until(f"{ROW}.neurons[1] < {before['neurons'][1]} && {ROW}.neurons[1]")
    opened.until(LOCKED, [f"0 mlp neurons {neurons}"])
    page.click("#undo")
    opened.until(f"{ROW}.neurons[1] === {before['neurons'][1]}")
    opened.until(LOCKED, [])
    assert page.is_visible("#layer-chart")
