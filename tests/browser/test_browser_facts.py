"""The grid of facts in a real browser: the squares, the keyboard, the list of what is lost, a pinned setting."""

AT = "document.activeElement.dataset.at"
DETAIL = "document.querySelector('#facts-chart .isx-detail').innerText"


def test_the_grid_tells_what_each_model_says_and_is_one_stop_of_the_tab_key(visit, tiny_query, axe) -> None:
    opened = visit(f"{tiny_query}&tab=compare", width=1280, height=1000)
    page = opened.page
    opened.call("#facts-measure")
    opened.until("document.querySelectorAll('#facts-chart [data-at]').length === 3 * 96")
    drawing = page.evaluate("document.querySelector('#facts-chart .isx-chart').isxChart.drawing")
    levels = page.eval_on_selector_all("#facts-chart [data-at^='1 ']", "all => all.map(one => +one.dataset.level)")
    assert levels == drawing["columns"][1]["levels"]
    page.click("#facts-chart [data-at='0 3']")
    assert drawing["questions"][3][1] in page.evaluate(DETAIL)
    for key, at in (("ArrowDown", "1 3"), ("ArrowRight", "1 4"), ("ArrowUp", "0 4"), ("ArrowUp", "0 4")):
        page.keyboard.press(key)
        assert page.evaluate(AT) == at
    assert page.locator("#facts-chart [data-at][tabindex='0']").count() == 1
    assert page.locator("#facts-chart .isx-chosen").count() == 3  # the question of every model
    _, prompt, right, *_ = drawing["questions"][4]
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith(f"{prompt} … {right}. Dense: ")
    assert f"writes “{drawing['columns'][0]['says'][4]} …”" in page.evaluate(DETAIL)
    changed = drawing["lost"] + drawing["gained"]
    assert page.locator("#facts-chart [data-pick]").count() == len(changed)
    if changed:
        page.locator("#facts-chart [data-pick]").first.click()
        assert drawing["questions"][changed[0]][1] in page.evaluate(DETAIL)
    page.click("#pin")
    opened.until("document.querySelectorAll('#facts-chart [data-at]').length === 4 * 96")
    assert "A, pinned" in page.inner_text("#facts-chart .isx-groups")
    opened.prepare_axe(axe)
    assert opened.found_by_axe("#facts-chart") == []
