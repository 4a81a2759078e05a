"""Renders the Compare tab's data as HTML: answers, costs, candidates, the scored passage. Pure; escapes all text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..i18n.language import gettext, lazy_gettext, number, translate
from ..ui import formatting
from ..ui.labels import METHOD_COLOURS, Terms
from .views import COLUMNS, OTHER, PINNED, Answer, Candidate, Cost, Costs, PassageToken, PassageView

EMPTY = Terms(
    {
        "dense": lazy_gettext("The dense model's answer; press “Generate”."),
        "intraslice": lazy_gettext("The sliced model's answer, at the sparsity above."),
        "crossmodule": lazy_gettext(
            "The answer of a cross-module (SliceGPT) model with about the same number of parameters removed."
        ),
        PINNED: lazy_gettext("The answer of the model sliced with the pinned setting."),
        OTHER: lazy_gettext("The answer of this model; press “Generate”."),
    }
)
COLOURS = METHOD_COLOURS | {PINNED: "pinned", OTHER: "other"}
KL = lazy_gettext(
    "KL from dense: Kullback-Leibler divergence KL(dense ‖ sliced) of the next-token probabilities, on the perplexity "
    "text, ± one standard error over its windows."
)
STATE_SUFFIXES = {
    "growing": lazy_gettext(" so far"),
    "ended": "",
    "cut": lazy_gettext(", truncated"),
    "stopped": lazy_gettext(", stopped"),
}
SPEED_TOLERANCE = 0.03  # relative; a busy machine does not measure speed more precisely
SIGNS = ("■", "⏎")  # stand for the end of the answer and for a line break, which have no text to highlight
MAX_LOSS_INCREASE = 2.0  # nats; the colour of a token does not get stronger above it
MAX_COLOUR = 45  # per cent of the colour at that increase; text stays readable on it


def answer(name: str, content: Answer | None = None, sparsity: float | None = None, other: str = "") -> str:
    """One column: the answer so far, its first divergent token highlighted, and its length.

    `other` is the name of the other model, which heads its column.
    """
    subtitle = ""
    if sparsity is not None and name not in ("dense", OTHER):
        removed = gettext("{sparsity:g}% removed", sparsity=sparsity)
        subtitle = f' <span class="isx-quiet" data-percent="{sparsity:g}">{removed}</span>'
    if content is None:
        body = f'<p class="isx-text isx-quiet">{EMPTY[name]}</p>'
    elif content.state == "refused":
        body = f'<p class="isx-text isx-quiet">{escape(translate(content.problem))}</p>'
    else:
        body = f'<p class="isx-text">{_highlighted(content)}</p><p class="isx-quiet">{_state(name, content)}</p>'
        body += (
            f'<p class="isx-quiet">{gettext("Loop: a sequence of four tokens occurs at least three times.")}</p>'
            * content.loops
        )
    growing = ' aria-busy="true"' if content and content.state == "growing" else ""
    style = f"isx-answer isx-of-{COLOURS[name]}"
    title = escape(other) if name == OTHER else label(name)
    return f'<section class="{style}"{growing}><h3>{title}{subtitle}</h3>{body}</section>'


def is_of(other: str, column: str) -> bool:
    """Whether a column (HTML) is that of this other model."""
    return f"<h3>{escape(other)}</h3>" in column


def label(name: str) -> str:
    """The heading of a column."""
    return gettext("A, pinned") if name == PINNED else COLUMNS[name]


def _highlighted(content: Answer) -> str:
    if content.diverges_at is None:
        return escape(content.shared)
    token = escape(content.token) if content.token.strip() else f"{SIGNS[bool(content.token)]}{escape(content.token)}"
    return f'{escape(content.shared)}<mark>{token}</mark><span class="isx-parted">{escape(content.rest)}</span>'


def _state(name: str, content: Answer) -> str:
    if content.state == "pending" and name == OTHER:
        return gettext("This model is being loaded; its answer will appear here.")
    if content.state == "pending":
        pending = gettext("This model has not been sliced at this sparsity yet; its answer will appear here.")
        return escape(translate(content.problem)) or pending
    if content.state == "waiting":
        return "…"
    counted = gettext("1 token") if content.count == 1 else gettext("{count} tokens", count=content.count)
    suffix = translate(STATE_SUFFIXES[content.state])
    if name == "dense":
        return f"{counted}{suffix}."
    if content.identical:
        return gettext("{counted}{suffix}. Identical to the dense answer.", counted=counted, suffix=suffix)
    if not content.count:
        return f"{counted}{suffix}."
    if content.diverges_at is None:
        return gettext("{counted}{suffix}. Identical to the dense answer so far.", counted=counted, suffix=suffix)
    token, dense = _token_name(content.token), _token_name(content.dense_token)
    return gettext(
        "{counted}{suffix}. Diverges from the dense answer at token {at}: {token} instead of {dense}.",
        counted=counted,
        suffix=suffix,
        at=content.diverges_at + 1,
        token=token,
        dense=dense,
    )


def _token_name(token: str) -> str:
    if token.strip():
        return gettext("“{token}”", token=escape(token.strip()))
    if not token:
        return gettext("the end")
    return gettext("a line break") if "\n" in token else gettext("a space")


def cost(name: str, costs: Costs, title: str = "") -> str:
    """The costs of a column. `title` replaces the name of the method, for the pinned setting."""
    if name in costs.problems or name not in costs.columns:
        return ""
    column, dense = costs.columns[name], costs.columns["dense"]
    rows = [
        (
            gettext("Parameters"),
            formatting.millions(column.parameters),
            gettext("{share:.1%} of the layer parameters removed", share=column.removed) if column.removed else "",
        ),
        (gettext("KV cache per token"), formatting.size(column.kv), ""),
        (
            gettext("Perplexity"),
            "–" if column.perplexity is None else number(column.perplexity, ".2f"),
            _relative_perplexity(column, dense),
        ),
        (gettext("KL from dense"), *(_divergence(column) if name != "dense" else ("0", gettext("by definition")))),
        (gettext("Prefill (reading a prompt)"), *_speed(column.prefill, dense.prefill, name)),
        (gettext("Decode (writing an answer)"), *_speed(column.decode, dense.decode, name)),
    ]
    lines = "".join(f"<div><dt>{term}</dt><dd>{value}<small>{note}</small></dd></div>" for term, value, note in rows)
    label = escape(gettext("Cost of {name}", name=title or COLUMNS[name]))
    measured = {"reads": column.prefill, "writes": column.decode}
    speeds = "".join(
        f' data-{kind}="{speed:{_digits(speed)}}"' for kind, speed in measured.items() if speed is not None
    )
    cache = f' data-cache="{formatting.size(column.kv)}"'
    return f'<dl class="isx-cost"{speeds}{cache} aria-label="{label}">{lines}</dl>'


def _relative_perplexity(column: Cost, dense: Cost) -> str:
    if column is dense or column.perplexity is None or dense.perplexity is None:
        return ""
    return number(column.perplexity / dense.perplexity - 1, "+.0%")


def _divergence(column: Cost) -> tuple[str, str]:
    """KL from the dense model, and its standard error."""
    if column.divergence is None:
        return "–", ""
    value, error = column.divergence
    return gettext("{value:.3f} nats per token", value=value), "" if error is None else f"± {number(error, '.3f')}"


def _speed(speed: float | None, dense: float | None, name: str) -> tuple[str, str]:
    """A speed in tokens per second, and its ratio to the dense model's."""
    if speed is None or dense is None:
        return "–", ""
    value = gettext("{speed} tokens/s", speed=number(speed, _digits(speed)))
    if name == "dense":
        return value, ""
    ratio = speed / dense
    if abs(ratio - 1) <= SPEED_TOLERANCE:
        return value, gettext("as fast as dense")
    return value, gettext("{ratio:.2f} × dense (slower)", ratio=ratio) if ratio < 1 else gettext(
        "{ratio:.2f} × dense", ratio=ratio
    )


def _digits(speed: float) -> str:
    return ".0f" if speed >= 20 else ".1f"


def protocol(costs: Costs) -> str:
    """How speeds were measured, or when they are measured."""
    pending = gettext("Speed, KL and the cross-module perplexity are measured after the first answer.")
    text = translate(costs.speed_protocol) or pending
    return f'<p class="isx-quiet">{translate(KL)} {escape(text)}</p>'


def candidates(tokens: Sequence[Candidate], prompt: str) -> str:
    """The probabilities of the next token, as bars with numbers."""
    top = max(max(token.dense, token.sliced) for token in tokens)
    lines = "".join(
        f'<tr><th scope="row"><code>{visible(token.text)}</code></th>'
        f"{_bar('dense', token.dense, top)}{_bar('intraslice', token.sliced, top)}</tr>"
        for token in tokens
    )
    names = (gettext("Token"), COLUMNS["dense"], COLUMNS["intraslice"])
    head = f"<tr>{''.join(map(_heading, names))}</tr>"
    excerpt = prompt if len(prompt) <= 80 else prompt[:79] + "…"
    caption = gettext(
        "Which token would each model predict next? Probability of the first token of the answer to “{prompt}”.",
        prompt=escape(excerpt),
    )
    return (
        f'<p class="isx-note">{caption}</p><table class="isx-next"><thead>{head}</thead><tbody>{lines}</tbody></table>'
    )


def _bar(name: str, probability: float, top: float) -> str:
    width = f"{100 * probability / top:.1f}%"
    bar = f'<span><i style="width:{width}"></i></span><b>{percentage(probability)}</b>'
    return f'<td><div class="isx-bars isx-of-{name}">{bar}</div></td>'


def percentage(probability: float) -> str:
    """A probability in per cent, with one decimal."""
    return number(probability if probability >= 0.0005 else 0.0, ".1%")


def visible(token: str) -> str:
    """A token with visible spaces and line breaks (escaped)."""
    return escape(token).replace(" ", "␣").replace("\n", "⏎") or "∅"


def passage(view: PassageView) -> str:
    """The passage, each token coloured by its loss increase, with its scores as data attributes; and a table."""
    mean = sum(token.loss_increase for token in view.tokens) / len(view.tokens)
    worse = sum(token.loss_increase > 0 for token in view.tokens) / len(view.tokens)
    text = "".join(_token(index, token) for index, token in enumerate(view.tokens))
    rows = "".join(
        f"<tr><td>{visible(token.text)}</td><td>{percentage(token.dense)}</td><td>{percentage(token.sliced)}</td>"
        f"<td>{number(token.loss_increase, '+.2f')}</td></tr>"
        for token in view.tokens
    )
    head = "".join(
        map(_heading, (gettext("Token"), COLUMNS["dense"], COLUMNS["intraslice"], gettext("Loss increase, nats")))
    )
    caption = gettext(
        "{mean:+.2f} nats per token on average; {worse:.0%} of the tokens are predicted worse; both models "
        "have the same most likely token at {agreement:.0%} of the positions.",
        mean=mean,
        worse=worse,
        agreement=view.agreement,
    )
    label = gettext("The passage's data")
    instructions = gettext("Point at a token, or choose one and move with the arrow keys.")
    passage_label = gettext("The passage; arrow keys move from token to token")
    return (
        f'<p class="isx-note">{caption}</p>'
        f'<p class="isx-scale"><span>{gettext("loss increase 0")}</span><i></i><span>{gettext("2 nats or more")}</span>'
        f"<u>{gettext('predicted better, by 0.1 nats or more')}</u></p>"
        f'<p class="isx-passage" role="group" aria-label="{passage_label}">'
        f"<span>{escape(view.first)}</span>{text}</p>"
        f'<div class="isx-detail" aria-live="polite"><span class="isx-quiet">{instructions}</span></div>'
        f'<details class="isx-fold"><summary>{gettext("Data table")}</summary><div class="isx-scroll" tabindex="0" '
        f'role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def _heading(name: str) -> str:
    return f'<th scope="col">{name}</th>'


def _token(index: int, token: PassageToken) -> str:
    strength = round(MAX_COLOUR * min(max(token.loss_increase, 0.0) / MAX_LOSS_INCREASE, 1.0))
    style = f' style="--isx-strength:{strength}%"' if strength else ""
    better = " isx-better" if token.loss_increase < -0.1 else ""
    candidates = " · ".join(map(_probabilities, token.candidates))
    score = gettext("{shares}, {extra:+.2f} nats", shares=_probabilities(token), extra=token.loss_increase)
    return (
        f'<span class="isx-token{better}" tabindex="{-1 if index else 0}"{style} data-said="{score}" '
        f'data-extra="{token.loss_increase:.2f}" '
        f'data-others="{candidates}">{escape(token.text)}</span>'
    )


def _probabilities(token: Candidate | PassageToken) -> str:
    return f"{visible(token.text)} {percentage(token.dense)} → {percentage(token.sliced)}"
