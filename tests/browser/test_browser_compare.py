"""The Compare tab in a real browser, on a tiny model: answers, stop, the next question, the passage."""

import pytest
from browsing import Opened

from components.compare.answers import InterleavedDecoder

COLUMNS = ("dense", "intraslice", "crossmodule")


@pytest.fixture(scope="module")
def compare(visit_once, tiny_query) -> Opened:
    """The tab when the tiny model, which is sliced by both methods already, has scored the passage."""
    opened = visit_once(f"{tiny_query}&bias=1&tab=compare&prompt=w10%20w20%20w30", width=1100, height=1000)
    opened.page.wait_for_selector("#passage .isx-token")
    return opened


def ask_for(opened: Opened, tokens: int, prompt: str = "w10 w20 w30") -> None:
    page = opened.page
    page.fill("#sampling input[type=number] >> nth=0", str(tokens))
    page.keyboard.press("Tab")
    page.fill("#prompt textarea", prompt)
    page.click("#generate")


def answered(opened: Opened, words: str, *columns: str) -> None:
    for name in columns:
        opened.says(f"#{name}-answer", words)


def test_three_columns_answer_and_say_where_they_part_and_what_they_cost(compare) -> None:
    opened, page = compare, compare.page
    ask_for(opened, 16)
    answered(opened, "16 tokens, truncated", *COLUMNS)
    assert page.locator("#answers mark").count() == 2
    opened.says("#cost-protocol", "in turn")
    for name in COLUMNS:
        cost = page.inner_text(f"#{name}-cost")
        assert cost.count("tokens/s") == 2
        assert "Perplexity\n–" not in cost
    assert page.get_attribute("#dense-answer [aria-live=polite]", "aria-busy") == "false"

    # The columns' rows are level, and labels pass under the slider's bar.
    tops = "[...document.querySelectorAll(`#${name}-cost dt`)].slice(0, 6).map(e => e.getBoundingClientRect().top)"
    dense, *others = page.evaluate(f"names => names.map(name => {tops})", list(COLUMNS))  # of one moment
    assert len(dense) == 6
    assert others == [dense, dense]
    assert page.evaluate("getComputedStyle(document.querySelector('#answers')).gridTemplateColumns").count("px") == 3
    page.evaluate("scrollTo(0, document.querySelector('#sampling label').getBoundingClientRect().top + scrollY - 20)")
    label = page.locator("#sampling label span").first.bounding_box()
    page.wait_for_function(
        "([x, y]) => document.elementFromPoint(x, y).closest('#slider-bar')",
        arg=[label["x"] + 5, label["y"] + label["height"] / 2],
    )


def test_stop_halts_and_a_question_sent_meanwhile_is_served_after_it(compare, monkeypatch) -> None:
    opened, page = compare, compare.page
    step = InterleavedDecoder.step

    def slow_step(decoder: InterleavedDecoder) -> None:
        decoder._job.sleep(0.1)  # so that the first answer does not end before it is stopped
        step(decoder)

    monkeypatch.setattr(InterleavedDecoder, "step", slow_step)
    ask_for(opened, 256)
    answered(opened, "so far", "crossmodule")
    page.fill("#prompt textarea", "w40 w50")
    page.click("#generate")  # while the first is answered
    page.fill("#sampling input[type=number] >> nth=0", "8")
    page.keyboard.press("Tab")
    # The second answer soon takes the place of the stopped one, so the page itself notes that it was seen.
    page.evaluate(
        """() => {
            const column = document.querySelector('#dense-answer');
            new MutationObserver(() => { window.halted ||= column.innerText.includes(', stopped'); })
                .observe(column, { childList: true, subtree: true, characterData: true });
        }"""
    )
    page.click("#stop")
    page.wait_for_function("window.halted")
    monkeypatch.undo()
    answered(opened, "8 tokens, truncated", *COLUMNS)
    opened.says("#next-tokens", "w40 w50")


def test_a_passage_is_read_token_by_token_and_bad_input_is_refused(compare) -> None:
    opened, page = compare, compare.page
    tokens, detail = page.locator("#passage .isx-token"), "#passage .isx-detail"
    tokens.nth(2).hover()
    assert tokens.nth(2).get_attribute("data-said") in page.inner_text(detail)
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    assert tokens.nth(1).get_attribute("data-said") in page.inner_text(detail)
    assert tokens.nth(1).get_attribute("tabindex") == "0"
    assert tokens.first.get_attribute("tabindex") == "-1"

    page.fill("#passage-text textarea", "w7 w8 w9 w10")
    page.click("#score")
    page.wait_for_function("document.querySelectorAll('#passage .isx-token').length === 3")
    page.fill("#passage-text textarea", "w7")
    opened.call("#score")
    page.wait_for_selector("#passage [role=alert]")
    assert "must have 2 to" in page.inner_text("#passage")
    opened.says("#status", "must have 2 to")

    ask_for(opened, 8, "  ")
    opened.says("#status", "prompt is empty")
    ask_for(opened, 8)
    answered(opened, "8 tokens", "dense")
