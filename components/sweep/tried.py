"""The settings that a user has measured: a table on the Sweep tab, which the browser fills (`assets/tried/`)."""

import time
from typing import Any

import gradio as gr

from ..frame import link
from ..i18n.language import LazyString, gettext
from ..state.settings import CONTROLS
from ..ui.scripts import on_load

FIELDS = [name for name, control in CONTROLS.items() if control.in_link]  # what a click sets


def build() -> gr.HTML:
    """The section. Its event `select` has a setting as text in `pick`."""
    template, on = LazyString(_template), on_load("tried/panel")
    return gr.HTML("", html_template=template, js_on_load=on, elem_id="tried", apply_default_css=False)


def values_of(text: Any) -> dict[str, Any]:
    """The controls' values for a setting as `pinned_text.write` writes it. Raises UserError for an invalid one."""
    setting = link.setting_of(text)
    return {} if setting is None else {name: getattr(setting, name) for name in FIELDS} | {"refresh": str(time.time())}


def _template() -> str:
    lead = gettext(
        "What did I try? Every setting whose perplexity you have seen measured on this page, the newest first. The "
        "list is stored in this browser alone. A click on a name goes back to that setting."
    )
    front = gettext("Best front: no other setting here has both fewer parameters and a lower perplexity (or KL).")
    names = [gettext("Setting"), gettext("Removed"), gettext("Parameters, millions"), gettext("Perplexity")]
    names += [gettext("KL, nats per token"), gettext("Best front"), gettext("Measured")]
    numbers = range(1, 5)
    head = "".join(
        f'<th scope="col"{" class=isx-number" if column in numbers else ""}>{name}</th>'
        for column, name in enumerate(names)
    )
    empty = gettext("Nothing is measured yet: release the slider, and wait for the perplexity.")
    return f"""
<section><h3>{gettext("Measured settings")}</h3>
  <p class="isx-lead">{lead}</p><p class="isx-quiet">{front}</p>
  <p class="isx-steps"><button type="button" data-save="csv">{gettext("Save CSV")}</button>
    <button type="button" data-save="json">{gettext("Save JSON")}</button>
    <label>{gettext("Load a saved file")} <input type="file" accept=".csv,.json"></label>
    <button type="button" data-clear>{gettext("Remove all")}</button><span role="status"></span></p>
  <p class="isx-none isx-quiet">{empty}</p>
  <div class="isx-scroll" tabindex="0" role="region" aria-label="{gettext("Measured settings")}">
    <table><thead><tr>{head}</tr></thead><tbody></tbody></table></div>
</section>"""
