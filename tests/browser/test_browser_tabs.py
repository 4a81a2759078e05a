"""Compare, Sweep and Export in a real browser, on a tiny model."""

import json
import zipfile

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
    opened.until("""() => {
        const label = document.querySelector('#sampling label span');
        scrollTo(0, label.getBoundingClientRect().top + scrollY - 20);
        const { x, y, height } = label.getBoundingClientRect();
        return document.elementFromPoint(x + 5, y + height / 2).closest('#slider-bar');
    }""")


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
    opened.until("window.halted")
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

    # The tokens at which the models diverge most, ten at a time; a click on one goes to its place in the text.
    scores = tokens.evaluate_all("all => all.map(one => [Number(one.dataset.kl), one.dataset.said])")
    expected = [f"{kl:.3f}\t{said}" for kl, said in sorted(scores, key=lambda one: -one[0])]
    shown, later = page.locator("#passage .isx-tokens tbody tr"), page.locator("#passage [data-step='1']")
    for start in range(0, len(scores), 10):
        opened.says("#passage .isx-steps [role=status]", f"{start + 1} to ")
        assert ["\t".join(row.split("\t")[1:3]) for row in shown.all_inner_texts()] == expected[start : start + 10]
        if start + 10 < len(scores):
            later.click()
    assert later.is_disabled()
    page.click("#passage [data-step='-1']")
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    shown.first.locator("button").press("Enter")
    visited = page.locator("#passage .isx-told:focus")
    assert visited.get_attribute("data-said") == shown.first.locator("td").nth(1).inner_text()
    opened.until("""() => {
        const { top, bottom } = document.activeElement.getBoundingClientRect();
        return top > document.querySelector("#slider-bar").getBoundingClientRect().bottom && bottom < innerHeight;
    }""")

    # Only some, planted here; which they are is the unit tests'.
    page.evaluate("""() => {
        document.querySelectorAll('#passage .isx-token').forEach((one, at) => one.toggleAttribute('data-lost', at < 3));
        document.querySelector('#passage .isx-diverging input').disabled = false;
    }""")
    page.check("#passage .isx-diverging input")
    opened.says("#passage .isx-steps [role=status]", "1 to 3 of 3")

    page.fill("#passage-text textarea", "w7 w8 w9 w10")
    page.click("#score")
    opened.until("document.querySelectorAll('#passage .isx-token').length === 3")
    for percent in (35, 30):  # a released slider has it scored anew
        opened.slide(percent)
        page.locator("#sparsity input[type=range]").dispatch_event("pointerup")
        page.wait_for_selector(f"#passage [data-percent='{percent}'] .isx-token")
    page.fill("#passage-text textarea", "w7")
    opened.call("#score")
    page.wait_for_selector("#passage [role=alert]")
    assert "must have 2 to" in page.inner_text("#passage")
    opened.says("#status", "must have 2 to")

    ask_for(opened, 8, "  ")
    opened.says("#status", "prompt is empty")
    ask_for(opened, 8)
    answered(opened, "8 tokens", "dense")


def test_a_sweep_runs_is_cancelled_goes_on_and_loads_a_point(visit, tiny_query, page_session, tiny, tmp_path) -> None:
    opened = visit(f"{tiny_query}&seed=4&tab=sweep")
    page = opened.page
    opened.says("#sweep-progress", "12 of 12 points are not measured yet")
    page.wait_for_selector("#leaderboard-size-chart .main-svg")
    opacity = """(name) => document.querySelector('#leaderboard-chart .isx-plot').data
        .find((trace) => trace.name === name).opacity ?? 1"""
    assert [page.evaluate(opacity, name) < 1 for name in ("IntraSlice", "FLAP", "ShortGPT")] == [False, False, True]
    page.locator("#leaderboard-chart .traces", has_text="ShortGPT").first.locator(".legendtoggle").click()
    opened.until(f"({opacity})('ShortGPT') === 1")  # chosen, and not hidden
    on_wikipedia = page.inner_text("#leaderboard-chart tbody")
    page.click("#leaderboard-text input")
    page.click("#leaderboard-text [role=option] >> text=Python source")
    opened.until("shown => document.querySelector('#leaderboard-chart tbody').innerText !== shown", arg=on_wikipedia)
    page.click("#sweep-run")
    opened.until("document.querySelector('#sweep-chart .isx-plot').data.some(t => t.name === 'IntraSlice, PCA-aware')")
    page.click("#sweep-cancel")
    opened.until("/continue from there|All 12/.test(document.querySelector('#sweep-progress').innerText)")
    opened.call("#sweep-run")
    opened.says("#sweep-progress", "All 12 points are measured")
    data = page.evaluate("document.querySelector('#sweep-chart .isx-plot').data.map(t => [t.name, t.x, t.y])")
    names = ["IntraSlice, PCA-aware", "IntraSlice, Uniform", "Cross-module", "Best front", "Measured settings"]
    assert [name for name, *_ in data] == names

    assert opened.download("#sweep-csv", tmp_path / "rows.csv") == "sweep.csv"
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 13

    # A click on uniform's second point, then by keyboard on the row of the point after it.
    opened.click_point("#sweep-chart", trace=1, index=1)
    opened.until("!/sparsity=/.test(location.search) && /estimator=uniform/.test(location.search)")
    own = tiny.with_settings(sparsity=20, estimator="uniform", seed=4, bias=None)
    opened.says("#readout", f"{data[1][2][1]:.2f}")  # the page measures by itself what the sweep found
    assert page_session.perplexities(own).sliced.value == pytest.approx(data[1][2][1], rel=1e-4)
    opened.until("/estimator=uniform/.test(isx.tried.current().setting)")  # which draws the table again
    page.click("#sweep-chart .isx-twin summary")
    page.press("#sweep-chart tbody tr:nth-child(7) .isx-pick", "Enter")
    opened.until("/sparsity=30/.test(location.search) && !/estimator=/.test(location.search)")


def test_what_is_taken_home_is_what_the_page_shows(visit, tiny_query, page_session, tiny, tmp_path) -> None:
    opened = visit(f"{tiny_query}&sparsity=35&bias=1.05&prompt=w7%20w9&tab=export")
    page = opened.page
    opened.says("#export-about", "of the layer parameters removed")
    opened.says("#export-command", "--bias 1.05", "--sparsity 0.35")
    opened.says("#export-snippet", "tiny-sliced-35")

    assert opened.download("#export-checkpoint", tmp_path / "model.zip") == "tiny-sliced-35.zip"
    assert opened.download("#export-plan", tmp_path / "plan.json") == "tiny-sliced-35-plan.json"
    assert opened.download("#export-report", tmp_path / "report.html") == "tiny-sliced-35.html"
    plan = json.loads((tmp_path / "plan.json").read_text())
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        record = json.loads(archive.read("tiny-sliced-35/intraslice.json"))["record"]
    assert plan == record | {"asked": record["requested"]}
    shown = page_session.plan(tiny.with_settings(sparsity=35, bias=1.05))
    assert plan["ratios"] == [[layer.attention, layer.mlp] for layer in shown.layers]

    opened.until("document.querySelector('#export-link input').value === location.href")
    opened.hurry(1600, 600_000)  # that long stands what follows
    page.click("#export-link button")
    opened.says("#export-link", "Copied")
    assert "bias=1.05" in page.url

    report = (tmp_path / "report.html").as_uri()  # the report asks for nothing else
    alone = Opened(page.context.new_page())
    alone.page.goto(report)
    alone.page.wait_for_selector("#chart-1 .main-svg")
    assert "Bars: planned ratio" in alone.page.inner_text("#chart-0 .isx-note")
    assert alone.page.locator("#chart-0 tbody tr").count() == 3
    assert alone.faults == [report]
    alone.page.close()
