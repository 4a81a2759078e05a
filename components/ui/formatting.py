"""Formats of numbers, and small pieces of HTML: readout, status, protocol. Pure; formats are defined only here."""

from collections.abc import Callable, Sequence
from html import escape

from ..i18n.language import LazyString, gettext, lazy_gettext, number, percentage, translate
from ..jobs.status import NUMBERS, Status
from ..state.views import Perplexities, PinnedView, PlanView, PrecomputedCosts, Provenance, Reading
from .figure import cell

PERPLEXITY = lazy_gettext(
    "Perplexity: among how many equally likely tokens the model has to guess at each step; lower is better."
)
KL = lazy_gettext("KL: how far the predicted probabilities are from the dense model's; 0 where they are the same.")


def reading(measured: Reading | None, digits: int = 1) -> str:
    """A perplexity; with its standard error before all windows are measured."""
    if measured is None:
        return "–"
    return number(measured.value, f".{digits}f") if measured.is_whole else with_error(measured, 1)


def with_error(reading: Reading | None, digits: int = 2) -> str:
    if reading is None:
        return "–"
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
    pinned_rows = _sizes(pinned.plan) if pinned else rows
    lines: list[tuple[str, ...]] = [
        (name, format_size(dense), format_size(sliced), signed(sliced - other, format_size))
        for (name, format_size, dense, sliced), (*_, other) in zip(rows, pinned_rows, strict=True)
    ]
    before = pinned.measured if pinned else Perplexities()
    perplexity = reading(measured.dense, 2), reading(measured.sliced, 2)
    changes = _change(measured.sliced, before.sliced), _change(measured.ratio, before.ratio)
    lines += [
        (gettext("Perplexity"), *perplexity, changes[0]),
        (gettext("Perplexity relative to dense"), "", with_error(measured.ratio, 2), changes[1]),
        *_precomputed_lines(measured.costs, before.costs),
    ]
    flops = gettext(
        "FLOPs: two per weight in each matrix multiplication, plus those of attention over {context} tokens.",
        context=plan.context,
    )
    style = "isx-with-pinned" if pinned else ""
    attributes = f' data-source="{escape(provenance(measured.source))}"' if measured.source.kind == "before" else ""
    attributes += "".join(
        f' data-{name}="{reading.value:.2f}"'
        for name, reading in (("dense", measured.dense), ("sliced", measured.sliced))
        if reading and reading.is_whole
    )
    content = table(columns, [line[: len(columns) + 1] for line in lines], style)
    notes = " ".join((translate(PERPLEXITY), translate(KL), flops))
    return f'<div class="isx-read"{attributes}>{content}</div><p class="isx-quiet">{notes}</p>'


def _precomputed_lines(costs: PrecomputedCosts | None, pinned: PrecomputedCosts | None) -> list[tuple[str, ...]]:
    """The readout's rows that are only precomputed: name, dense, sliced, against the pinned setting."""
    if costs is None:
        return []
    title = gettext("Precomputed on {day}", day=costs.day)
    lines = {
        "divergence": gettext("KL from dense, nats per token"),
        "prefill": gettext("Prefill speed relative to dense"),
        "decode": gettext("Decode speed relative to dense"),
    }
    values = ((name, getattr(costs, field), getattr(pinned, field, None)) for field, name in lines.items())
    return [
        (f'<span title="{title}">{name}</span>', "", cell(value, ".2f"), _difference(value, other))
        for name, value, other in values
    ]


def _sizes(plan: PlanView) -> list[tuple[str, Callable[[float], str], float, float]]:
    """The readout's rows that need no measurement: name, format, dense and sliced value."""
    width = plan.bytes_per_value
    return [
        (gettext("Parameters"), millions, plan.parameters_dense, plan.parameters_sliced),
        (gettext("in the layers"), millions, *plan.decoder),
        (gettext("FLOPs per token"), millions, *plan.flops),
        (gettext("KV cache per token"), size, *plan.kv),
        (gettext("Weight memory"), size, width * plan.parameters_dense, width * plan.parameters_sliced),
    ]


def _change(now: Reading | None, before: Reading | None) -> str:
    return "–" if now is None or before is None else _difference(now.value, before.value)


def _difference(now: float | None, before: float | None) -> str:
    return "–" if now is None or before is None else signed(now - before, lambda value: number(value, ".2f"))


def signed(change: float, format_size: Callable[[float], str]) -> str:
    """A difference with its sign and its unit, such as `−10.6 M`; `format_size` formats its absolute value."""
    size = format_size(abs(change))
    return "0" if size == format_size(0) else f"{'+' if change > 0 else '−'}{size}"


def status_line(event: Status) -> str:
    """What the page's status line shows once a job has emitted a status (HTML); it replaces only an older one."""
    shown = event.line() if event.line else event
    return numbered(shown.number or next(NUMBERS), status(shown))  # one that is of no client's job is new


def numbered(number: int, html: str) -> str:
    """HTML for a component of `newest`: it replaces only what has a smaller number."""
    return f"<!--{number}-->{html}"


def status(event: Status) -> str:
    """A status (HTML), with a progress bar if the progress is known."""
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
    return status(Status(str(error) or type(error).__name__, "error"))


def provenance(source: Provenance) -> str:
    """Where numbers come from that are not from a whole calibration here, as a sentence; else empty."""
    if source.kind == "before":
        return gettext("Precomputed: {label}", label=source.label)
    so_far = gettext(
        "Calibrated on {sequences} of {of} sequences so far.", sequences=source.sequences, of=source.all_sequences
    )
    return so_far if source.kind == "so far" else ""


def protocol(measured: Perplexities) -> str:
    """The protocol of the perplexities, with their standard errors (HTML)."""
    if not measured.protocol:
        return f'<p class="isx-quiet">{gettext("Perplexity is measured as soon as the sliced model is ready.")}</p>'
    return f'<p class="isx-quiet">{escape(translate(measured.protocol))}{_errors(measured)}</p>'


def _errors(measured: Perplexities) -> str:
    """The standard errors, after all windows are measured."""
    dense, sliced, ratio = measured.dense, measured.sliced, measured.ratio
    if dense is None or sliced is None or ratio is None or None in measured.values:
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
        "The current setting: <b>{removed}</b> of the layer parameters removed, {parameters} parameters, about "
        "{bytes}. The model is sliced when you request a file, unless it already is.",
        removed=share(plan.removed),
        parameters=millions(plan.parameters_sliced),
        bytes=size(plan.bytes_per_value * plan.parameters_sliced),
    )
    return f'<p class="isx-lead">{text}</p>'


def share(fraction: float) -> str:
    """A fraction in per cent, with two significant digits: 0.0053 -> "0.53%"."""
    return percentage(float(f"{100 * fraction:.2g}"))


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
