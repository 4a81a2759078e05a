"""The Compare tab in a real browser, on a tiny model: answers, stop, the next question, the passage."""

from collections.abc import Iterator

import pytest
from browsing import CHROMIUM, PATIENCE
from tiny_page import tiny_settings

from app import build_app, launch_options
from components.state.session import Session
from components.state.settings import Settings
from intraslice.core.progress import finish

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
COLUMNS = ("dense", "intraslice", "crossmodule")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_llama_gqa, word_tokenizer) -> Iterator[Settings]:
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("browser")
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        yield tiny_settings(home, tiny_llama_gqa, word_tokenizer)._replace(bias=1.0)  # so that attention is cut too


@pytest.fixture(scope="module")
def compare_address(tiny) -> Iterator[str]:
    """A page whose link opens the Compare tab of the tiny model, which is sliced by both methods already."""
    session = Session(evaluation_tokens=256)
    session.texts = (*session.texts, tiny.text)  # a link may name what the page offers, and no other file
    assert list(session.measure(tiny, "somebody"))[-1].kind == "ready"
    finish(session.slice(tiny, "crossmodule"))  # all three answer together; made later, it would answer alone
    page = build_app(session)
    page.queue()
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    query = f"model={tiny.model}&text={tiny.text}&sequences=8&length=32&bias=1&tab=compare&prompt=w10%20w20%20w30"
    yield f"{url.rstrip('/')}/?{query}"
    page.close()


@pytest.fixture
def opened(chromium, compare_address):
    """Opens the tab when the slice is there and what follows it is shown; nothing may go wrong on it."""
    contexts, faults = [], []

    def open_page(width: int = 1440, height: int = 1000, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(compare_address, timeout=PATIENCE)
        page.wait_for_selector("#passage .isx-token", timeout=PATIENCE)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert faults == []


def wait_for(page, name: str, words: str) -> None:
    page.wait_for_function(
        "([id, words]) => document.querySelector(id).innerText.includes(words)",
        arg=[f"#{name}-answer", words],
        timeout=PATIENCE,
    )


def ask_for(page, tokens: int, prompt: str = "w10 w20 w30") -> None:
    page.fill("#sampling input[type=number] >> nth=0", str(tokens))
    page.keyboard.press("Tab")
    page.fill("#prompt textarea", prompt)
    page.click("#generate")


def test_three_columns_answer_and_say_where_they_part_and_what_they_cost(opened) -> None:
    page = opened()
    ask_for(page, 16)
    for name in COLUMNS:
        wait_for(page, name, "16 tokens, cut off there")
    assert page.locator("#answers mark").count() == 2
    page.wait_for_function("document.querySelector('#cost-protocol').innerText.includes('in turn')", timeout=PATIENCE)
    for name in COLUMNS:
        cost = page.inner_text(f"#{name}-cost")
        assert cost.count("tokens/s") == 2
        assert "Perplexity\n–" not in cost
    assert page.get_attribute("#dense-answer [aria-live=polite]", "aria-busy") == "false"


def test_the_columns_rows_are_level_and_labels_pass_under_the_sliders_bar(opened) -> None:
    page = opened(width=1100)
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
        timeout=PATIENCE,
    )


def test_stop_halts_and_a_question_sent_meanwhile_is_served_after_it(opened) -> None:
    page = opened()
    ask_for(page, 256)
    wait_for(page, "crossmodule", "so far")
    page.fill("#prompt textarea", "w40 w50")
    page.click("#generate")  # while the first is answered
    page.fill("#sampling input[type=number] >> nth=0", "8")
    page.keyboard.press("Tab")
    # The second answer soon takes the place of the stopped one, so the page itself notes when that was seen.
    page.evaluate(
        """() => {
            const column = document.querySelector('#dense-answer');
            document.querySelector('#stop').addEventListener('click', () => { window.pressed = performance.now(); });
            new MutationObserver(() => {
                if (column.innerText.includes('stopped there')) window.halted ??= performance.now();
            }).observe(column, { childList: true, subtree: true, characterData: true });
        }"""
    )
    page.click("#stop")
    page.wait_for_function("window.halted", timeout=PATIENCE)
    halted = page.evaluate("(window.halted - window.pressed) / 1000")
    for name in COLUMNS:
        wait_for(page, name, "8 tokens, cut off there")
    page.wait_for_function("document.querySelector('#next-tokens').innerText.includes('w40 w50')", timeout=PATIENCE)
    assert 0 < halted < 2  # half a second on a machine that is not busy with other tests


def test_pointing_at_a_token_tells_its_numbers_and_arrows_move_on(opened) -> None:
    page = opened()
    tokens = page.locator("#passage .isx-token")
    tokens.nth(2).hover()
    assert tokens.nth(2).get_attribute("data-said") in page.inner_text("#passage .isx-detail")
    tokens.first.focus()
    page.keyboard.press("ArrowRight")
    assert tokens.nth(1).get_attribute("data-said") in page.inner_text("#passage .isx-detail")
    assert tokens.nth(1).get_attribute("tabindex") == "0"
    assert tokens.first.get_attribute("tabindex") == "-1"


def test_a_passage_of_ones_own_is_coloured_and_a_bad_one_refused(opened) -> None:
    page = opened()
    page.fill("#passage-text textarea", "w7 w8 w9 w10")
    page.click("#score")
    page.wait_for_function("document.querySelectorAll('#passage .isx-token').length === 3", timeout=PATIENCE)
    page.fill("#passage-text textarea", "w7")
    page.click("#score")
    page.wait_for_selector("#passage [role=alert]", timeout=PATIENCE)
    assert "wanted 2 to" in page.inner_text("#passage")


def test_an_empty_prompt_is_refused_and_the_page_goes_on(opened) -> None:
    page = opened()
    ask_for(page, 8, "  ")
    page.wait_for_selector("#status [role=alert]", timeout=PATIENCE)
    assert "prompt is empty" in page.inner_text("#status")
    ask_for(page, 8)
    wait_for(page, "dense", "8 tokens")


def test_a_small_screen_stacks_the_columns_and_scrolls_only_down(opened) -> None:
    page = opened(width=390, height=844)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [page.locator(f"#{name}-answer").bounding_box() for name in COLUMNS]
    assert boxes[0]["y"] < boxes[1]["y"] < boxes[2]["y"]
    assert all(box["width"] > 300 for box in boxes)
