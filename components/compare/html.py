"""Renders the Compare tab's data as HTML: answers, costs, candidates, the scored passage. Pure; escapes all text."""

import math
from collections.abc import Sequence
from html import escape
from operator import attrgetter
from typing import Literal

from ..i18n.language import gettext, lazy_gettext, number, translate
from ..ui import formatting
from ..ui.labels import METHOD_COLOURS, METHODS, Terms
from .views import MAX_GUESSES, OTHER, PINNED, Answer, Cost, Costs, NextToken, Passage, TokenScore

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
SMALL = lazy_gettext(
    "Small models, such as the default one, often answer wrongly before anything is removed: compare a sliced answer "
    "with the dense one."
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
    """A column: the answer so far, its first divergent token highlighted, its length; `other` names another model."""
    subtitle = ""
    if sparsity is not None and name not in ("dense", OTHER):
        removed = gettext("{sparsity:g}% removed", sparsity=sparsity)
        subtitle = f' <span class="isx-quiet" data-percent="{sparsity:g}">{removed}</span>'
    if content is None or content.state == "refused":
        text = escape(translate(content.problem)) if content else EMPTY[name]
        body = f'<p class="isx-text isx-quiet">{text}</p>'
    else:
        loop = gettext("Loop: a sequence of four tokens occurs at least three times.")
        notes = [_state(name, content), *([loop] if content.loops else [])]
        body = f'<p class="isx-text">{_highlighted(content)}</p>'
        body += "".join(f'<p class="isx-quiet">{note}</p>' for note in notes)
    growing = ' aria-busy="true"' if content and content.state == "growing" else ""
    title = escape(other) if name == OTHER else label(name)
    return f'<section class="isx-answer isx-of-{COLOURS[name]}"{growing}><h3>{title}{subtitle}</h3>{body}</section>'


def is_of(other: str, column: str) -> bool:
    """Whether a column (HTML) is that of this other model."""
    return f"<h3>{escape(other)}</h3>" in column


def label(name: str) -> str:
    """The heading of a column."""
    return gettext("A, pinned") if name == PINNED else METHODS[name]


def _highlighted(content: Answer) -> str:
    if content.diverges_at is None:
        return escape(content.shared)
    token = escape(content.token) if content.token.strip() else f"{SIGNS[bool(content.token)]}{escape(content.token)}"
    return f'{escape(content.shared)}<mark>{token}</mark><span class="isx-parted">{escape(content.rest)}</span>'


def _state(name: str, content: Answer) -> str:
    if content.state == "waiting":
        return "…"
    if content.state == "pending" and name == OTHER:
        return gettext("This model is being loaded; its answer will appear here.")
    if content.state == "pending":
        pending = gettext("This model has not been sliced at this sparsity yet; its answer will appear here.")
        return escape(translate(content.problem)) or pending
    counted = gettext("1 token") if content.count == 1 else gettext("{count} tokens", count=content.count)
    words = {"counted": counted, "suffix": translate(STATE_SUFFIXES[content.state])}
    if content.identical and name != "dense":
        return gettext("{counted}{suffix}. Identical to the dense answer.", **words)
    if name == "dense" or not content.count:
        return "{counted}{suffix}.".format(**words)
    if content.diverges_at is None:
        return gettext("{counted}{suffix}. Identical to the dense answer so far.", **words)
    return gettext(
        "{counted}{suffix}. Diverges from the dense answer at token {at}: {token} instead of {dense}.",
        **words,
        at=content.diverges_at + 1,
        token=_token_name(content.token),
        dense=_token_name(content.dense_token),
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
    removed = gettext("{share:.1%} of the layer parameters removed", share=column.removed) if column.removed else ""
    rows = [
        (gettext("Parameters"), formatting.millions(column.parameters), removed),
        (gettext("KV cache per token"), formatting.size(column.kv), ""),
        (gettext("Perplexity"), *_perplexity(column, dense)),
        (gettext("KL from dense"), *(_divergence(column) if name != "dense" else ("0", gettext("by definition")))),
        (gettext("Prefill (reading a prompt)"), *_speed(name, "prefill", column, dense)),
        (gettext("Decode (writing an answer)"), *_speed(name, "decode", column, dense)),
    ]
    lines = "".join(f"<div><dt>{term}</dt><dd>{value}<small>{note}</small></dd></div>" for term, value, note in rows)
    measured = {"reads": column.prefill, "writes": column.decode}
    data = {kind: f"{speed:{_digits(speed)}}" for kind, speed in measured.items() if speed is not None}
    data["cache"] = formatting.size(column.kv)
    attributes = "".join(f' data-{kind}="{value}"' for kind, value in data.items())
    heading = escape(gettext("Cost of {name}", name=title or METHODS[name]))
    return f'<dl class="isx-cost"{attributes} aria-label="{heading}">{lines}</dl>'


def _perplexity(column: Cost, dense: Cost) -> tuple[str, str]:
    """The perplexity, and its relative increase."""
    if column.perplexity is None:
        return "–", ""
    change = "" if column is dense or not dense.perplexity else number(column.perplexity / dense.perplexity - 1, "+.0%")
    return number(column.perplexity, ".2f"), change


def _divergence(column: Cost) -> tuple[str, str]:
    """KL from the dense model, and its standard error; before it is measured, the precomputed one."""
    if column.divergence is not None:
        value, error = column.divergence
        note = "" if error is None else f"± {number(error, '.3f')}"
    elif column.precomputed is not None:
        value, note = column.precomputed.divergence, gettext("Precomputed on {day}", day=column.precomputed.day)
    else:
        return "–", ""
    return gettext("{value:.3f} nats per token", value=value), note


def _speed(name: str, kind: str, column: Cost, dense_column: Cost) -> tuple[str, str]:
    """A speed in tokens per second, and its ratio to the dense model's; before it is measured, a precomputed ratio."""
    speed, dense = getattr(column, kind), getattr(dense_column, kind)
    if speed is None or dense is None:
        before = column.precomputed
        if before is None or (ratio := getattr(before, kind)) is None:
            return "–", ""
        return gettext("{ratio:.2f} × dense", ratio=ratio), gettext("Precomputed on {day}", day=before.day)
    ratio = speed / dense
    if name == "dense":
        note = ""
    elif abs(ratio - 1) <= SPEED_TOLERANCE:
        note = gettext("as fast as dense")
    elif ratio < 1:
        note = gettext("{ratio:.2f} × dense (slower)", ratio=ratio)
    else:
        note = gettext("{ratio:.2f} × dense", ratio=ratio)
    return gettext("{speed} tokens/s", speed=number(speed, _digits(speed))), note


def _digits(speed: float) -> str:
    return ".0f" if speed >= 20 else ".1f"


def protocol(costs: Costs) -> str:
    """How speeds were measured, or when they are measured."""
    pending = gettext("Speed, KL and the cross-module perplexity are measured after the first answer.")
    text = translate(costs.speed_protocol) or pending
    return f'<p class="isx-quiet">{translate(KL)} {escape(text)}</p>'


def candidates(tokens: Sequence[NextToken], prompt: str) -> str:
    """The probabilities of the next token, as bars with numbers."""
    top = max(max(token.dense, token.sliced) for token in tokens)
    lines = "".join(
        f'<tr><th scope="row"><code>{visible(token.text)}</code></th>'
        f"{_bar('dense', token.dense, top)}{_bar('intraslice', token.sliced, top)}</tr>"
        for token in tokens
    )
    caption = gettext(
        "Which token would each model predict next? Probability of the first token of the answer to “{prompt}”.",
        prompt=escape(prompt if len(prompt) <= 80 else prompt[:79] + "…"),
    )
    head = _head(gettext("Token"), METHODS["dense"], METHODS["intraslice"])
    table = f'<table class="isx-next">{head}<tbody>{lines}</tbody></table>'
    return f'<p class="isx-note">{caption}</p>{table}'


def _head(*headings: str) -> str:
    """The headings of a table of tokens."""
    cells = "".join(f'<th scope="col">{heading}</th>' for heading in headings)
    return f"<thead><tr>{cells}</tr></thead>"


def _bar(name: str, probability: float, top: float) -> str:
    bar = f'<span><i style="width:{100 * probability / top:.1f}%"></i></span><b>{percentage(probability)}</b>'
    return f'<td><div class="isx-bars isx-of-{name}">{bar}</div></td>'


def percentage(probability: float) -> str:
    """A probability in per cent, with one decimal."""
    return number(probability if probability >= 0.0005 else 0.0, ".1%")


def visible(token: str) -> str:
    """A token with visible spaces and line breaks (escaped)."""
    return escape(token).replace(" ", "␣").replace("\n", "⏎") or "∅"


def passage(view: Passage, percent: float) -> str:
    """The passage, each token coloured by its loss increase, with its scores, which `assets/passage.js` shows."""
    caption = gettext(
        "{mean:+.2f} nats per token on average; {worse:.0%} of the tokens are predicted worse; both models "
        "have the same most likely token at {agreement:.0%} of the positions.",
        mean=sum(token.extra_loss for token in view.tokens) / len(view.tokens),
        worse=sum(token.extra_loss > 0 for token in view.tokens) / len(view.tokens),
        agreement=view.agreement,
    )
    text = "".join(_token(index, token) for index, token in enumerate(view.tokens))
    return (
        f'<p class="isx-note">{caption}</p>'
        f'<p class="isx-scale"><span>{gettext("loss increase 0")}</span><i></i><span>{gettext("2 nats or more")}</span>'
        f"<u>{gettext('predicted better, by 0.1 nats or more')}</u></p>"
        f'<p class="isx-passage" role="group" data-percent="{percent:g}" '
        f'aria-label="{gettext("The passage; arrow keys move from token to token")}">'
        f"<span>{escape(view.first)}</span>{text}</p>"
        f'<div class="isx-detail" aria-live="polite"><span class="isx-quiet">'
        f"{gettext('Point at a token, or choose one and move with the arrow keys.')}</span></div>"
        f"{_diverging(sum(map(_is_lost, view.tokens)))}"
    )


def _diverging(lost: int) -> str:
    """The empty table of the tokens at which the models diverge most, its filter, and its buttons."""
    dense, sliced = METHODS["dense"], METHODS["intraslice"]
    headings = [
        gettext("Token, after three others"),
        gettext("KL, nats"),
        f"{dense} → {sliced}",
        *(gettext("{model}: first three guesses", model=model) for model in (dense, sliced)),
    ]
    steps = {-1: gettext("Previous ten"), 1: gettext("Next ten")}
    buttons = "".join(f'<button type="button" data-step="{step}">{name}</button>' for step, name in steps.items())
    only_lost = gettext("Only tokens that dense guesses right and IntraSlice wrong ({count})", count=lost)
    return (
        f'<section class="isx-diverging"><h4>{gettext("Tokens where the models diverge most")}</h4>'
        f'<p class="isx-note">{gettext("Sorted by KL(dense ‖ sliced). A click shows the token in the passage.")}</p>'
        f'<label><input type="checkbox"{"" if lost else " disabled"}> {only_lost}</label>'
        f'<table class="isx-tokens">{_head(*headings)}<tbody></tbody></table>'
        f'<p class="isx-steps">{buttons}<span role="status"></span></p></section>'
    )


def _token(index: int, token: TokenScore) -> str:
    strength = round(MAX_COLOUR * min(max(token.extra_loss, 0.0) / MAX_LOSS_INCREASE, 1.0))
    style = f' style="--isx-strength:{strength}%"' if strength else ""
    better = " isx-better" if token.extra_loss < -0.1 else ""
    others = " · ".join(map(_probabilities, token.likeliest))
    lost = " data-lost" if _is_lost(token) else ""
    shares = _probabilities(NextToken(token.text, token.token, math.exp(token.dense), math.exp(token.sliced)))
    score = gettext("{shares}, {extra:+.2f} nats", shares=shares, extra=token.extra_loss)
    return (
        f'<span class="isx-token{better}" tabindex="{-1 if index else 0}"{style} data-said="{score}" '
        f'data-extra="{token.extra_loss:.2f}" data-others="{others}" data-kl="{token.divergence:.4g}"{lost} '
        f'data-dense="{_guesses(token, "dense")}" data-sliced="{_guesses(token, "sliced")}">{escape(token.text)}</span>'
    )


def _is_lost(token: TokenScore) -> bool:
    """Whether it is the dense model's most likely token, but not the sliced model's."""
    return max(token.likeliest, key=attrgetter("dense")).token == token.token and not token.agree


def _guesses(token: TokenScore, model: Literal["dense", "sliced"]) -> str:
    guesses = sorted(token.likeliest, key=attrgetter(model), reverse=True)[:MAX_GUESSES]
    return " · ".join(f"{visible(guess.text)} {percentage(getattr(guess, model))}" for guess in guesses)


def _probabilities(token: NextToken) -> str:
    return f"{visible(token.text)} {percentage(token.dense)} → {percentage(token.sliced)}"
