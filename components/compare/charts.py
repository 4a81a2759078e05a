"""The grid of facts, a square for each question and model: plain numbers to a `Chart` of `assets/facts.js`. Pure."""

from ..i18n.language import gettext, lazy_gettext, translate
from ..ui import formatting
from ..ui.figure import Chart, Json, Table
from ..ui.labels import METHOD_COLOURS, METHODS, Terms
from .views import LEVELS, FactsColumn, FactsView, fact_counts

GROUPS = Terms(
    {
        "capitals": lazy_gettext("Capitals"),
        "science": lazy_gettext("Science"),
        "words and opposites": lazy_gettext("Words and opposites"),
        "arithmetic of one digit": lazy_gettext("Arithmetic of one digit"),
        "sequences": lazy_gettext("Sequences"),
        "code": lazy_gettext("Code"),
        "common sense": lazy_gettext("Common sense"),
        "grammar": lazy_gettext("Grammar"),
        "all": lazy_gettext("All"),
    }
)
STORED = lazy_gettext("Stored answers are of every fifth percentage.")
ASK = lazy_gettext("“Ask the models” asks them at this setting, which takes some seconds.")


def facts_chart(view: FactsView | None) -> Chart:
    """The levels of all models by group, and what IntraSlice loses and gains; without a view how to get one."""
    title = gettext("Facts: said, only selected, or neither")
    note = gettext(
        "What does each model still know? A question is a text that breaks off. A model says the right answer if it "
        "writes it next; it only selects it if it writes something else, but finds it more likely than the wrong "
        "answers offered, as guessing does of a quarter. The numbers count all that are said, and all that are "
        "selected, said or not."
    )
    if view is None:
        return Chart(title, note, [], [], protocol=translate(ASK), drawing={"kind": "facts"})
    names = {name: _name(name, column, view.percent) for name, column in view.columns.items()}
    is_stored = any(column.stored_at is not None for column in view.columns.values())
    parts = [formatting.provenance(view.source), "" if view.is_exact else STORED]
    parts += [ASK] if is_stored or "intraslice" not in names else []
    counts = "; ".join(
        f"{name}: {sum(fact.says for fact in column.facts)}"
        for name, column in zip(names.values(), view.columns.values(), strict=True)
    )
    said = gettext("Right answers said, of {of}: {counts}.", of=len(view.questions), counts=counts)
    return Chart(
        title,
        f"{note} {said}",
        *_table(view, names),
        hint=gettext("Click a square to see what each model says."),
        protocol=" ".join(translate(part) for part in parts if part),
        drawing={"kind": "facts"} | _drawing(view),
    )


def _drawing(view: FactsView) -> Json:
    """What `assets/facts.js` reads."""
    columns = [
        {
            "name": METHODS[name],
            "colour": METHOD_COLOURS[name],
            "levels": [LEVELS.index(fact.level) for fact in column.facts],
            "says": [fact.completion for fact in column.facts],
            "selects": [fact.chosen for fact in column.facts],
        }
        for name, column in view.columns.items()
    ]
    return {
        "questions": [[GROUPS[group], prompt, *answers] for group, prompt, answers in view.questions],
        "columns": columns,
        "certainty": [round(fact.probability, 3) for fact in view.columns["dense"].facts],
        "lost": view.lost,
        "gained": view.gained,
    }


def _table(view: FactsView, names: dict[str, str]) -> Table:
    """How many right answers each model says and selects, by group."""
    by_model = [fact_counts(view.questions, column.facts) for column in view.columns.values()]
    rows = [
        [
            GROUPS[group],
            str(by_model[0][group]["of"]),
            *(f"{counts[group]['says']}, {counts[group]['selects']}" for counts in by_model),
        ]
        for group in by_model[0]
    ]
    heads = [gettext("{model}: says, selects", model=name) for name in names.values()]
    return [gettext("Group"), gettext("Questions"), *heads], rows


def _name(name: str, column: FactsColumn, percent: float) -> str:
    """A model's name with its sparsity, which for a stored one may differ from the slider's."""
    if name == "dense":
        return METHODS[name]
    at = percent if column.stored_at is None else column.stored_at
    return gettext("{method}, {percent:g}%", method=METHODS[name], percent=at)
