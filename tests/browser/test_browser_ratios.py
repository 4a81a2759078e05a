"""The Ratios tab in a real browser: ratios by hand, was it right, the tour, and what axe-core finds."""

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
from browsing import CHROMIUM, PATIENCE
from test_browser_page import close

from components.ratios.estimator_check.measure import Verdicts
from components.state.keys import slice_config
from components.state.session import Session
from components.state.settings import Settings
from intraslice.core.cache import cache_folder
from intraslice.planning.ratios import make_plan

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]

AXE = "4.10.3"
# The code viewer is gradio's own; the charts' drawings are many nodes, and test_charts.py looks after their colours.
NOT_OURS = [["#export-snippet"], ["#export-command"], [".main-svg"]]


def ratios(session: Session, **settings) -> list[list[float]]:
    """What the library says of the snapshot's profile."""
    profile = session.source(Settings()).profile
    layers = make_plan(profile, slice_config(Settings(**settings))).layers
    return [[layer.attention_ratio for layer in layers], [layer.mlp_ratio for layer in layers]]


def unfold_overrides(page) -> None:
    page.click("#overrides summary")
    page.locator("#overrides tbody tr").nth(29).wait_for(timeout=PATIENCE)


def cell(page, layer: int, module: str, what: str):
    return page.get_by_label(f"Layer {layer}, {module}: {what}", exact=True)


def wait_for_note(page, words: str) -> None:
    page.wait_for_function(
        "words => document.querySelector('#ratio-chart .isx-note').textContent.includes(words)",
        arg=words,
        timeout=PATIENCE,
    )


def test_a_ratio_typed_by_hand_stays_and_the_others_make_up_for_it(visit, snapshot_session) -> None:
    opened = visit()
    page = opened.page
    unfold_overrides(page)
    before = opened.bars()
    cell(page, 7, "attention", "per cent removed").fill("40")
    cell(page, 7, "attention", "per cent removed").press("Enter")
    wait_for_note(page, "By hand")
    assert close(opened.bars(), ratios(snapshot_session, locked="7 attention 40"))
    assert cell(page, 7, "attention", "locked").is_checked()
    page.wait_for_function("location.search.includes('locked=7+attention+40')", timeout=PATIENCE)
    assert "30.0%" in page.inner_text("#removed")
    opened.drag(40)
    assert opened.bars()[0][7] == pytest.approx(0.4)
    assert "40.0%" in page.inner_text("#removed")
    opened.drag(30)
    opened.moved_by(lambda: page.click("#overrides .isx-unlock"))  # the note comes before the bars
    wait_for_note(page, "PCA-aware")
    assert close(opened.bars(), before)
    page.wait_for_function("!location.search.includes('locked')", timeout=PATIENCE)


def test_the_bias_is_found_until_it_is_given(visit, snapshot_session) -> None:
    opened = visit()
    page, auto = opened.page, opened.page.locator("#bias-auto input")
    before, slider = opened.bars(), page.locator("#bias input[type=range]")
    assert auto.is_checked()
    usual = make_plan(snapshot_session.source(Settings()).profile, slice_config(Settings()))
    assert float(slider.input_value()) == pytest.approx(usual.reasons.bias, abs=0.03)
    opened.drag(0.8, "#bias")
    assert close(opened.bars(), ratios(snapshot_session, bias=0.8))
    assert not auto.is_checked()
    page.wait_for_function("location.search.includes('bias=0.8')", timeout=PATIENCE)
    opened.moved_by(auto.check)
    assert close(opened.bars(), before)
    page.wait_for_function("!location.search.includes('bias')", timeout=PATIENCE)
    assert float(slider.input_value()) == pytest.approx(usual.reasons.bias, abs=0.03)

    page = visit("/?bias=1.4").page
    page.wait_for_function("!document.querySelector('#bias-auto input').checked", timeout=PATIENCE)
    assert page.locator("#bias input[type=range]").input_value() == "1.4"


def test_shapes_for_a_runtime_are_drawn_and_stay_in_the_link(visit, snapshot_session) -> None:
    opened = visit()
    page = opened.page
    opened.moved_by(lambda: page.get_by_label("Runtime", exact=True).check())
    assert close(opened.bars(), ratios(snapshot_session, shapes="runtime"))
    page.wait_for_function("location.search.includes('shapes=runtime')", timeout=PATIENCE)
    assert "blocks of 32 neurons" in page.inner_text("#importance-chart")
    again = visit("/?shapes=runtime")
    again.page.wait_for_selector("#importance-chart :text('blocks of 32 neurons')", timeout=PATIENCE)  # restored
    assert again.page.get_by_label("Runtime", exact=True).is_checked()
    assert close(again.bars(), opened.bars())


def test_a_lock_that_cannot_be_met_is_explained_and_the_view_stays(visit) -> None:
    opened = visit("/?sparsity=1")
    page = opened.page
    page.wait_for_function("document.querySelector('#removed').textContent.includes('1.0%')", timeout=PATIENCE)
    unfold_overrides(page)
    before = opened.bars()
    cell(page, 3, "MLP", "per cent removed").fill("90")
    cell(page, 3, "MLP", "per cent removed").press("Enter")
    page.wait_for_function(
        "document.querySelector('#overrides-problem').textContent.includes('unlock some')", timeout=PATIENCE
    )
    assert opened.bars() == before
    assert "locked" not in page.url


def test_a_link_carries_the_locks(visit, snapshot_session) -> None:
    opened = visit("/?locked=7+attention+25,+3+mlp+0")
    wait_for_note(opened.page, "By hand")
    assert close(opened.bars(), ratios(snapshot_session, locked="7 attention 25, 3 mlp 0"))
    unfold_overrides(opened.page)
    assert cell(opened.page, 3, "MLP", "locked").is_checked()
    assert "2 locked" in opened.page.inner_text("#overrides summary")


def test_a_click_on_a_measured_module_chooses_its_layer(visit, snapshot_session) -> None:
    page = visit().page
    page.locator("#verdict-chart").scroll_into_view_if_needed()
    page.wait_for_selector("#verdict-chart .main-svg", timeout=PATIENCE)
    spot = page.evaluate(
        """() => {
            const plot = document.querySelector('#verdict-chart .isx-plot');
            const { x, y, xaxis, yaxis } = plot._fullData[0] && { ...plot.data[0], ...plot._fullLayout };
            const box = plot.getBoundingClientRect();
            const layer = 27;
            return [box.x + xaxis._offset + xaxis.d2p(x[layer]), box.y + yaxis._offset + yaxis.d2p(y[layer])];
        }"""
    )
    page.mouse.move(*spot, steps=4)
    page.wait_for_selector("#verdict-chart .hovertext", timeout=PATIENCE)
    page.mouse.click(*spot)
    page.wait_for_function(
        "document.querySelector('#importance-chart .isx-title').textContent.includes('layer 27')", timeout=PATIENCE
    )
    misjudged = [own for own in Verdicts(snapshot_session).known(Settings()).misjudged if own[0] == "pca"]
    shown = page.inner_text("#verdict-words")
    assert misjudged
    assert all(f"Layer {layer}'s" in shown for _, layer, *_ in misjudged)


def test_the_tour_leads_through_the_page_and_gives_it_back(visit) -> None:
    page = visit(width=390, height=844).page
    page.wait_for_function("!document.querySelector('#controls.open')", timeout=PATIENCE)
    assert page.locator(".isx-tour").count() == 0
    page.click("#tour")
    titles = []
    for step in range(1, 7):
        page.wait_for_function(f"document.querySelector('.isx-tour span').textContent === '{step} of 6'")
        page.wait_for_selector(".isx-spot", state="visible", timeout=PATIENCE)
        titles.append(page.inner_text(".isx-tour h3"))
        assert page.evaluate("document.activeElement.id") == "isx-tour-title"
        card = page.locator(".isx-tour").bounding_box()
        assert card["x"] >= 0
        assert card["x"] + card["width"] <= 390
        assert card["y"] + card["height"] <= 844
        if step == 1:
            page.wait_for_function("document.querySelector('#removed').textContent.includes('45.0%')", timeout=PATIENCE)
        if step < 6:
            page.click(".isx-tour [data-go=on]")
    assert len(set(titles)) == 6
    page.wait_for_selector("#asking", state="visible", timeout=PATIENCE)
    page.wait_for_function("location.search.includes('tab=compare')", timeout=PATIENCE)
    page.click(".isx-tour [data-go=back]")
    page.wait_for_function("document.querySelector('.isx-tour span').textContent === '5 of 6'")
    page.keyboard.press("Escape")
    assert page.locator(".isx-tour, .isx-spot").count() == 0
    assert page.evaluate("document.activeElement.id") == "tour"


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core's script: from npm once, then from the cache."""
    kept = cache_folder() / "axe-core" / f"{AXE}.js"
    if not kept.is_file():
        if not shutil.which("npm"):
            pytest.skip("no npm, which axe-core comes from")
        with tempfile.TemporaryDirectory() as folder:
            packed = subprocess.run(["npm", "pack", f"axe-core@{AXE}"], cwd=folder, capture_output=True, text=True)
            if packed.returncode:
                pytest.skip(f"npm cannot fetch axe-core: {packed.stderr.strip()[-200:]}")
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                script = archive.extractfile("package/axe.min.js").read()
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(script)
    return kept.read_text(encoding="utf-8")


@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])  # dark has less contrast
def test_axe_finds_nothing_serious_on_any_tab(visit, axe, theme) -> None:
    page = visit(f"/?__theme={theme}").page
    page.evaluate(axe)
    page.evaluate("document.querySelectorAll('.isx-fold').forEach((one) => (one.open = true))")
    found = {}
    names = [name.strip() for name in page.locator("#tabs button[role=tab]:visible").all_inner_texts()]
    assert "Ratios" in names
    for name in names:
        page.locator("#tabs button[role=tab]", has_text=name).first.click(timeout=PATIENCE)
        page.wait_for_timeout(1500)
        results = page.evaluate(
            "([include, exclude]) => axe.run({ include, exclude }, { resultTypes: ['violations'] })",
            [["body"] if name == "Ratios" else ["#tabs"], NOT_OURS],
        )
        for violation in results["violations"]:
            if violation["impact"] in ("serious", "critical"):
                nodes = [f"{node['target']} {node['failureSummary'][:200]}" for node in violation["nodes"]]
                found[f"{name}: {violation['id']}"] = nodes[:5]
    assert found == {}
