"""What was measured, in a real browser: the list on the Sweep tab, its dots and its files."""

import csv
import json
from urllib.parse import parse_qs

from browsing import Opened
from fiddling import RELEASE

DOTS = """() => (document.querySelector('#sweep-chart .isx-plot').data ?? []).slice(-2)
    .map(({ x, y }) => [[...x], [...y]])"""  # the front's, and all
EVIL = "<img src=x onerror=alert(1)>"


def names(opened: Opened) -> list[str]:
    return opened.page.locator("#tried tbody :is(a, th > span)").all_text_contents()


def measure(opened: Opened, percent: int) -> None:
    opened.slide(percent)
    opened.says("#removed", f"{percent}.0%")
    opened.page.locator("#sparsity input[type=range]").evaluate(RELEASE)
    opened.says("#tried [aria-current]", f"{percent}%, PCA-aware")


def test_what_was_measured_is_listed_leads_back_and_travels(visit, tiny_query, page_session, tiny, tmp_path) -> None:
    opened = visit(f"{tiny_query}&bias=1&tab=sweep")
    page, asked = opened.page, []
    opened.says("#tried [aria-current]", "30%, PCA-aware", "here")
    for percent in (10, 45):
        measure(opened, percent)
    page.on("request", lambda request: asked.append(request.post_data or ""))
    requests = {percent: tiny.with_settings(sparsity=percent) for percent in (45, 10, 30)}
    assert [name.partition(",")[0] for name in names(opened)] == ["45%", "10%", "30%"]  # the newest first
    cells = page.locator("#tried tbody tr:has(td)").nth(1).locator("td").all_inner_texts()
    plan, measured = page_session.plan(requests[10]), page_session.perplexities(requests[10])
    assert cells[0] == f"{plan.removed:.1%}"
    assert cells[1] == f"{plan.parameters_sliced / 1e6:.1f}"
    assert cells[2] == f"{measured.sliced.value:.2f}"

    # Dots of the same numbers, and a front on which nothing else is smaller and better.
    points = {page_session.plan(one).removed: page_session.perplexities(one).sliced.value for one in requests.values()}
    front = {x: y for x, y in points.items() if not any(u > x and v <= y for u, v in points.items())}
    opened.until(f"({DOTS})()[1][0].length === 3")
    on_front, dots = (dict(zip(x, y, strict=True)) for x, y in page.evaluate(DOTS))
    assert {round(x, 6): round(y, 3) for x, y in dots.items()} == {round(x, 6): round(y, 3) for x, y in points.items()}
    assert {round(x, 6) for x in on_front} == {round(x, 6) for x in front}

    # A name is only text; the link leads back, by keyboard too.
    page.click("#tried [aria-label^='Rename: 10%']")
    page.keyboard.type(EVIL)
    page.keyboard.press("Enter")
    opened.says("#tried tbody", EVIL)
    assert page.locator("#tried img").count() == 0
    assert page.evaluate("document.activeElement.ariaLabel") == f"Rename: {EVIL}"
    page.locator("#tried a", has_text="30%").focus()
    page.keyboard.press("Enter")
    opened.addressed("sparsity=30")
    opened.says("#removed", "30.0%")
    opened.says("#tried [aria-current]", "30%")
    assert names(opened)[0].startswith("30%")

    files = {}
    for ending in ("csv", "json"):
        files[ending] = tmp_path / f"settings.{ending}"
        opened.download(f"#tried [data-save={ending}]", files[ending])
    with files["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    saved = json.loads(files["json"].read_text())
    assert sorted(row["title"] for row in rows) == ["", "", EVIL]
    assert [row["setting"] for row in rows] == [entry["setting"] for entry in saved]
    assert {parse_qs(entry["setting"])["sparsity"][0] for entry in saved} == {"10", "30", "45"}

    opened.leave_for(page.url)
    page.wait_for_selector("body.isx-begun")
    opened.says("#tried tbody", EVIL, "45%")  # kept by the browser
    opened.until("isx.tried.current().source === 'here'")
    page.click("#tried [data-clear]")
    opened.says("#tried [data-clear]", "Press again")
    page.click("#tried [data-clear]")
    page.wait_for_selector("#tried .isx-none", state="visible")

    # Files are taken entry by entry: what is too large, of a wrong type, or from elsewhere.
    wrong = [saved[0] | change for change in ({"perplexity": "9"}, {"removed": 2}, {"kl": -1}, {"name": "x" * 501}, {})]
    wrong[-1].pop("key")
    foreign = saved[0] | {"title": None, "key": "other", "name": "=1+1", "model": EVIL}
    foreign["setting"] = "sparsity=40&model=x&room=1"
    files["json"].write_text(json.dumps([*saved, *wrong, foreign, None, 7]))
    names_and_texts = {"cut.csv": files["csv"].read_bytes()[:-20], "bad.json": b"[{", "bad.csv": b"a;b\n1;2"}
    for name, text in names_and_texts.items():
        (tmp_path / name).write_bytes(text)
    for file, words in (
        ("settings.csv", "3 imported, 0 refused."),
        ("cut.csv", "2 imported, 1 refused."),
        ("bad.csv", "This file cannot be read."),
        ("settings.json", "4 imported, 7 refused."),
        ("bad.json", "This file cannot be read."),
    ):
        page.set_input_files("#tried input[type=file]", tmp_path / file)
        opened.says("#tried [role=status]", words)
    assert sorted(name.partition(",")[0] for name in names(opened)) == ["30%", "45%", EVIL, "=1+1"]
    href = page.locator("#tried a", has_text="=1+1").get_attribute("href")
    assert parse_qs(href[1:]) == {"sparsity": ["40"], "model": ["x"], "tab": ["sweep"], "lang": ["en"]}
    assert page.locator("#tried img").count() == 0
    assert '"\'=1+1"' in page.evaluate("isx.tried.csv()")  # a spreadsheet does not run it
    assert EVIL not in "".join(asked)

    # No more than 500, and in this page alone where nothing can be stored.
    many = json.dumps([saved[0] | {"setting": f"sparsity=30&seed={seed}"} for seed in range(600)])
    assert page.evaluate("text => isx.tried.bring(text).imported", many) == 500
    assert page.evaluate("isx.tried.all().length") == 500
    page.evaluate("Object.defineProperty(window, 'localStorage', { get() { throw new Error('blocked'); } })")
    page.evaluate("isx.tried.remove(...isx.tried.all())")
    measure(opened, 10)
    measure(opened, 45)
    assert [name.partition(",")[0] for name in names(opened)] == ["45%", "10%"]
