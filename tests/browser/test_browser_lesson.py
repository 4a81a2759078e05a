"""The lesson in a real browser, on a tiny model: by keyboard from first to last, kept, linked, accessible."""

from collections.abc import Iterator

import pytest
from browsing import CHROMIUM, PATIENCE
from test_browser_ratios import NOT_OURS, axe  # noqa: F401 (a fixture)
from tiny_page import tiny_settings

from app import build_app, launch_options
from components.lesson.steps import texts
from components.state.session import Session
from intraslice.core.progress import finish

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]
STEPS = texts()["steps"]
TITLE = "([number, title]) => document.querySelector('#isx-lesson-title')?.textContent === `${number}. ${title}`"


@pytest.fixture(scope="module")
def lesson_address(tmp_path_factory, tiny_llama_gqa, word_tokenizer) -> Iterator[str]:
    """The page of a tiny model, which is sliced by both methods already."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("lesson")
        patch.setenv("INTRASLICE_CACHE", str(home / "cache"))
        tiny = tiny_settings(home, tiny_llama_gqa, word_tokenizer)
        session = Session(evaluation_tokens=256)
        session.texts = (*session.texts, tiny.text)  # a link may name what the page offers, and no other file
        assert list(session.measure(tiny, "somebody"))[-1].kind == "ready"
        finish(session.slice(tiny, "crossmodule"))
        page = build_app(session)
        page.queue()
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **launch_options())
        yield f"{url.rstrip('/')}/?model={tiny.model}&text={tiny.text}&sequences=8&length=32&prompt=w10%20w20"
        page.close()


@pytest.fixture
def opened(chromium, lesson_address):
    """Opens the page with a link's rest; nothing may go wrong on it."""
    contexts, faults = [], []

    def open_page(rest: str = "", width: int = 1440, height: int = 900, **options):
        contexts.append(chromium.new_context(viewport={"width": width, "height": height}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: message.type == "error" and faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(lesson_address + rest, timeout=PATIENCE)
        page.wait_for_function("/→ [0-9.,]+ /.test(document.querySelector('#headline')?.innerText)", timeout=PATIENCE)
        return page

    yield open_page
    for context in contexts:
        context.close()
    left = ("AbortError", "errored out")  # what gradio was waiting for when a page was left
    assert [fault for fault in faults if not any(word in fault for word in left)] == []


def predict(page, kind: str) -> None:
    """By keyboard, from the step's title on."""
    control = page.locator(".isx-lesson-control")
    control.locator("button, input").first.wait_for(timeout=PATIENCE)
    if kind in ("choice", "answers"):
        control.locator("button").first.focus()
        page.keyboard.press("Enter")
        assert control.locator("[aria-pressed=true]").count() == 1
    elif kind == "number":
        control.locator("input").focus()
        page.keyboard.type("35")
        page.keyboard.press("ArrowUp")
        assert control.locator("input").input_value() == "36"
    else:
        control.locator("input").first.focus()
        page.keyboard.press("ArrowRight")  # moves the slider, and not the lesson


def writing(page, name: str) -> float:
    """Tokens a second of a model's answers, as the page has it."""
    row = page.locator(f"#{name}-cost dl > div", has_text="Writing an answer")
    return float(row.locator("dd").inner_text().split()[0])


def test_the_lesson_runs_by_keyboard_from_the_first_step_to_the_last(opened) -> None:
    page = opened()
    page.focus("#lesson")
    page.keyboard.press("Enter")
    for number, step in enumerate(STEPS, start=1):
        page.wait_for_function(TITLE, arg=[number, step["title"]], timeout=PATIENCE)
        assert page.evaluate("document.activeElement.id") == "isx-lesson-title"
        page.wait_for_function(f"location.search.includes('lesson={number}')", timeout=PATIENCE)
        label = step["tab"].title()
        page.wait_for_selector(f"#tabs button[role=tab][aria-selected=true]:text-is('{label}')", timeout=PATIENCE)
        if step["veil"]:
            page.wait_for_selector("[data-isx-veil]", state="attached", timeout=PATIENCE)
        predict(page, step["control"]["kind"])
        page.focus("#isx-lesson-title")
        page.keyboard.press("PageDown")
        assert page.locator("[data-isx-veil]").count() == 0
        if step["id"] == "hurts":  # which takes minutes, and waits for its button
            assert "Measure each module alone" in page.inner_text(".isx-lesson-answer")
        else:
            page.wait_for_function(
                "!/[{}…]/.test(document.querySelector('.isx-lesson-answer .isx-found')?.textContent ?? '{')",
                timeout=PATIENCE,
            )
            assert page.locator(".isx-lesson-answer :is(.isx-close, .isx-far)").count() == 1
            found = page.inner_text(".isx-lesson-answer .isx-found")
            assert not any(word in found for word in ("NaN", "Infinity", "undefined")), found
        if step["id"] == "speed":
            sliced, dense = (writing(page, name) for name in ("intraslice", "dense"))
            assert (
                f"writes {sliced / dense:.2f} times as fast as the whole model ({sliced:g} against {dense:g} " in found
            )
        page.keyboard.press("ArrowRight")
    assert page.locator(".isx-lesson").count() == 0
    assert page.evaluate("document.activeElement.id") == "lesson"
    assert "lesson=" not in page.url


def test_the_answer_is_what_the_page_says_and_follows_it(opened) -> None:
    page = opened("&lesson=1")
    page.wait_for_selector(".isx-lesson [aria-current]", timeout=PATIENCE)
    page.locator(".isx-lesson [data-go=on]").click()
    page.wait_for_selector(".isx-lesson .isx-found", timeout=PATIENCE)
    dense, sliced = page.locator("#readout tbody tr").nth(5).locator("td").all_inner_texts()
    assert f"from {dense} to {sliced}: {float(sliced) / float(dense):.2f} times" in page.inner_text(".isx-found")
    assert "No prediction" in page.inner_text(".isx-lesson-answer")


@pytest.mark.slow
def test_in_german_the_first_answers_are_found_and_predictions_judged(opened) -> None:
    page = opened("&lang=de&lesson=1")
    page.wait_for_selector(".isx-lesson-control input", timeout=PATIENCE)
    page.wait_for_selector("#readout [data-sliced]", timeout=PATIENCE, state="attached")
    dense, sliced = (page.get_attribute("#readout [data-dense]", f"data-{name}") for name in ("dense", "sliced"))
    assert page.locator("#readout tbody tr").nth(5).locator("td").first.inner_text() == dense.replace(".", ",")
    times = float(sliced) / float(dense)
    page.fill(".isx-lesson-control input", f"{times:.1f}")
    assert page.inner_text(".isx-lesson-control output").startswith(f"{times:.1f}".replace(".", ","))
    page.locator(".isx-lesson [data-go=on]").click()
    page.wait_for_selector(".isx-lesson .isx-found", timeout=PATIENCE)
    found = page.inner_text(".isx-found")
    assert f"auf das {times:.2f}-Fache".replace(".", ",") in found
    assert page.inner_text(".isx-close").startswith("Ihre Vorhersage: ")
    for number in (2, 4):
        page.click(f".isx-lesson nav a >> nth={number - 1}")
        page.locator(".isx-lesson [data-go=on]").click()
        page.wait_for_selector(".isx-lesson .isx-found", timeout=PATIENCE)
        assert not set("{}") & set(page.inner_text(".isx-found"))


def test_a_steps_link_opens_its_state_and_a_prediction_is_kept(opened) -> None:
    page = opened("&lesson=5")
    page.wait_for_function(TITLE, arg=[5, STEPS[4]["title"]], timeout=PATIENCE)
    page.wait_for_selector("#estimator input[value=uniform]:checked", timeout=PATIENCE)  # the words come before it
    page.locator(".isx-choices button").nth(2).click()
    page.focus("#isx-lesson-title")
    page.keyboard.press("n")
    assert page.is_visible("#isx-lesson-notes")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function(TITLE, arg=[4, STEPS[3]["title"]], timeout=PATIENCE)
    page.keyboard.press("Escape")
    assert page.locator(".isx-lesson, [data-isx-veil]").count() == 0
    page.reload()
    page.wait_for_selector("#lesson", timeout=PATIENCE)
    page.wait_for_function("/→ [0-9.,]+ /.test(document.querySelector('#headline')?.innerText)", timeout=PATIENCE)
    page.click("#lesson")
    page.wait_for_function(TITLE, arg=[4, STEPS[3]["title"]], timeout=PATIENCE)  # where it was left
    page.click(".isx-lesson nav a >> nth=4")
    page.wait_for_selector(".isx-choices [aria-pressed=true]", timeout=PATIENCE)
    assert page.locator(".isx-choices button").nth(2).get_attribute("aria-pressed") == "true"
    page.locator("#prompt textarea, #passage-text textarea, #sparsity input[type=number]").first.focus()
    page.keyboard.press("PageDown")  # while typing, it is not the lesson's
    assert page.inner_text("#isx-lesson-title").startswith("5.")


def test_bars_are_drawn_in_one_stroke_and_a_small_screen_keeps_the_chart(opened) -> None:
    page = opened("&lesson=2", width=390, height=844)
    page.wait_for_selector(".isx-column input", timeout=PATIENCE, state="attached")
    page.locator(".isx-bars-drawn").scroll_into_view_if_needed()
    first, last = (page.locator(".isx-column input").nth(index).bounding_box() for index in (0, -1))
    page.mouse.move(first["x"] + 5, first["y"] + 0.25 * first["height"])
    page.mouse.down()
    page.mouse.move(last["x"] + last["width"] - 5, last["y"] + 0.25 * last["height"], steps=12)
    page.mouse.up()
    values = page.locator(".isx-column input").evaluate_all("all => all.map(one => Number(one.value))")
    assert all(abs(value - 60) <= 3 for value in values)
    sheet = page.locator(".isx-lesson").bounding_box()
    assert sheet["y"] > 844 * 0.5
    assert sheet["y"] + sheet["height"] <= 844
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])  # dark has less contrast
def test_axe_finds_nothing_in_the_panel(opened, axe, theme) -> None:  # noqa: F811
    page = opened(f"&lesson=2&__theme={theme}")
    page.evaluate(axe)
    found = []
    for number in (1, 2, 5, 6):
        page.click(f".isx-lesson nav a >> nth={number - 1}")
        page.locator(".isx-lesson-control :is(input, button)").first.wait_for(timeout=PATIENCE, state="attached")
        for shown in (False, True):
            if shown and page.inner_text(".isx-lesson [data-go=on]") == "Show the answer":
                page.click(".isx-lesson [data-go=on]")
                page.wait_for_timeout(400)
            results = page.evaluate("axe.run('.isx-lesson', { resultTypes: ['violations'] })")
            faults = [(one["id"], one["nodes"][0]["failureSummary"][:300]) for one in results["violations"]]
            found += [f"{number}: {name} {summary}" for name, summary in faults]
    assert found == []
    whole = page.evaluate(
        "exclude => axe.run({ include: ['body'], exclude }, { resultTypes: ['violations'] })", NOT_OURS
    )
    assert [one["id"] for one in whole["violations"] if one["impact"] in ("serious", "critical")] == []
