"""Formats of numbers, and small pieces of HTML: headline, readout, status. Pure; formats are defined only here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from ..i18n.language import LazyString, gettext, lazy_gettext, number, translate
from ..jobs import limits
from ..jobs.status import Status
from ..state.views import Perplexities, PinnedView, PlanView, Reading
from .labels import MODULES_IN_WORDS
from .pinned.differences import sentence, signed

ESTIMATED = lazy_gettext(
    "Interpolated between perplexities measured at other sparsities; the measured value replaces it."
)


def headline(plan: PlanView | None, measured: Perplexities, hint: str = "", pinned: PinnedView | None = None) -> str:
    """One sentence on the current setting, and its differences from the pinned one (HTML).

    `hint` replaces an unknown sliced perplexity.
    """
    if plan is None:
        waiting = gettext("Loading the model. Its ratios appear here as soon as it is calibrated.")
        return f'<p class="isx-headline">{waiting}</p>'
    change = sentence(plan.parameters_sliced, measured.sliced_reading, pinned, millions)
    dense, sliced = millions(plan.parameters_dense), millions(plan.parameters_sliced)
    perplexity = _perplexity(measured, hint)
    if plan.target_sparsity == 0:
        nothing = gettext(
            "Nothing is removed: <b>{dense}</b> parameters{perplexity}. Drag the slider.",
            dense=dense,
            perplexity=perplexity,
        )
        return f'<p class="isx-headline">{nothing}{change}</p>'
    ranked = sorted(
        (getattr(layer, module), name, index)
        for index, layer in enumerate(plan.layers)
        for module, name in MODULES_IN_WORDS.items()
    )
    (min_ratio, min_name, min_layer), (max_ratio, max_name, max_layer) = ranked[0], ranked[-1]
    if max_ratio - min_ratio < 0.005:
        extremes = gettext("every layer is pruned by {most:.0%}", most=max_ratio)
    else:
        extremes = gettext(
            "layer {most_layer}'s {most_name} is pruned most ({most:.0%}), layer {least_layer}'s {least_name} "
            "least ({least:.0%})",
            most_layer=max_layer,
            most_name=max_name,
            most=max_ratio,
            least_layer=min_layer,
            least_name=min_name,
            least=min_ratio,
        )
    text = gettext(
        "<b>{removed:.0%}</b> of the layer weights removed: <b>{dense}</b> → <b>{sliced}</b> "
        "parameters{perplexity}; {extremes}.",
        removed=plan.removed,
        dense=dense,
        sliced=sliced,
        perplexity=perplexity,
        extremes=extremes,
    )
    return f'<p class="isx-headline">{text}{change}</p>'


def _perplexity(measured: Perplexities, hint: str) -> str:
    sliced = measured.sliced_reading
    if sliced is None and measured.expected is not None:
        text = gettext(
            'about {expected:.1f}, <span title="{why}">an estimate</span>', expected=measured.expected, why=ESTIMATED
        )
    else:
        text = f"<b>{_reading(sliced)}</b>" if sliced else escape(hint)
    if measured.dense_reading is None:
        return gettext("; perplexity {value}", value=text) if text else ""
    if sliced and sliced.windows < sliced.all_windows:
        text += gettext(" after {windows} of {of} windows", windows=sliced.windows, of=sliced.all_windows)
    if sliced and measured.sequences < measured.all_sequences:
        text += gettext(
            ", calibrated on {sequences} of {all_sequences} sequences",
            sequences=measured.sequences,
            all_sequences=measured.all_sequences,
        )
    on_text = gettext("on {text}", text=escape(translate(measured.text)))
    where = f'<span title="{escape(translate(measured.protocol))}">{on_text}</span>'
    dense = _reading(measured.dense_reading)
    return gettext("; perplexity <b>{dense}</b> → {sliced} ({where})", dense=dense, sliced=text or "…", where=where)


def _reading(reading: Reading | None, digits: int = 1) -> str:
    """A perplexity; with its standard error before all windows are measured."""
    if reading is None:
        return "–"
    return number(reading.value, f".{digits}f") if reading.windows == reading.all_windows else _with_error(reading, 1)


def _with_error(reading: Reading, digits: int) -> str:
    error = "" if reading.error is None else f" ± {number(reading.error, f'.{digits}f')}"
    return f"{number(reading.value, f'.{digits}f')}{error}"


def removed(plan: PlanView | None) -> str:
    """Target and actual sparsity, next to the slider (HTML)."""
    if plan is None:
        return ""
    sparsities = {gettext("target"): plan.target_sparsity, gettext("actual sparsity"): plan.removed}
    entries = (
        f'<div><dt>{name}</dt><dd data-percent="{100 * sparsity:.1f}">{number(sparsity, ".1%")}</dd></div>'
        for name, sparsity in sparsities.items()
    )
    return f'<dl class="isx-removed">{"".join(entries)}</dl>'


def readout(plan: PlanView | None, measured: Perplexities, pinned: PinnedView | None = None) -> str:
    """A table (HTML): parameters, KV cache, memory and perplexity, dense, sliced and against the pinned setting."""
    if plan is None:
        return f'<p class="isx-quiet">{gettext("No results yet.")}</p>'
    rows = _sizes(plan)
    columns = [gettext("dense"), gettext("sliced"), *([gettext("against A")] if pinned else [])]
    before = _sizes(pinned.plan) if pinned else rows
    lines = [
        (name, format_size(dense), format_size(sliced), signed(sliced - other, format_size))[: len(columns) + 1]
        for (name, format_size, dense, sliced), (*_, other) in zip(rows, before, strict=True)
    ]
    ratio = "" if measured.ratio is None else _with_error(measured.ratio, 2)
    readings: list[tuple[str, ...]] = [
        (gettext("Perplexity"), _reading(measured.dense_reading, 2), _reading(measured.sliced_reading, 2)),
        (gettext("perplexity relative to dense"), "", ratio or "–"),
    ]
    if pinned:
        pairs = [(measured.sliced_reading, pinned.measured.sliced_reading), (measured.ratio, pinned.measured.ratio)]
        readings = [(*line, _change(*pair)) for line, pair in zip(readings, pairs, strict=True)]
    flops = gettext(
        "FLOPs: two for each weight of a matrix multiplication, and attention to {context} tokens.",
        context=plan.context,
    )
    style = "isx-with-pinned" if pinned else ""
    attributes = "".join(
        f' data-{name}="{reading.value:.2f}"'
        for name, reading in (("dense", measured.dense_reading), ("sliced", measured.sliced_reading))
        if reading and reading.windows == reading.all_windows
    )
    content = table(columns, [*lines, *readings], style)
    return f'<div class="isx-read"{attributes}>{content}</div><p class="isx-quiet">{flops}</p>'


def _sizes(plan: PlanView) -> list[tuple[str, Callable[[float], str], float, float]]:
    """The readout's rows that need no measurement: name, format, dense and sliced value."""
    width = plan.bytes_per_value
    return [
        (gettext("Parameters"), millions, plan.parameters_dense, plan.parameters_sliced),
        (gettext("in the layers"), millions, plan.decoder_dense, plan.decoder_sliced),
        (gettext("FLOPs per token"), millions, plan.flops_dense, plan.flops_sliced),
        (gettext("KV cache per token"), size, plan.kv_dense, plan.kv_sliced),
        (gettext("Weights"), size, width * plan.parameters_dense, width * plan.parameters_sliced),
    ]


def _change(now: Reading | None, before: Reading | None) -> str:
    return (
        "–" if now is None or before is None else signed(now.value - before.value, lambda value: number(value, ".2f"))
    )


def status(event: Status) -> str:
    """The status line (HTML), with a progress bar if the progress is known."""
    done = event.done / event.total if event.total else None
    bar = "" if done is None or event.kind != "busy" else f'<progress value="{done:.3f}" max="1">{done:.0%}</progress>'
    role = "alert" if event.kind == "error" else "status"
    return f'<p class="isx-status isx-{event.kind}" role="{role}"><span>{escape(status_text(event))}</span>{bar}</p>'


def starting() -> LazyString:
    """The status with which the page opens (HTML)."""
    return LazyString(lambda: status(Status(lazy_gettext("Starting"))))


def status_text(event: Status) -> str:
    """The status as plain text: what the page is doing, progress, and time left."""
    if event.kind != "busy":
        return translate(event.text)
    count = gettext(" {done} of {total}", done=event.done, total=event.total) if event.total else ""
    left = "" if event.seconds_left is None else gettext(", about {time} left", time=seconds(event.seconds_left))
    return f"{translate(event.text)}{count}{left}"


def problem(error: Exception) -> str:
    """An error as a status line (HTML)."""
    return (
        f'<p class="isx-status isx-error" role="alert"><span>{escape(translate(limits.error_text(error)))}</span></p>'
    )


def protocol(measured: Perplexities) -> str:
    """The protocol of the perplexities, with their standard errors (HTML)."""
    if not measured.protocol:
        return f'<p class="isx-quiet">{gettext("Perplexity is measured as soon as the sliced model is ready.")}</p>'
    return f'<p class="isx-quiet">{escape(translate(measured.protocol))}{_errors(measured)}</p>'


def _errors(measured: Perplexities) -> str:
    """The standard errors, after all windows are measured."""
    dense, sliced, ratio = measured.dense_reading, measured.sliced_reading, measured.ratio
    if dense is None or sliced is None or ratio is None or measured.dense is None or measured.sliced is None:
        return ""
    if None in (dense.error, sliced.error, ratio.error):
        return ""
    return gettext(
        " Standard errors of perplexity: dense ± {dense:.1f}, sliced ± {sliced:.1f}. The perplexity ratio is "
        "{ratio:.3f} ± {error:.3f}; its relative error is smaller because both models are scored on the same text.",
        dense=dense.error,
        sliced=sliced.error,
        ratio=ratio.value,
        error=ratio.error,
    )


def export(plan: PlanView | None) -> str:
    """What the Export tab exports with the current setting (HTML)."""
    if plan is None:
        waiting = gettext("Files are available as soon as the model is calibrated.")
        return f'<p class="isx-lead">{waiting}</p>'
    if plan.target_sparsity == 0:
        nothing = gettext("At 0% nothing is removed. Move the slider to get files.")
        return f'<p class="isx-lead">{nothing}</p>'
    text = gettext(
        "The current setting: <b>{removed:.0%}</b> of the layer weights removed, {parameters} parameters, "
        "about {bytes}. The model is sliced when you request a file, unless it already is.",
        removed=plan.removed,
        parameters=millions(plan.parameters_sliced),
        bytes=size(plan.bytes_per_value * plan.parameters_sliced),
    )
    return f'<p class="isx-lead">{text}</p>'


def millions(count: float) -> str:
    """A count in millions or billions: 134515008 -> "134.5 M"."""
    if count >= 1e9:
        return gettext("{count:.2f} B", count=count / 1e9)
    return gettext("{count:.1f} M", count=count / 1e6) if count >= 1e6 else number(count, ",.0f")


def size(count: float) -> str:
    """Bytes in a suitable unit: 1500000 -> "1.5 MB"."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{number(count / limit, '.1f')} {unit}"
    return f"{count:.0f} B"


def seconds(count: float) -> str:
    """A duration in whole seconds or minutes."""
    return f"{count:.0f} s" if count < 90 else f"{count / 60:.0f} min"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A small table (HTML). The first cell of each row is its heading; `columns` are those of the other cells."""
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, *cells in rows
    )
    return f'<table class="isx-readout {style}"><thead><tr><td></td>{head}</tr></thead><tbody>{lines}</tbody></table>'
