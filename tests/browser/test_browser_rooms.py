"""A class in a real browser: a presenter and students in contexts of their own, on phones and desktops."""

import csv
import io
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browsing import HURRY, PATIENCE, Opened
from playwright.sync_api import TimeoutError

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1440, "height": 900}
MEASURED = "/→ [0-9.,]+ /.test(document.querySelector('#headline').innerText)"
MAIN = ".isx-lesson [data-go=on]"
STUDENTS = [(PHONE, "en"), (PHONE, "en"), (PHONE, "de"), (DESKTOP, "en"), (DESKTOP, "en")]


@pytest.fixture
def open_alone(chromium, address) -> Iterator[Callable[..., Opened]]:
    """Opens the page in a context of its own, as another person; at the end nothing may have gone wrong on it."""
    opened: list[Opened] = []
    with ExitStack() as contexts:

        def open_page(query: str, size: dict[str, int] = DESKTOP, language: str = "en", **options: str) -> Opened:
            context = contexts.enter_context(chromium.new_context(viewport=size, locale=language, **options))
            context.set_default_timeout(PATIENCE)
            context.add_init_script(f"({HURRY})([1500, 200]); ({HURRY})([4000, 500])")  # between looks at the server
            one = Opened(context.new_page())
            opened.append(one)
            one.page.goto(address + query)
            return one

        yield open_page
        assert [one.faults for one in opened] == [[]] * len(opened)


def open_form(one: Opened) -> None:
    """Open the lesson, and what begins or joins a class."""
    one.until(MEASURED)
    one.page.click("#lesson")
    one.page.click(".isx-room-outside summary")


def predict(student: Opened, number: int) -> None:
    """Predict by keyboard and send it: students with other numbers predict something else."""
    page = student.page
    control = page.locator(".isx-lesson-control")
    if control.locator("button").count():
        control.locator("button").nth(number % 4).click()
    else:
        control.locator("input").first.focus()
        for _ in range(number + 1):
            page.keyboard.press("ArrowRight")
    try:
        page.click(MAIN)
    except TimeoutError as problem:  # say what the browser and the server had agreed on
        raise AssertionError(page.evaluate("JSON.stringify(isx.room.now)")) from problem
    student.until("document.querySelector('.isx-lesson [data-go=on]').disabled")


def at_question(one: Opened, number: int) -> None:
    one.until("number => document.querySelector('#isx-lesson-title').textContent.startsWith(`${number}.`)", number)
    one.page.locator(".isx-lesson-control :is(input, button)").first.wait_for(state="attached")


def lead_elsewhere(presenter: Opened, link: str) -> None:
    """Go on leading by the presenter's link in a browser that knows nothing; the secret leaves the address."""
    page = presenter.page
    secret = page.evaluate("JSON.parse(localStorage.getItem(`isx-room-${isx.room.now.code}`)).lead")
    page.evaluate("localStorage.clear()")
    presenter.leave_for(f"{link}#lead={secret}")
    page.wait_for_selector("[data-room=delete]")
    assert secret not in page.url
    presenter.until(MEASURED)


def remove_and_join_again(presenter: Opened, student: Opened, count: int) -> None:
    """The presenter removes the students without a prediction: one of so many, who reloads."""
    presenter.says(".isx-room-counts", f"Students: {count} ")
    remove = presenter.page.get_by_role("button", name="Remove students who have not answered")
    assert "no prediction for any question" in remove.get_attribute("title")
    presenter.says(".isx-room-counts", f"Predictions: {count - 1}")
    remove.click()
    presenter.says(".isx-room-counts", f"Students: {count - 1} ")
    student.says(".isx-lesson-bar", "removed the students without a prediction; to join again, reload")
    student.leave_for(student.page.url)
    presenter.says(".isx-room-counts", f"Students: {count} ")


def saved(one: Opened, button: str) -> str:
    with one.page.expect_download() as download:
        one.page.click(f"[data-room={button}]")
    return Path(download.value.path()).read_text(encoding="utf-8-sig")


@pytest.mark.parametrize(
    ("sizes", "questions"),
    [(STUDENTS[3:1:-1], 2), pytest.param(STUDENTS, 3, marks=pytest.mark.slow)],
    ids=["two", "five"],
)
def test_a_class_predicts_together(sizes, questions, open_alone, tiny_query, address, axe) -> None:
    query = f"{tiny_query}&prompt=w10%20w20"
    presenter = open_alone(query)
    open_form(presenter)
    presenter.page.click("[data-room=start]")
    presenter.page.wait_for_selector(".isx-room-qr svg")
    link = presenter.page.inner_text(".isx-room-link")
    code = link[-6:]
    students = [open_alone(link.removeprefix(address), size, language) for size, language in sizes[:-1]]
    typist = open_alone(query, *sizes[-1])
    open_form(typist)
    typist.page.fill(".isx-room-form input", f"{code[:3].lower()} {code[3:].lower()}")
    typist.page.keyboard.press("Enter")
    students.append(typist)
    for student in students:
        at_question(student, 1)
        student.says(".isx-room-bar b", code)
        student.until("() => isx.room.now?.state")  # until then, the question may still be asked anew
        student.page.focus("#isx-lesson-title")
        student.page.keyboard.press("ArrowRight")  # the lesson's, which sends no prediction
        assert student.page.evaluate("isx.room.now.waiting ?? null") is None
        assert student.page.locator(".isx-room-counts, [data-room=delete], [data-room=csv]").count() == 0
    for question in range(1, questions + 1):
        for number, student in [*enumerate(students)][::-1]:
            if (question, number) == (1, 0):
                remove_and_join_again(presenter, student, len(students))
            at_question(student, question)
            assert student.page.locator(".isx-column").count() == (3 if question == 2 else 0)
            assert student.page.locator(".isx-room-figure svg").count() == 0  # nothing before the reveal
            predict(student, number)
        presenter.says(".isx-room-counts", f"Students: {len(students)} · Predictions: {len(students)}")
        assert presenter.page.locator(".isx-h-truth, .isx-h .isx-h-right").count() == 0
        if question == 2:  # a student who reloads keeps the prediction, and one who changes it counts once
            students[0].leave_for(students[0].page.url)
            students[0].says(".isx-room-line", "has been counted")
            assert students[0].page.locator(".isx-column input").first.input_value() == "31"
            predict(students[1], 5)
            lead_elsewhere(presenter, link)
            presenter.says(".isx-room-counts", f"Predictions: {len(students)}")
        presenter.page.click(MAIN)
        for student in students:
            student.page.wait_for_selector(".isx-room-figure svg")
            student.says(".isx-room-figure figcaption", str(len(students)))
        if question < questions:
            for one in (presenter, *students):
                one.page.wait_for_selector(".isx-h-truth", state="attached")
                one.page.wait_for_selector(".isx-lesson-answer .isx-found")
            presenter.page.route("**/rooms/*/step*", lambda route: route.abort(), times=1)  # it is sent again
            presenter.page.click(MAIN)
            at_question(students[0], question + 1)
            presenter.forgive("ERR_FAILED")
            at_question(presenter, question + 1)
    german = students[sizes.index((PHONE, "de"))]
    assert german.page.inner_text(MAIN) == "Bitte warten"
    for one in (presenter, german):
        one.page.evaluate(axe)
        one.until("[...document.querySelectorAll('#tabs h3')].some((heading) => heading.checkVisibility())")
        assert one.found_by_axe(".isx-lesson", minor=True) == []
    assert german.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    record = saved(german, "record")
    assert ('<html lang="de">' in record, "<script" in record) == (True, False)
    assert record.count("<svg") == record.count("<h2") == questions
    rows = list(csv.reader(io.StringIO(saved(presenter, "csv"))))
    assert len(rows) == 1 + questions * len(students)
    assert saved(presenter, "report").count("<h2") == questions
    large = presenter.page.locator("[data-room=large]")
    large.click()
    assert large.inner_text() == "Close large view"
    presenter.page.keyboard.press("Escape")
    assert large.inner_text() == "Large view"
    presenter.page.click("[data-room=delete] >> text=Delete class")
    presenter.page.click("[data-room=delete] >> text=Cancel")
    assert presenter.page.locator("[data-room=sure]").is_hidden()
    presenter.page.click("[data-room=delete] >> text=Delete class")
    presenter.page.click("[data-room=sure]")
    presenter.page.wait_for_selector(".isx-room-outside", state="visible")
    for student in students:
        student.says(".isx-lesson-bar", "beendet" if student is german else "The class has ended")
        words = student.page.inner_text(".isx-lesson-bar")
        assert "10" not in words.replace(code, "")  # no question of the class
        assert student.page.locator(".isx-lesson-room").is_hidden()
    for one in (presenter, *students):
        one.page.close()  # what went wrong on it may be told late
        one.forgive("403" if one is presenter else "410")  # of who asked for the class while it was deleted
