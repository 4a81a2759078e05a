"""The Compare tab's numbers to small HTML: answers, costs, candidates, the coloured passage. Pure; all text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from components.compare.views import COLUMNS, PINNED, Answer, Candidate, Cost, Costs, PassageToken, PassageView
from components.i18n.language import gettext, lazy_gettext, number, translate
from components.ui import formatting
from components.ui.labels import METHOD_COLOURS, Terms

EMPTY = Terms(
    {
        "dense": lazy_gettext("The dense model's answer; press Generate."),
        "intraslice": lazy_gettext("The sliced model's answer, at the sparsity above."),
        "crossmodule": lazy_gettext(
            "The answer of a cross-module (SliceGPT) model with the same number of parameters removed."
        ),
        PINNED: lazy_gettext("The answer of the model sliced with the pinned setting."),
    }
)
COLOURS = METHOD_COLOURS | {PINNED: "pinned"}
KL = lazy_gettext(
    "KL from dense: Kullback-Leibler divergence of the next-token probabilities from the dense model's, on the "
    "perplexity text, ± one standard error over its windows."
)
ENDINGS = {
    "growing": lazy_gettext(" so far"),
    "ended": "",
    "cut": lazy_gettext(", truncated"),
    "stopped": lazy_gettext(", stopped"),
}
NOTICEABLE = 0.03  # speeds closer than this are the same within what a busy machine allows to say
SIGNS = ("■", "⏎")  # of an end, and of a line break: neither could be marked otherwise
STRONGEST = 2.0  # nats of extra loss from which a token's colour grows no stronger
DEEPEST = 45  # per cent of that colour: text stays readable on it


def answer(name: str, given: Answer | None = None, sparsity: float | None = None) -> str:
    """One column: the answer so far, from where it parts from the dense one, and how long it is."""
    at = ""
    if sparsity is not None and name != "dense":
        told = gettext("{sparsity:g} % removed", sparsity=sparsity)
        at = f' <span class="isx-quiet" data-percent="{sparsity:g}">{told}</span>'
    if given is None:
        body = f'<p class="isx-text isx-quiet">{EMPTY[name]}</p>'
    elif given.state == "refused":
        body = f'<p class="isx-text isx-quiet">{escape(translate(given.problem))}</p>'
    else:
        body = f'<p class="isx-text">{_marked(given)}</p><p class="isx-quiet">{_state(name, given)}</p>'
    growing = ' aria-busy="true"' if given and given.state == "growing" else ""
    style = f"isx-answer isx-of-{COLOURS[name]}"
    return f'<section class="{style}"{growing}><h3>{label(name)}{at}</h3>{body}</section>'


def label(name: str) -> str:
    """What a column is called."""
    return gettext("A, pinned") if name == PINNED else COLUMNS[name]


def _marked(given: Answer) -> str:
    if given.parts_at is None:
        return escape(given.same)
    token = escape(given.token) if given.token.strip() else f"{SIGNS[bool(given.token)]}{escape(given.token)}"
    return f'{escape(given.same)}<mark>{token}</mark><span class="isx-parted">{escape(given.rest)}</span>'


def _state(name: str, given: Answer) -> str:
    if given.state == "later":
        later_on = gettext("This model is not sliced at this sparsity yet; its answer follows.")
        return escape(translate(given.problem)) or later_on
    if given.state == "waiting":
        return "…"
    counted = gettext("1 token") if given.count == 1 else gettext("{count} tokens", count=given.count)
    ending = translate(ENDINGS[given.state])
    if name == "dense":
        return f"{counted}{ending}."
    if given.parts_at is None:
        return gettext("{counted}{ending}, the same as the dense answer.", counted=counted, ending=ending)
    token, dense = _named(given.token), _named(given.instead_of)
    return gettext(
        "{counted}{ending}. Diverges from the dense answer at token {at}: {token} instead of {dense}.",
        counted=counted,
        ending=ending,
        at=given.parts_at + 1,
        token=token,
        dense=dense,
    )


def _named(token: str) -> str:
    if token.strip():
        return gettext("“{token}”", token=escape(token.strip()))
    if not token:
        return gettext("the end")
    return gettext("a line break") if "\n" in token else gettext("a space")


def cost(name: str, costs: Costs, called: str = "") -> str:
    """What stands under a column, under another label where it is that of the pinned setting."""
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
            _against(column, dense),
        ),
        (gettext("KL from dense"), *(_distance(column) if name != "dense" else ("0", gettext("by definition")))),
        (gettext("Prefill (reading a prompt)"), *_speed(column.prefill, dense.prefill, name)),
        (gettext("Decode (writing an answer)"), *_speed(column.decode, dense.decode, name)),
    ]
    lines = "".join(f"<div><dt>{title}</dt><dd>{value}<small>{note}</small></dd></div>" for title, value, note in rows)
    what = gettext("Cost of {name}", name=called or COLUMNS[name])
    known = {"reads": column.prefill, "writes": column.decode}
    speeds = "".join(f' data-{which}="{speed:{_digits(speed)}}"' for which, speed in known.items() if speed is not None)
    cache = f' data-cache="{formatting.size(column.kv)}"'
    return f'<dl class="isx-cost"{speeds}{cache} aria-label="{what}">{lines}</dl>'


def _against(column: Cost, dense: Cost) -> str:
    if column is dense or column.perplexity is None or dense.perplexity is None:
        return ""
    return number(column.perplexity / dense.perplexity - 1, "+.0%")


def _distance(column: Cost) -> tuple[str, str]:
    """How far the next-token probabilities are from the dense model's."""
    if column.divergence is None:
        return "–", ""
    value, error = column.divergence
    return gettext("{value:.3f} nats per token", value=value), "" if error is None else f"± {number(error, '.3f')}"


def _speed(speed: float | None, dense: float | None, name: str) -> tuple[str, str]:
    """A speed in tokens a second, and how it stands to the dense model's."""
    if speed is None or dense is None:
        return "–", ""
    value = gettext("{speed} tokens/s", speed=number(speed, _digits(speed)))
    if name == "dense":
        return value, ""
    ratio = speed / dense
    if abs(ratio - 1) <= NOTICEABLE:
        return value, gettext("as fast as dense")
    return value, gettext("{ratio:.2f} × dense: slower", ratio=ratio) if ratio < 1 else gettext(
        "{ratio:.2f} × dense", ratio=ratio
    )


def _digits(speed: float) -> str:
    return ".0f" if speed >= 20 else ".1f"


def protocol(costs: Costs) -> str:
    """How speeds were measured, or when they will be."""
    follows = gettext("Speed, KL and the cross-module perplexity are measured after the first answer.")
    text = translate(costs.speed_protocol) or follows
    return f'<p class="isx-quiet">{translate(KL)} {escape(text)}</p>'


def candidates(likeliest: Sequence[Candidate], prompt: str) -> str:
    """The next token's probabilities as bars with their numbers."""
    top = max(max(token.dense, token.sliced) for token in likeliest)
    lines = "".join(
        f'<tr><th scope="row"><code>{visible(token.text)}</code></th>'
        f"{_bar('dense', token.dense, top)}{_bar('intraslice', token.sliced, top)}</tr>"
        for token in likeliest
    )
    names = (gettext("Token"), COLUMNS["dense"], COLUMNS["intraslice"])
    head = f"<tr>{''.join(map(_heading, names))}</tr>"
    shown = prompt if len(prompt) <= 80 else prompt[:79] + "…"
    told = gettext("Probability of the answer's first token to “{prompt}”.", prompt=escape(shown))
    return f'<p class="isx-note">{told}</p><table class="isx-next"><thead>{head}</thead><tbody>{lines}</tbody></table>'


def _bar(name: str, probability: float, top: float) -> str:
    width = f"{100 * probability / top:.1f}%"
    bar = f'<span><i style="width:{width}"></i></span><b>{share(probability)}</b>'
    return f'<td><div class="isx-bars isx-of-{name}">{bar}</div></td>'


def share(probability: float) -> str:
    """A probability in per cent, no finer than it can be told apart."""
    return number(probability if probability >= 0.0005 else 0.0, ".1%")


def visible(token: str) -> str:
    """A token with its spaces and line breaks to be seen (escaped)."""
    return escape(token).replace(" ", "␣").replace("\n", "⏎") or "∅"


def passage(view: PassageView) -> str:
    """The passage, each token coloured by its extra loss and carrying what there is to say of it; and a table."""
    mean = sum(token.extra for token in view.tokens) / len(view.tokens)
    worse = sum(token.extra > 0 for token in view.tokens) / len(view.tokens)
    text = "".join(_token(index, token) for index, token in enumerate(view.tokens))
    rows = "".join(
        f"<tr><td>{visible(token.text)}</td><td>{share(token.dense)}</td><td>{share(token.sliced)}</td>"
        f"<td>{number(token.extra, '+.2f')}</td></tr>"
        for token in view.tokens
    )
    head = "".join(
        map(_heading, (gettext("Token"), COLUMNS["dense"], COLUMNS["intraslice"], gettext("Loss increase, nats")))
    )
    told = gettext(
        "{mean:+.2f} nats per token on average; {worse:.0%} of the tokens are predicted worse; both models "
        "have the same most likely token at {agreement:.0%} of the positions.",
        mean=mean,
        worse=worse,
        agreement=view.agreement,
    )
    numbers = gettext("The passage's data")
    how = gettext("Point at a token, or choose one and move with the arrow keys.")
    label = gettext("The passage; arrow keys move from token to token")
    return (
        f'<p class="isx-note">{told}</p>'
        f'<p class="isx-scale"><span>{gettext("loss increase 0")}</span><i></i><span>{gettext("2 nats or more")}</span>'
        f"<u>{gettext('predicted better than before')}</u></p>"
        f'<p class="isx-passage" role="group" aria-label="{label}">'
        f"<span>{escape(view.first)}</span>{text}</p>"
        f'<div class="isx-detail" aria-live="polite"><span class="isx-quiet">{how}</span></div>'
        f'<details class="isx-fold"><summary>{gettext("Table")}</summary><div class="isx-scroll" tabindex="0" '
        f'role="region" aria-label="{numbers}"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def _heading(name: str) -> str:
    return f'<th scope="col">{name}</th>'


def _token(index: int, token: PassageToken) -> str:
    strength = round(DEEPEST * min(max(token.extra, 0.0) / STRONGEST, 1.0))
    style = f' style="--isx-strength:{strength}%"' if strength else ""
    better = " isx-better" if token.extra < -0.1 else ""
    likeliest = " · ".join(map(_shares, token.likeliest))
    score = gettext("{shares}, {extra:+.2f} nats", shares=_shares(token), extra=token.extra)
    return (
        f'<span class="isx-token{better}" tabindex="{-1 if index else 0}"{style} data-said="{score}" '
        f'data-extra="{token.extra:.2f}" '
        f'data-others="{likeliest}">{escape(token.text)}</span>'
    )


def _shares(token: Candidate | PassageToken) -> str:
    return f"{visible(token.text)} {share(token.dense)} → {share(token.sliced)}"
