"""The page in German in a real browser: nothing English is left on it, numbers have commas, and the slider moves."""

import re

import pytest
from browsing import CHROMIUM, PATIENCE

from components.i18n.language import LANGUAGES
from components.tabs import TABS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
# Words that no German text has. What a visitor may type, examples of that and code stay as they are.
ENGLISH = (
    *("the", "of", "and", "is", "are", "that", "which", "with", "from", "how", "what", "why", "this", "each", "every"),
    *(
        "layer",
        "layers",
        "removed",
        "measured",
        "click",
        "head",
        "heads",
        "axes",
        "sliced",
        "dense",
        "weights",
        "keeps",
    ),
    *("held-out", "tokens a", "perplexity", "ratio", "ratios", "bars", "share", "save", "table", "cancel", "undo"),
)
SEEN = """() => {
    const kept = "pre, textarea, input, #examples, #memory, code, math, .isx-languages, script, style";
    const page = document.querySelector(".gradio-container").cloneNode(true);
    page.querySelectorAll(kept).forEach((one) => one.remove());
    const labels = [...page.querySelectorAll("[aria-label], [title], [placeholder]")];
    const names = labels.flatMap((one) => ["aria-label", "title", "placeholder"].map((name) => one.getAttribute(name)));
    const charts = [...document.querySelectorAll(".isx-chart")].map((one) => one.isxChart).filter(Boolean);
    const words = charts.flatMap(({ title, note, data, layout, table }) => [
        title, note, ...table.columns, ...table.rows.flat(),
        ...data.flatMap((one) => [one.name, one.hovertemplate, ...(one.customdata ?? []).flat(2)]),
        ...Object.values(layout).map((one) => one?.title?.text), ...(layout.annotations ?? []).map((one) => one.text),
    ]);
    return [page.textContent, ...names, ...words].filter((one) => typeof one === "string").join("\\n");
}"""


def left_over(text: str) -> list[str]:
    found = re.compile(rf"(?<![\w%-])(?:{'|'.join(ENGLISH)})(?![\w-])")  # no part of a German word, and no name
    return [text[max(0, one.start() - 40) : one.end() + 40] for one in found.finditer(text)]


def test_no_english_is_left_on_the_german_page(visit) -> None:
    page = visit("/?lang=de").page
    page.wait_for_function("document.querySelector('#headline').textContent.includes('Perplexität')", timeout=PATIENCE)
    assert page.evaluate("[document.documentElement.lang, navigator.language]") == ["de", "de"]
    for tab in TABS:
        label = page.evaluate("tab => window.isxTabs[tab]", tab)
        page.locator("#tabs button[role=tab]:visible", has_text=label).first.click(timeout=PATIENCE)
        page.wait_for_selector(f"#tabs [aria-selected=true]:text-is('{label}')", timeout=PATIENCE)
        page.wait_for_timeout(500)
        assert left_over(page.evaluate(SEEN)) == [], tab
    assert re.search(r"30,0\s%", page.inner_text("#removed"))
    assert re.search(r"134,5 Mio\. → [\d,]+ Mio\. Parameter", page.inner_text("#headline"))
    assert not re.search(r"\d\.\d+[^\d.]", page.inner_text("#readout"))
    ticks = page.evaluate("[...document.querySelectorAll('#verdict-chart .ytick')].map(one => one.textContent)")
    assert any("," in tick for tick in ticks)
    assert not any("." in tick for tick in ticks)


def test_the_slider_moves_and_the_address_keeps_the_language(visit) -> None:
    opened = visit("/?lang=de")
    opened.drag(20)
    page = opened.page
    page.wait_for_function("document.querySelector('#removed').textContent.includes('20,0')", timeout=PATIENCE)
    page.wait_for_function("location.search.includes('sparsity=20')", timeout=PATIENCE)
    assert "lang=de" in page.url
    assert "20\u00a0% der Gewichte" in page.inner_text("#headline")
    page.click("#tour")
    assert page.inner_text(".isx-tour").startswith("Ein Schieberegler")
    for _ in range(3):
        page.click(".isx-tour [data-go=on]")
    page.wait_for_selector("#tabs [aria-selected=true]:text-is('Spektren')", timeout=PATIENCE)


def test_the_switch_keeps_what_the_page_is_set_to(visit) -> None:
    opened = visit("/?sparsity=20")
    page = opened.page
    assert page.locator(".isx-languages a").all_inner_texts() == [one.name for one in LANGUAGES.values()]
    assert page.inner_text(".isx-languages [aria-current]") == "English"
    page.click(".isx-languages a[lang=de]")
    page.wait_for_function("document.documentElement.lang === 'de'", timeout=PATIENCE)
    page.wait_for_function("document.querySelector('#removed')?.textContent.includes('20,0')", timeout=PATIENCE)
    opened.faults[:] = [fault for fault in opened.faults if "AbortError" not in fault and "errored out" not in fault]
    assert {"lang=de", "sparsity=20"} <= set(page.url.partition("?")[2].split("&"))
    assert page.inner_text(".isx-languages [aria-current]") == "Deutsch"


def test_the_browser_says_which_language_where_the_address_does_not(visit) -> None:
    german = visit("/", locale="de-DE").page
    english = visit("/").page
    assert german.inner_text("#calibrate") == "Laden und kalibrieren"
    assert "API" in german.inner_text("footer")
    assert "Settings" not in german.inner_text("footer")
    assert english.inner_text("#calibrate") == "Load and calibrate"
    assert "Settings" in english.inner_text("footer")
    assert english.evaluate("navigator.language") == "en-US"
