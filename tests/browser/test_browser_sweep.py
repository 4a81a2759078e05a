"""Sweep and Export in a real browser, on a tiny model: points come, a click loads one, files and the link are right."""

import json
import zipfile

import pytest


def downloaded(page, button: str, path) -> str:
    with page.expect_download() as download:
        page.click(button)
    download.value.save_as(path)
    return download.value.suggested_filename


def test_a_sweep_runs_is_cancelled_goes_on_and_loads_a_point(visit, tiny_query, page_session, tiny, tmp_path) -> None:
    opened = visit(f"{tiny_query}&seed=4&tab=sweep")
    page = opened.page
    opened.says("#sweep-progress", "12 of 12 points are not measured yet")
    assert not page.is_visible("#sweep-chart .isx-plot")
    page.wait_for_selector("#leaderboard-size-chart .main-svg")
    on_wikipedia = page.inner_text("#leaderboard-chart tbody")
    page.click("#leaderboard-text input")
    page.click("#leaderboard-text [role=option] >> text=Python source")
    page.wait_for_function(
        "shown => document.querySelector('#leaderboard-chart tbody').innerText !== shown", arg=on_wikipedia
    )
    page.click("#sweep-run")
    page.wait_for_selector("#sweep-chart .main-svg")
    page.click("#sweep-cancel")
    page.wait_for_function(
        "/“Run the sweep” to continue from there|All 12/.test(document.querySelector('#sweep-progress').innerText)"
    )
    opened.call("#sweep-run")
    opened.says("#sweep-progress", "All 12 points are measured")
    data = page.evaluate("document.querySelector('#sweep-chart .isx-plot').data.map(t => [t.name, t.x, t.y])")
    assert [name for name, *_ in data] == ["IntraSlice, PCA-aware", "IntraSlice, Uniform", "Cross-module"]

    assert downloaded(page, "#sweep-csv", tmp_path / "rows.csv") == "sweep.csv"
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 13

    # A click on uniform's second point, then by keyboard on the row of the point after it.
    spot = page.evaluate(
        """() => {
            const plot = document.querySelector('#sweep-chart .isx-plot');
            plot.scrollIntoView({ block: 'center' });
            const { left, top } = plot.getBoundingClientRect();
            const { xaxis, yaxis } = plot._fullLayout;
            const [x, y] = [plot.data[1].x[1], plot.data[1].y[1]];
            return [left + xaxis._offset + xaxis.d2p(x), top + yaxis._offset + yaxis.d2p(y)];
        }"""
    )
    page.mouse.move(spot[0] - 1, spot[1])
    page.mouse.move(*spot, steps=3)
    page.mouse.click(*spot)
    page.wait_for_function("!/sparsity=/.test(location.search) && /estimator=uniform/.test(location.search)")
    own = tiny.with_settings(sparsity=20, estimator="uniform", seed=4, bias=None)
    opened.says("#readout", f"{data[1][2][1]:.2f}")  # the page measures by itself what the sweep found
    assert page_session.perplexities(own).sliced == pytest.approx(data[1][2][1], rel=1e-4)
    page.click("#sweep-chart .isx-twin summary")
    page.focus("#sweep-chart tbody tr:nth-child(7) .isx-pick")
    page.keyboard.press("Enter")
    page.wait_for_function("/sparsity=30/.test(location.search) && !/estimator=/.test(location.search)")


def test_what_is_taken_home_is_what_the_page_shows(visit, tiny_query, page_session, tiny, tmp_path) -> None:
    opened = visit(f"{tiny_query}&sparsity=35&bias=1.05&prompt=w7%20w9&tab=export")
    page = opened.page
    opened.says("#export-about", "of the layer parameters removed")
    opened.says("#export-command", "--bias 1.05", "--sparsity 0.35")
    assert "tiny-sliced-35" in page.inner_text("#export-snippet pre")

    assert downloaded(page, "#export-checkpoint", tmp_path / "model.zip") == "tiny-sliced-35.zip"
    assert downloaded(page, "#export-plan", tmp_path / "plan.json") == "tiny-sliced-35-plan.json"
    assert downloaded(page, "#export-report", tmp_path / "report.html") == "tiny-sliced-35.html"
    plan = json.loads((tmp_path / "plan.json").read_text())
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert json.loads(archive.read("tiny-sliced-35/intraslice.json"))["made"] == plan
    shown = page_session.plan(tiny.with_settings(sparsity=35, bias=1.05))
    assert plan["ratios"] == [[layer.attention, layer.mlp] for layer in shown.layers]

    assert page.input_value("#export-link input") == page.url
    opened.hurry(1600, 600_000)  # that long stands what follows
    page.click("#export-link button")
    opened.says("#export-link", "Copied")
    assert "bias=1.05" in page.url

    report = (tmp_path / "report.html").as_uri()  # the report asks for nothing else
    alone, asked = page.context.new_page(), []
    alone.on("request", lambda request: asked.append(request.url))
    alone.on("pageerror", lambda error: asked.append(str(error)))
    alone.goto(report)
    alone.wait_for_function("document.querySelectorAll('.plot .main-svg').length >= 2")
    assert asked == [report]
    alone.close()
