"""The page in German in a real browser: nothing English is left on it, numbers have commas, and the slider moves."""

import re

from browsing import until

from components.i18n.language import LANGUAGES
from components.tabs import TABS

# Words that no German text has, none of them a part of another or a name. What a visitor may type, examples of that,
# code and questions stay as they are.
ENGLISH = re.compile(
    r"(?<![\w%-])(?:the|of|and|is|are|that|which|with|from|how|what|why|this|each|every|layers?|removed|measured|click"
    r"|heads?|axes|sliced|dense|weights|keeps|held-out|tokens a|perplexity|ratios?|bars|share|save|table|cancel|undo)"
    r"(?![\w-])"
)
SEEN = """() => {
    const questions = "#facts-chart tbody, .isx-detail, .isx-changes li, [data-at]";
    const kept = `pre, textarea, input, #examples, #memory, code, math, .isx-languages, script, style, ${questions}`;
    const page = document.querySelector(".gradio-container").cloneNode(true);
    page.querySelectorAll(kept).forEach((one) => one.remove());
    const labels = [...page.querySelectorAll("[aria-label], [title], [placeholder]")];
    const names = labels.flatMap((one) => ["aria-label", "title", "placeholder"].map((name) => one.getAttribute(name)));
    const charts = [...document.querySelectorAll(".isx-chart")].map((one) => one.isxChart).filter(Boolean);
    const words = charts.flatMap(({ title, note, data, layout, table, drawing }) => [
        title, note, ...table.columns, ...(drawing?.kind === "facts" ? [] : table.rows.flat()),
        ...data.flatMap((one) => [one.name, one.hovertemplate, ...(one.customdata ?? []).flat(2)]),
        ...Object.values(layout).map((one) => one?.title?.text), ...(layout.annotations ?? []).map((one) => one.text),
    ]);
    return [page.textContent, ...names, ...words].filter((one) => typeof one === "string").join("\\n");
}"""
SOURCE = re.compile(r"\(Wikipedia contributors[^)]*\)")  # authors and licence of a text, as they are


def left_over(text: str) -> list[str]:
    text = SOURCE.sub("", text)
    return [text[max(0, one.start() - 40) : one.end() + 40] for one in ENGLISH.finditer(text)]


def test_german_has_no_english_left_axe_finds_nothing_and_the_switch_keeps_the_settings(visit, axe) -> None:
    opened = visit("/?sparsity=25&__theme=dark", language="de-DE")  # dark has less contrast
    page = opened.page
    opened.says("#headline", "Perplexität")
    assert page.evaluate("[document.documentElement.lang, navigator.language]") == ["de", "de"]
    assert page.inner_text("#calibrate") == "Laden und kalibrieren"
    assert "API" in page.inner_text("footer")
    assert "Settings" not in page.inner_text("footer")
    opened.says("#removed", "25,0")
    assert re.search(r"25,0\s%", page.inner_text("#removed"))
    assert re.search(r"134,5 Mio\. → [\d,]+ Mio\. Parameter", page.inner_text("#headline"))
    assert not re.search(r"\d\.\d+[^\d.]", page.inner_text("#readout"))
    opened.prepare_axe(axe)
    for tab in TABS:
        opened.open_tab(tab)
        assert left_over(page.evaluate(SEEN)) == [], tab
        assert opened.found_by_axe("body" if tab == "ratios" else "#tabs") == [], tab
    opened.open_tab("estimator")
    ticks = page.evaluate("[...document.querySelectorAll('#estimator-check-chart .ytick')].map(one => one.textContent)")
    opened.open_tab("ratios")
    assert any("," in tick for tick in ticks)
    assert not any("." in tick for tick in ticks)

    opened.drag(33)
    opened.says("#removed", "33,0")
    opened.says("#headline", "33\u00a0% der Parameter")
    opened.addressed("sparsity=33")
    assert "lang=" not in page.url
    page.click("#tour")
    assert page.inner_text(".isx-tour").startswith("Ein Schieberegler")
    page.keyboard.press("Escape")
    opened.slide(33)  # the tour has begun to move it
    opened.addressed("sparsity=33")

    assert page.locator(".isx-languages a").all_inner_texts() == [one.name for one in LANGUAGES.values()]
    assert page.inner_text(".isx-languages [aria-current]") == "Deutsch"
    page.click(".isx-languages a[lang=en]")
    page.wait_for_selector("html[lang=en]", state="attached")
    opened.says("#removed", "33.0")
    opened.forgive("AbortError", "errored out", "Failed to fetch")  # of what the page waited for when it was left
    assert {"lang=en", "sparsity=33"} <= set(page.url.partition("?")[2].split("&"))
    assert page.evaluate("navigator.language") == "en"
    assert page.inner_text("#calibrate") == "Load and calibrate"
    assert "Settings" in page.inner_text("footer")
    assert page.inner_text(".isx-languages [aria-current]") == "English"


def test_long_german_words_fit_on_a_small_screen(visit) -> None:
    page = visit("/?tab=ratios#settling-chart", width=390, height=844, language="de-DE").page  # as it was called once
    page.wait_for_selector("#convergence-chart .main-svg")
    until(page, "document.querySelectorAll('.infolayer text[class$=title]').length > 4")
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".infolayer :is([class$=title], .annotation-text)")].filter(words => {
            const [own, plot] = [words, words.closest(".isx-plot")].map((one) => one.getBoundingClientRect());
            const isOut = own.left < plot.left - 1 || own.right > plot.right + 1 || own.top < plot.top - 1;
            return own.width && (isOut || own.bottom > plot.bottom + 1);
        }).map((words) => words.textContent)"""
    )
    assert cut == []
    assert page.locator("#slider-bar").bounding_box()["height"] < 120


def test_a_link_to_a_model_that_the_page_does_not_load_says_so_until_another_is_chosen(visit) -> None:
    opened = visit(f"/?lang=de&sparsity=35&model={'x' * 1001}")  # on a desktop only names that are too long
    opened.says("#notice", "Diese Seite lädt das Modell des Links", "pip install -r requirements.txt && python app.py")
    assert opened.page.input_value("#sparsity input[type=number]") == "35"
    opened.page.click("#model input")
    opened.page.locator("#model [role=option]").last.click()
    opened.page.wait_for_selector("#notice", state="hidden")
