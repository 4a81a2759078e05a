"""A page that stays open while its server sleeps, or is another one afterwards."""

import json


def test_a_page_whose_server_slept_says_so_and_goes_on_with_its_settings(visit) -> None:
    opened = visit("?sparsity=45")
    page = opened.page
    page.evaluate("isxLook()")
    assert page.locator(".isx-awake").count() == 0
    page.route("**/healthz", lambda route: route.abort())
    page.evaluate("isxLook()")
    assert "does not answer" in page.inner_text(".isx-awake")
    page.unroute("**/healthz")  # it answers again, by itself
    page.wait_for_selector(".isx-awake", state="detached")
    other = json.dumps({"ok": True, "began": 1.0})
    page.route("**/healthz", lambda route: route.fulfill(body=other, content_type="application/json"))
    page.evaluate("isxLook()")
    assert "has restarted" in page.inner_text(".isx-awake")
    page.unroute("**/healthz")
    with page.expect_navigation():
        page.click(".isx-awake button")
    page.wait_for_function("document.querySelector('#sparsity input[type=number]')?.value === '45'")
    opened.forgive("net::ERR_FAILED", "AbortError")  # failed requests, and what the page waited for when it was left
