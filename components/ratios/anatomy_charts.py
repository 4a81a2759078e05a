"""The model as a map, and one layer opened: pure functions from plain numbers to a `Chart` of `assets/anatomy.js`."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from ..i18n.language import gettext, language, number
from ..state.plan_views import MapRow, MapView, OpenedView
from ..ui import figure, formatting
from ..ui.figure import Chart, Json
from .charts import fired_rules


class Matrix(NamedTuple):
    """A weight matrix, drawn with its residual side upright: dense and kept size, and which columns are kept."""

    name: str
    dense: tuple[int, int]
    kept: tuple[int, int]
    columns: Sequence[bool] = ()  # empty: as many as there are, from the left
    change: str = ""
    is_new: bool = False  # it is fitted or rotated; otherwise what is kept is the dense model's
    is_added: bool = False

    def drawn(self) -> Json:
        """The matrix as `assets/anatomy.js` reads it."""
        is_changed = self.is_added or self.kept != self.dense
        texts = {"name": self.name, "size": self.size(), "change": self.change if is_changed else ""}
        columns = self.columns or [True] * self.kept[1] + [False] * (self.dense[1] - self.kept[1])
        shapes = {"dense": self.dense, "rows": self.kept[0], "columns": packed(columns)}
        return texts | shapes | {"isNew": self.is_new and is_changed}

    def size(self) -> str:
        """Its sizes as text."""
        dense, kept = (
            " × ".join(number(length, ",") for length in size) if all(size) else gettext("removed")
            for size in (self.dense, self.kept)
        )
        return kept if self.is_added or dense == kept else f"{dense} → {kept}"


def packed(mask: Iterable[bool]) -> str:
    """A mask as hexadecimal digits of four bits each, the first one the highest."""
    bits = np.fromiter(mask, bool)
    return np.packbits(bits).tobytes().hex()[: -(-len(bits) // 4)]


def map_chart(view: MapView, selected: int = 0) -> Chart:
    """A row per layer: query heads in groups of their key/value head, then the MLP's neurons."""
    note = gettext(
        "What is kept of each layer, and what is removed? A row is a layer: its query heads, grouped by the key/value "
        "head that they share, then the neurons of its MLP, the best first. Filled: kept; pale: removed; widths are in "
        "proportion to parameters."
    )
    if not view.ranks_neurons:
        note += " " + gettext("Sequential order: which neurons are kept is known after slicing, their number before.")
    if not view.rows[0].scores:
        note += " " + gettext("Scores appear once the model is calibrated.")
    removed = [[str(head) for head in range(row.sizes.heads) if head not in row.heads] for row in view.rows]
    return Chart(
        gettext("Anatomy of the sliced model"),
        note,
        *figure.table(
            {
                gettext("Layer"): map(str, range(len(view.rows))),
                gettext("Query heads kept"): [_of(len(row.heads), row.sizes.heads) for row in view.rows],
                gettext("Heads removed"): [", ".join(heads) or gettext("none") for heads in removed],
                gettext("Channels per head"): [_of(row.dim if row.heads else 0, row.sizes.dim) for row in view.rows],
                gettext("Neurons kept"): [_of(row.neurons, row.sizes.neurons) for row in view.rows],
            }
        ),
        layers=len(view.rows),
        selected=selected,
        hint=gettext(
            "Click a row to open its layer and compare cross-module slicing; there a click on a head locks it, as does "
            "dragging the neurons' edge. A setting pinned before shows what a lock costs."
        ),
        protocol=formatting.provenance(view.source),
        drawing={"kind": "map", "isRanked": view.ranks_neurons, "rows": list(map(_drawn, view.rows))},
    )


def _drawn(row: MapRow) -> Json:
    """A row as `assets/anatomy.js` reads it; `costs` are the parameters of attention and MLP."""
    sizes = row.sizes
    drawn = {
        "costs": [round(sizes.channels * sizes.channel_cost), sizes.neurons * sizes.neuron_cost],
        "kv": row.kv_head,
        "dims": [sizes.dim, row.dim],
        "kept": row.heads,
        "neurons": [sizes.neurons, row.neurons],
    }
    scores = {name: getattr(row, name) for name in ("scores", "explained", "curve")}
    return drawn | scores | ({} if row.held is None else {"held": round(row.held, 4)})


def _of(kept: int, dense: int) -> str:
    return _counted(kept, dense, language())


@lru_cache(maxsize=10_000)
def _counted(kept: int, dense: int, code: str) -> str:  # at every move three a layer, which mostly stay as they are
    return gettext("{kept:,} of {dense:,}", kept=kept, dense=dense)


def opened_chart(view: OpenedView) -> Chart:
    """The matrices of one layer to scale, sliced inside the modules and across them at equal parameters."""
    sides = {"intraslice": inside(view), "cross": across(view)}
    titles = {"intraslice": gettext("Intra-module (IntraSlice)"), "cross": gettext("Cross-module (SliceGPT)")}
    sentences = {"intraslice": _inside_text(view), "cross": _across_text(view)}
    names = dict.fromkeys(matrix.name for matrices in sides.values() for matrix in matrices)
    sizes = {side: {matrix.name: matrix.size() for matrix in matrices} for side, matrices in sides.items()}
    panels = [
        {
            "colour": side,
            "title": titles[side],
            "weights": _weights(matrices),
            "rows": [[matrix.drawn() for matrix in row] for row in _rows(matrices)],
            "text": sentences[side],
        }
        for side, matrices in sides.items()
    ]
    note = gettext(
        "What does slicing do to the layer's matrices? They are drawn to scale, the side of the residual stream "
        "upright. Filled: kept as it is; hatched: kept, and rotated or fitted anew; pale: removed."
    )
    return Chart(
        gettext("Layer {layer}, opened", layer=view.layer),
        f"{note} {fired_rules(view.rules)}".rstrip(),
        *figure.table(
            {
                gettext("Matrix"): names,
                **{titles[side]: [sizes[side].get(name, "–") for name in names] for side in sides},
            }
        ),
        protocol=formatting.provenance(view.source),
        drawing={"kind": "layer", "panels": panels},
    )


def inside(view: OpenedView) -> list[Matrix]:
    """The matrices of the layer, and what slicing inside the modules keeps of them."""
    row, sizes = view.row, view.row.sizes
    hidden, dim, width = sizes.hidden, sizes.dim, sizes.query_dim(row.dim)
    axes, none = [True] * row.dim + [False] * (dim - row.dim), [False] * dim
    groups = {row.kv_head[head] for head in row.heads}
    channels = view.channels or [[True] * width + [False] * (dim - width)] * sizes.kv_heads
    heads = range(sizes.heads)
    channels_text, neurons_text = gettext("channels removed"), gettext("neurons removed")
    axes_text, fitted = gettext("rotated to principal axes, the last removed"), gettext("the others fitted anew")

    def attention(name: str, masks: Sequence[Sequence[bool]], kept: int, change: str, is_new: bool) -> Matrix:
        columns = [column for mask in masks for column in mask]
        return Matrix(name, (hidden, len(columns)), (hidden, kept), columns, change, is_new)

    queries = [channels[row.kv_head[head]] if head in row.heads else none for head in heads]
    keys = [channels[group] if group in groups else none for group in range(sizes.kv_heads)]
    values = [axes if group in groups else none for group in range(sizes.kv_heads)]
    outputs = [axes if head in row.heads else none for head in heads]
    mlp, kept = (hidden, sizes.neurons), (hidden, row.neurons)
    neurons = view.neurons or ()
    unknown = gettext("; which: known after calibration") if view.channels is None else ""
    channels_text += unknown
    neurons_text += unknown if view.ranks_neurons else gettext("; which: known after slicing")
    return [
        attention("q", queries, len(row.heads) * width, channels_text, False),
        attention("k", keys, view.kv_heads * width, channels_text, False),
        attention("v", values, view.kv_heads * row.dim, axes_text, True),
        attention("o", outputs, len(row.heads) * row.dim, gettext("on the axes of v, fitted anew"), True),
        *(Matrix(name, mlp, kept, neurons, neurons_text) for name in ("gate", "up")[not sizes.gated :]),
        Matrix("down", mlp, kept, neurons, f"{neurons_text}; {fitted}", is_new=True),
    ]


def across(view: OpenedView) -> list[Matrix]:
    """The same matrices on the axes that cross-module slicing keeps, and its shortcut matrices."""
    if view.cross is None:
        return []
    width, narrower = view.cross.width, gettext("rotated, on fewer residual axes")
    last = view.row.sizes.hidden if view.is_last else width
    widths = {"down": last} | ({"o": last} if view.shortcuts == 1 else {})  # where the branches' outputs are added
    matrices = [
        Matrix(matrix.name, matrix.dense, (widths.get(matrix.name, width), matrix.dense[1]), (), narrower, is_new=True)
        for matrix in inside(view)
    ]
    for shortcut in range(1, view.shortcuts + 1):
        name = gettext("shortcut {number}", number=shortcut) if view.shortcuts > 1 else gettext("shortcut")
        size = (width, last if shortcut == view.shortcuts else width)
        change = gettext("added: {count:,} parameters", count=size[0] * size[1])
        matrices.append(Matrix(name, size, size, change=change, is_new=True, is_added=True))
    return matrices


def _rows(matrices: Sequence[Matrix]) -> list[Sequence[Matrix]]:
    """The matrices of attention, of the MLP, and added ones."""
    mlp = [matrix for matrix in matrices[4:] if not matrix.is_added]
    added = [matrix for matrix in matrices if matrix.is_added]
    return [row for row in (matrices[:4], mlp, added) if row]


def _weights(matrices: Sequence[Matrix]) -> str:
    """The weights of dense and sliced matrices."""
    if not matrices:
        return ""
    dense = sum(matrix.dense[0] * matrix.dense[1] for matrix in matrices if not matrix.is_added)
    kept = sum(matrix.kept[0] * matrix.kept[1] for matrix in matrices)
    return gettext("{dense} → {kept} weights", dense=formatting.millions(dense), kept=formatting.millions(kept))


def _inside_text(view: OpenedView) -> str:
    row = view.row
    return gettext(
        "A token's vector keeps its {hidden:,} numbers. In attention it passes through {heads} of {heads_dense} heads "
        "with {dim} of {dim_dense} channels each, in the MLP through {neurons:,} of {dense:,} neurons. No matrix is "
        "added.",
        hidden=row.sizes.hidden,
        heads=len(row.heads),
        heads_dense=row.sizes.heads,
        dim=row.dim,
        dim_dense=row.sizes.dim,
        neurons=row.neurons,
        dense=row.sizes.neurons,
    )


def _across_text(view: OpenedView) -> str:
    if view.channels is None:
        return gettext("It appears once the model is calibrated.")
    if not view.shortcuts:
        return gettext(
            "Cross-module slicing cannot slice this model: norms between its modules and the residual stream need all "
            "channels of the vector."
        )
    if view.cross is None:
        return gettext("At 0% nothing is removed.")
    text = gettext(
        "A token's vector has {width:,} of {hidden:,} numbers. It passes through all heads and neurons; before a "
        "module's output is added to it, it passes through a shortcut matrix.",
        width=view.cross.width,
        hidden=view.row.sizes.hidden,
    )
    removed = number(view.cross.removed, ".1%")
    if view.is_comparable:
        return text + " " + gettext("With them, {removed} of all layers' parameters are removed.", removed=removed)
    return text + " " + gettext("No width removes as much: this one removes {removed}.", removed=removed)
