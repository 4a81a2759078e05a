"""Numbers to words and small HTML: the first line, the readout, the status. Pure; formats live nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from components.i18n.language import LazyString, gettext, lazy_gettext, number, translate
from components.jobs import limits
from components.jobs.status import Status
from components.state.views import Beside, Perplexities, PlanView, Reading
from components.ui.labels import MODULES_IN_WORDS
from components.ui.pinned.differences import sentence, signed

ESTIMATED = lazy_gettext(
    "Interpolated between perplexities measured at other sparsities; the measured value replaces it."
)


def headline(plan: PlanView | None, measured: Perplexities, hint: str = "", pinned: Beside | None = None) -> str:
    """What the current setting means, in one plain sentence, and what it changes of the pinned one.

    `hint` stands where the sliced perplexity is not known.
    """
    if plan is None:
        waiting = gettext("Loading the model. Its ratios appear here as soon as it is calibrated.")
        return f'<p class="isx-headline">{waiting}</p>'
    change = sentence(plan.parameters_sliced, measured.sliced_reading, pinned, millions)
    dense, sliced = millions(plan.parameters_dense), millions(plan.parameters_sliced)
    perplexity = _perplexity(measured, hint)
    if plan.asked == 0:
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
    (least, least_name, least_layer), (most, most_name, most_layer) = ranked[0], ranked[-1]
    if most - least < 0.005:
        extremes = gettext("every layer is pruned by {most:.0%}", most=most)
    else:
        extremes = gettext(
            "layer {most_layer}'s {most_name} is pruned most ({most:.0%}), layer {least_layer}'s {least_name} "
            "least ({least:.0%})",
            most_layer=most_layer,
            most_name=most_name,
            most=most,
            least_layer=least_layer,
            least_name=least_name,
            least=least,
        )
    told = gettext(
        "<b>{removed:.0%}</b> of the layer weights removed: <b>{dense}</b> → <b>{sliced}</b> "
        "parameters{perplexity}; {extremes}.",
        removed=plan.removed,
        dense=dense,
        sliced=sliced,
        perplexity=perplexity,
        extremes=extremes,
    )
    return f'<p class="isx-headline">{told}{change}</p>'


def _perplexity(measured: Perplexities, hint: str) -> str:
    sliced = measured.sliced_reading
    if sliced is None and measured.expected is not None:
        told = gettext(
            'about {expected:.1f}, <span title="{why}">an estimate</span>', expected=measured.expected, why=ESTIMATED
        )
    else:
        told = f"<b>{_reading(sliced)}</b>" if sliced else escape(hint)
    if measured.dense_reading is None:
        return gettext("; perplexity {told}", told=told) if told else ""
    if sliced and sliced.windows < sliced.of:
        told += gettext(" after {windows} of {of} windows", windows=sliced.windows, of=sliced.of)
    if sliced and measured.sequences < measured.all_sequences:
        told += gettext(
            ", calibrated on {sequences} of {all_sequences} sequences,",
            sequences=measured.sequences,
            all_sequences=measured.all_sequences,
        )
    on = gettext("on {text}", text=escape(translate(measured.text)))
    where = f'<span title="{escape(translate(measured.protocol))}">{on}</span>'
    dense = _reading(measured.dense_reading)
    return gettext("; perplexity <b>{dense}</b> → {told} {where}", dense=dense, told=told or "…", where=where)


def _reading(reading: Reading | None, digits: int = 1) -> str:
    """A perplexity, with its standard error while it grows."""
    if reading is None:
        return "–"
    return number(reading.value, f".{digits}f") if reading.windows == reading.of else _with_error(reading, 1)


def _with_error(reading: Reading, digits: int) -> str:
    error = "" if reading.error is None else f" ± {number(reading.error, f'.{digits}f')}"
    return f"{number(reading.value, f'.{digits}f')}{error}"


def removed(plan: PlanView | None) -> str:
    """Asked beside really removed, for the slider's bar."""
    if plan is None:
        return ""
    shares = {gettext("target"): plan.asked, gettext("actual sparsity"): plan.removed}
    told = (
        f'<div><dt>{name}</dt><dd data-percent="{100 * share:.1f}">{number(share, ".1%")}</dd></div>'
        for name, share in shares.items()
    )
    return f'<dl class="isx-removed">{"".join(told)}</dl>'


def readout(plan: PlanView | None, measured: Perplexities, pinned: Beside | None = None) -> str:
    """Dense beside sliced: parameters, cache, memory, perplexity; and what changes against the pinned setting."""
    if plan is None:
        return f'<p class="isx-quiet">{gettext("No numbers yet.")}</p>'
    rows = _sizes(plan)
    columns = [gettext("dense"), gettext("sliced"), *([gettext("against A")] if pinned else [])]
    before = _sizes(pinned.plan) if pinned else rows
    lines = [
        (name, words(dense), words(sliced), signed(sliced - other, words))[: len(columns) + 1]
        for (name, words, dense, sliced), (*_, other) in zip(rows, before, strict=True)
    ]
    ratio = "" if measured.ratio is None else _with_error(measured.ratio, 2)
    readings: list[tuple[str, ...]] = [
        (gettext("Perplexity"), _reading(measured.dense_reading, 2), _reading(measured.sliced_reading, 2)),
        (gettext("ratio"), "", ratio or "–"),
    ]
    if pinned:
        known = [(measured.sliced_reading, pinned.measured.sliced_reading), (measured.ratio, pinned.measured.ratio)]
        readings = [(*line, _change(*pair)) for line, pair in zip(readings, known, strict=True)]
    flops = gettext(
        "FLOPs: two for each weight of a matrix multiplication, and attention to {context} tokens.",
        context=plan.context,
    )
    style = "isx-with-pinned" if pinned else ""
    read = "".join(
        f' data-{name}="{reading.value:.2f}"'
        for name, reading in (("dense", measured.dense_reading), ("sliced", measured.sliced_reading))
        if reading and reading.windows == reading.of
    )
    told = table(columns, [*lines, *readings], style)
    return f'<div class="isx-read"{read}>{told}</div><p class="isx-quiet">{flops}</p>'


def _sizes(plan: PlanView) -> list[tuple[str, Callable[[float], str], float, float]]:
    """The readout's rows that are known without measuring: name, how it is written, dense and sliced."""
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
    """One line on what the page is doing, with a bar and the time that is left where these are known."""
    share = event.done / event.total if event.total else None
    bar = (
        "" if share is None or event.kind != "busy" else f'<progress value="{share:.3f}" max="1">{share:.0%}</progress>'
    )
    role = "alert" if event.kind == "error" else "status"
    return f'<p class="isx-status isx-{event.kind}" role="{role}"><span>{escape(status_words(event))}</span>{bar}</p>'


def starting() -> LazyString:
    """The status that the page opens with (HTML)."""
    return LazyString(lambda: status(Status(lazy_gettext("Starting"))))


def status_words(event: Status) -> str:
    """What the page is doing, how far it is and how long it will take (no HTML)."""
    if event.kind != "busy":
        return translate(event.text)
    count = gettext(" {done} of {total}", done=event.done, total=event.total) if event.total else ""
    left = "" if event.seconds_left is None else gettext(", about {time} left", time=seconds(event.seconds_left))
    return f"{translate(event.text)}{count}{left}"


def problem(error: Exception) -> str:
    """An error, in the page and in words."""
    return f'<p class="isx-status isx-error" role="alert"><span>{escape(translate(limits.told(error)))}</span></p>'


def protocol(measured: Perplexities) -> str:
    """The perplexity with everything that it depends on; without that it means nothing."""
    if not measured.protocol:
        return f'<p class="isx-quiet">{gettext("Perplexity is measured as soon as the slice is ready.")}</p>'
    return f'<p class="isx-quiet">{escape(translate(measured.protocol))}{_errors(measured)}</p>'


def _errors(measured: Perplexities) -> str:
    """How sure the numbers are, once both are whole."""
    dense, sliced, ratio = measured.dense_reading, measured.sliced_reading, measured.ratio
    if dense is None or sliced is None or ratio is None or measured.dense is None or measured.sliced is None:
        return ""
    if None in (dense.error, sliced.error, ratio.error):
        return ""
    return gettext(
        " Standard errors: dense ± {dense:.1f}, sliced ± {sliced:.1f}. Their ratio is {ratio:.3f} ± "
        "{error:.3f}; in it the variation of the text cancels.",
        dense=dense.error,
        sliced=sliced.error,
        ratio=ratio.value,
        error=ratio.error,
    )


def export(plan: PlanView | None) -> str:
    """What the Export tab's buttons would give now."""
    if plan is None:
        waiting = gettext("Files are available as soon as the model is calibrated.")
        return f'<p class="isx-lead">{waiting}</p>'
    if plan.asked == 0:
        nothing = gettext("At 0 % nothing is removed. Move the slider to get files.")
        return f'<p class="isx-lead">{nothing}</p>'
    told = gettext(
        "The current setting: <b>{removed:.0%}</b> of the layer weights removed, {parameters} parameters, "
        "about {bytes}. The model is sliced when you request a file, unless it already is.",
        removed=plan.removed,
        parameters=millions(plan.parameters_sliced),
        bytes=size(plan.bytes_per_value * plan.parameters_sliced),
    )
    return f'<p class="isx-lead">{told}</p>'


def millions(count: float) -> str:
    """134515008 -> 134.5 M"""
    if count >= 1e9:
        return gettext("{count:.2f} B", count=count / 1e9)
    return gettext("{count:.1f} M", count=count / 1e6) if count >= 1e6 else number(count, ",.0f")


def size(count: float) -> str:
    """Bytes with a unit a person reads."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{number(count / limit, '.1f')} {unit}"
    return f"{count:.0f} B"


def seconds(count: float) -> str:
    """A time that is left, no more exact than it is known."""
    return f"{count:.0f} s" if count < 90 else f"{count / 60:.0f} min"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    """A small table: `columns` over all cells but the first of each row, which is the row's own heading (HTML)."""
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    lines = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, *cells in rows
    )
    return f'<table class="isx-readout {style}"><thead><tr><td></td>{head}</tr></thead><tbody>{lines}</tbody></table>'
