"""The Compare tab's numbers to small HTML: answers, costs, candidates, the coloured passage. Pure; all text escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from components.compare.views import COLUMNS, PINNED, Answer, Candidate, Cost, Costs, PassageToken, PassageView
from components.ui import formatting
from components.ui.labels import METHOD_COLOURS

EMPTY = {
    "dense": "The dense model's answer; press Generate.",
    "intraslice": "The sliced model's answer, at the sparsity above.",
    "crossmodule": "The answer of a cross-module (SliceGPT) model with as many parameters removed.",
    PINNED: "The answer of the model that is sliced by the pinned setting.",
}
LABELS = COLUMNS | {PINNED: "A, pinned"}
COLOURS = METHOD_COLOURS | {PINNED: "pinned"}
KL = (
    "KL (Kullback-Leibler divergence) from dense: how far the probabilities of the next token are from the dense "
    "model's, on the perplexity's text, ± one standard error over its windows."
)
NOTICEABLE = 0.03  # speeds closer than this are the same within what a busy machine allows to say
SIGNS = ("■", "⏎")  # of an end, and of a line break: neither could be marked otherwise
STRONGEST = 2.0  # nats of extra loss from which a token's colour grows no stronger
DEEPEST = 45  # per cent of that colour: text stays readable on it


def answer(name: str, given: Answer | None = None, sparsity: float | None = None) -> str:
    """One column: the answer so far, from where it parts from the dense one, and how long it is."""
    at = f' <span class="isx-quiet">{sparsity:g} % removed</span>' if sparsity is not None and name != "dense" else ""
    if given is None:
        body = f'<p class="isx-text isx-quiet">{EMPTY[name]}</p>'
    elif given.state == "refused":
        body = f'<p class="isx-text isx-quiet">{escape(given.problem)}</p>'
    else:
        body = f'<p class="isx-text">{_marked(given)}</p><p class="isx-quiet">{_state(name, given)}</p>'
    growing = ' aria-busy="true"' if given and given.state == "growing" else ""
    style = f"isx-answer isx-of-{COLOURS[name]}"
    return f'<section class="{style}"{growing}><h3>{LABELS[name]}{at}</h3>{body}</section>'


def _marked(given: Answer) -> str:
    if given.parts_at is None:
        return escape(given.same)
    token = escape(given.token) if given.token.strip() else f"{SIGNS[bool(given.token)]}{escape(given.token)}"
    return f'{escape(given.same)}<mark>{token}</mark><span class="isx-parted">{escape(given.rest)}</span>'


def _state(name: str, given: Answer) -> str:
    if given.state == "later":
        return escape(given.problem) or "This model is still to be made for this sparsity; its answer follows."
    if given.state == "waiting":
        return "…"
    counted = f"{given.count} token{'' if given.count == 1 else 's'}"
    ending = {"growing": " so far", "ended": "", "cut": ", cut off there", "stopped": ", stopped there"}[given.state]
    if name == "dense":
        return f"{counted}{ending}."
    if given.parts_at is None:
        return f"{counted}{ending}, the same as the dense answer."
    token, dense = _named(given.token), _named(given.instead_of)
    return f"{counted}{ending}. Parts from the dense answer at token {given.parts_at + 1}: {token} instead of {dense}."


def _named(token: str) -> str:
    if token.strip():
        return f"“{escape(token.strip())}”"
    return ("the end", "a line break" if "\n" in token else "a space")[bool(token)]


def cost(name: str, costs: Costs, label: str = "") -> str:
    """What stands under a column, under another label where it is that of the pinned setting."""
    if name in costs.problems or name not in costs.columns:
        return ""
    column, dense = costs.columns[name], costs.columns["dense"]
    rows = [
        (
            "Parameters",
            formatting.millions(column.parameters),
            f"{column.removed:.1%} of the layers removed" if column.removed else "",
        ),
        ("KV cache a token", formatting.size(column.kv), ""),
        ("Perplexity", "–" if column.perplexity is None else f"{column.perplexity:.2f}", _against(column, dense)),
        ("KL from dense", *_distance(column)) if name != "dense" else ("KL from dense", "0", "by definition"),
        ("Reading a prompt", *_speed(column.prefill, dense.prefill, name)),
        ("Writing an answer", *_speed(column.decode, dense.decode, name)),
    ]
    if column.accepted is not None:
        gain = f"answers {column.draft_speedup:.2f} × as fast as dense alone"
        rows.append(("As the dense model's draft", f"{column.accepted:.0%} accepted", gain))
    lines = "".join(f"<div><dt>{title}</dt><dd>{value}<small>{note}</small></dd></div>" for title, value, note in rows)
    return f'<dl class="isx-cost" aria-label="What {label or COLUMNS[name]} costs">{lines}</dl>'


def _against(column: Cost, dense: Cost) -> str:
    if column is dense or column.perplexity is None or dense.perplexity is None:
        return ""
    return f"{column.perplexity / dense.perplexity - 1:+.0%}"


def _distance(column: Cost) -> tuple[str, str]:
    """How far the next-token probabilities are from the dense model's."""
    if column.divergence is None:
        return "–", ""
    value, error = column.divergence
    return f"{value:.3f} nats a token", "" if error is None else f"± {error:.3f}"


def _speed(speed: float | None, dense: float | None, name: str) -> tuple[str, str]:
    """A speed in tokens a second, and how it stands to the dense model's."""
    if speed is None or dense is None:
        return "–", ""
    value = f"{speed:.0f} tokens/s" if speed >= 20 else f"{speed:.1f} tokens/s"
    if name == "dense":
        return value, ""
    ratio = speed / dense
    if abs(ratio - 1) <= NOTICEABLE:
        return value, "as fast as dense"
    return value, f"{ratio:.2f} × dense" + (": slower" if ratio < 1 else "")


def protocol(costs: Costs) -> str:
    """How speeds were measured, or when they will be."""
    text = costs.speed_protocol or "Speeds, KL and the cross-module perplexity are measured after the first answer."
    return f'<p class="isx-quiet">{KL} {escape(text)}</p>'


def candidates(likeliest: Sequence[Candidate], prompt: str) -> str:
    """The next token's probabilities as bars with their numbers."""
    top = max(max(token.dense, token.sliced) for token in likeliest)
    lines = "".join(
        f'<tr><th scope="row"><code>{visible(token.text)}</code></th>'
        f"{_bar('dense', token.dense, top)}{_bar('intraslice', token.sliced, top)}</tr>"
        for token in likeliest
    )
    head = '<tr><th scope="col">Token</th><th scope="col">Dense</th><th scope="col">IntraSlice</th></tr>'
    shown = prompt if len(prompt) <= 80 else prompt[:79] + "…"
    return (
        f'<p class="isx-note">Probability of the answer\'s first token to “{escape(shown)}”.</p>'
        f'<table class="isx-next"><thead>{head}</thead><tbody>{lines}</tbody></table>'
    )


def _bar(name: str, probability: float, top: float) -> str:
    width = f"{100 * probability / top:.1f}%"
    bar = f'<span><i style="width:{width}"></i></span><b>{share(probability)}</b>'
    return f'<td><div class="isx-bars isx-of-{name}">{bar}</div></td>'


def share(probability: float) -> str:
    """A probability in per cent, no finer than it can be told apart."""
    return f"{probability:.1%}" if probability >= 0.0005 else "0.0%"


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
        f"<td>{token.extra:+.2f}</td></tr>"
        for token in view.tokens
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Token", "Dense", "IntraSlice", "Extra loss, nats"))
    return (
        f'<p class="isx-note">{mean:+.2f} nats a token on average; {worse:.0%} of the tokens are foreseen worse, and '
        f"at {view.agreement:.0%} of the places both models hold the same token for the likeliest.</p>"
        '<p class="isx-scale"><span>extra loss 0</span><i></i><span>2 nats and more</span>'
        "<u>foreseen better than before</u></p>"
        f'<p class="isx-passage" role="group" aria-label="The passage; arrow keys move from token to token">'
        f"<span>{escape(view.first)}</span>{text}</p>"
        '<div class="isx-detail" aria-live="polite"><span class="isx-quiet">Point at a token, or choose one and move '
        "with the arrow keys.</span></div>"
        '<details class="isx-fold"><summary>Table</summary><div class="isx-scroll" tabindex="0" role="region" '
        f'aria-label="The passage\'s numbers"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        "</details>"
    )


def _token(index: int, token: PassageToken) -> str:
    strength = round(DEEPEST * min(max(token.extra, 0.0) / STRONGEST, 1.0))
    style = f' style="--isx-strength:{strength}%"' if strength else ""
    better = " isx-better" if token.extra < -0.1 else ""
    likeliest = " · ".join(map(_shares, token.likeliest))
    score = f"{_shares(token)}, {token.extra:+.2f} nats"
    return (
        f'<span class="isx-token{better}" tabindex="{-1 if index else 0}"{style} data-said="{score}" '
        f'data-others="{likeliest}">{escape(token.text)}</span>'
    )


def _shares(token: Candidate | PassageToken) -> str:
    return f"{visible(token.text)} {share(token.dense)} → {share(token.sliced)}"
