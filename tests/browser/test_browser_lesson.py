"""The lesson in a real browser, on a tiny model: by keyboard from first to last, kept, linked, accessible."""

import json
import re

import pytest
from browsing import Opened

from components.i18n.language import ENGLISH, long_text

STEPS = json.loads(long_text("lesson.json", ENGLISH))["steps"]
TITLE = "([number, title]) => document.querySelector('#isx-lesson-title').textContent === `${number}. ${title}`"
MEASURED = """document.querySelector('#removed dd').dataset.percent === '30.0'
    && /→ [0-9.,]+ /.test(document.querySelector('#headline').innerText)"""


@pytest.fixture
def lesson(visit, tiny_query):
    """Opens the page of the tiny model, which is sliced by both methods already, with a link's rest."""

    def open_page(rest: str = "", **size: int) -> Opened:
        opened = visit(f"{tiny_query}&prompt=w10%20w20{rest}", **size)
        opened.hurry(300, 100)  # between the lesson's looks at the page
        opened.until(MEASURED)
        return opened

    return open_page


def predict(page, kind: str) -> None:
    """By keyboard, from the step's title on."""
    control = page.locator(".isx-lesson-control")
    control.locator("button, input").first.wait_for()
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
    row = page.locator(f"#{name}-cost dl > div", has_text="Decode (writing an answer)")
    return float(row.locator("dd").inner_text().split()[0])


def test_the_lesson_runs_by_keyboard_from_the_first_step_to_the_last_and_axe_finds_nothing(lesson, axe) -> None:
    opened = lesson("&__theme=dark")  # which has less contrast
    page = opened.page
    page.evaluate(axe)
    page.focus("#lesson")
    page.keyboard.press("Enter")
    for number, step in enumerate(STEPS, start=1):
        opened.until(TITLE, arg=[number, step["title"]])
        assert page.evaluate("document.activeElement.id") == "isx-lesson-title"
        opened.addressed(f"lesson={number}")
        label = step["tab"].title()
        page.wait_for_selector(f"#tabs button[role=tab][aria-selected=true]:text-is('{label}')")
        if step["veil"]:
            page.wait_for_selector("[data-isx-veil]", state="attached")
        predict(page, step["control"]["kind"])
        page.focus("#isx-lesson-title")
        page.keyboard.press("PageDown")
        assert page.locator("[data-isx-veil]").count() == 0
        if step["id"] == "hurts":  # which takes minutes, and waits for its button
            assert "Measure each module alone" in page.inner_text(".isx-lesson-answer")
        else:
            opened.until("!/[{}…]/.test(document.querySelector('.isx-lesson-answer .isx-found').textContent)")
            assert page.locator(".isx-lesson-answer :is(.isx-close, .isx-far)").count() == 1
            found = page.inner_text(".isx-lesson-answer .isx-found")
            assert not any(word in found for word in ("NaN", "Infinity", "undefined")), found
        if number in (1, 2, 5, 6):  # a control of each kind
            assert opened.found_by_axe(".isx-lesson", minor=True) == [], number
        if number == 1:
            dense, sliced = page.locator("#readout tbody tr").nth(5).locator("td").all_inner_texts()
            # A ratio halfway between two roundings is rounded up by the page, to the even digit here.
            shown = re.search(f"from {dense} to {sliced}: ([0-9.]+) times", found)
            assert float(shown[1]) == pytest.approx(float(sliced) / float(dense), abs=0.00501)
        if step["id"] == "speed":
            sliced, dense = (writing(page, name) for name in ("intraslice", "dense"))
            shown = re.search(rf"writes ([0-9.]+) times .* \({sliced:g} against {dense:g} ", found)
            assert float(shown[1]) == pytest.approx(sliced / dense, abs=0.00501)
        page.keyboard.press("ArrowRight")
    assert page.locator(".isx-lesson").count() == 0
    assert page.evaluate("document.activeElement.id") == "lesson"
    assert "lesson=" not in page.url


@pytest.mark.slow
def test_in_german_the_first_answers_are_found_and_predictions_judged(lesson) -> None:
    page = lesson("&lang=de&lesson=1").page
    page.wait_for_selector(".isx-lesson-control input")
    page.wait_for_selector("#readout [data-sliced]", state="attached")
    dense, sliced = (page.get_attribute("#readout [data-dense]", f"data-{name}") for name in ("dense", "sliced"))
    assert page.locator("#readout tbody tr").nth(5).locator("td").first.inner_text() == dense.replace(".", ",")
    times = float(sliced) / float(dense)
    page.fill(".isx-lesson-control input", f"{times:.1f}")
    assert page.inner_text(".isx-lesson-control output").startswith(f"{times:.1f}".replace(".", ","))
    page.locator(".isx-lesson [data-go=on]").click()
    page.wait_for_selector(".isx-lesson .isx-found")
    found = page.inner_text(".isx-found")
    assert f"auf das {times:.2f}-Fache".replace(".", ",") in found
    assert ".." not in found
    assert page.inner_text(".isx-close").startswith("Ihre Vorhersage: ")
    for number in (2, 4):
        page.click(f".isx-lesson nav a >> nth={number - 1}")
        page.locator(".isx-lesson [data-go=on]").click()
        page.wait_for_selector(".isx-lesson .isx-found")
        assert not set("{}") & set(page.inner_text(".isx-found"))


def test_a_steps_link_opens_its_state_and_a_prediction_is_kept(lesson) -> None:
    opened = lesson("&lesson=5")
    page = opened.page
    opened.until(TITLE, arg=[5, STEPS[4]["title"]])
    page.wait_for_selector("#estimator input[value=uniform]:checked")  # the words come before it
    page.locator(".isx-choices button").nth(2).click()
    page.focus("#isx-lesson-title")
    page.keyboard.press("n")
    assert page.is_visible("#isx-lesson-notes")
    page.keyboard.press("ArrowLeft")
    opened.until(TITLE, arg=[4, STEPS[3]["title"]])
    page.keyboard.press("Escape")
    assert page.locator(".isx-lesson, [data-isx-veil]").count() == 0
    opened.leave_for(page.url)
    page.wait_for_selector("#lesson")
    opened.until(MEASURED)
    page.click("#lesson")
    opened.until(TITLE, arg=[4, STEPS[3]["title"]])  # where it was left
    page.click(".isx-lesson nav a >> nth=4")
    page.wait_for_selector(".isx-choices [aria-pressed=true]")
    assert page.locator(".isx-choices button").nth(2).get_attribute("aria-pressed") == "true"
    page.locator("#prompt textarea, #passage-text textarea, #sparsity input[type=number]").first.focus()
    page.keyboard.press("PageDown")  # while typing, it is not the lesson's
    assert page.inner_text("#isx-lesson-title").startswith("5.")


HIDDEN = """() => {
    const body = document.querySelector('.isx-lesson-body').getBoundingClientRect();
    const boxes = [...document.querySelectorAll('.isx-lesson-ask > *')].map((one) => one.getBoundingClientRect());
    return boxes.filter(({ top, bottom, height }) => !height || top < body.top || bottom > body.bottom).length;
}"""


def test_small_screens_keep_the_chart_and_the_smallest_the_question_and_its_control_in_sight(lesson) -> None:
    """In German, whose words are longest. Bars are drawn in one stroke."""
    page = lesson("&lang=de&lesson=2", width=390, height=844).page
    page.wait_for_selector(".isx-column input", state="attached")
    page.locator(".isx-bars-drawn").scroll_into_view_if_needed()
    columns = page.locator(".isx-column input")
    quarter = {"x": 5, "y": 0.25 * columns.first.bounding_box()["height"]}
    columns.first.hover(position=quarter, force=True)  # what is drawn on is the group of all
    page.mouse.down()
    for column in columns.all():
        column.hover(position=quarter, force=True)
    page.mouse.up()
    values = columns.evaluate_all("all => all.map(one => Number(one.value))")
    assert all(abs(value - 60) <= 3 for value in values)
    sheet = page.locator(".isx-lesson").bounding_box()
    assert sheet["y"] >= 844 * 0.5
    assert sheet["y"] + sheet["height"] <= 844
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 360, "height": 640})
    for number, step in enumerate(STEPS, start=1):
        page.click(f".isx-lesson nav a >> nth={number - 1}")
        page.wait_for_selector(f".isx-lesson nav a[aria-current] >> text='{number}'")
        control = "button" if step["control"]["kind"] in ("choice", "answers") else "input"
        page.wait_for_selector(f".isx-lesson-control {control}", state="attached")
        assert page.evaluate(HIDDEN) == 0, number
        top = page.evaluate("document.querySelector('.isx-lesson-ask').offsetTop")
        assert top > page.evaluate("document.querySelector('#isx-lesson-title').offsetTop") + 60  # room for its words
