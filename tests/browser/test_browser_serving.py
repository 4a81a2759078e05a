"""A page that stays open while its server sleeps, or is another one afterwards."""

import json

import pytest
from browsing import CHROMIUM, PATIENCE

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH"),
]


def test_a_page_whose_server_slept_says_so_and_goes_on_with_its_settings(visit) -> None:
    opened = visit("?sparsity=45")
    page = opened.page
    page.evaluate("isxLook()")
    assert page.locator(".isx-awake").count() == 0
    page.route("**/healthz", lambda route: route.abort())
    page.evaluate("isxLook()")
    assert "does not answer" in page.inner_text(".isx-awake")
    page.unroute("**/healthz")  # it answers again, by itself
    page.wait_for_selector(".isx-awake", state="detached", timeout=PATIENCE)
    other = json.dumps({"ok": True, "began": 1.0})
    page.route("**/healthz", lambda route: route.fulfill(body=other, content_type="application/json"))
    page.evaluate("isxLook()")
    assert "has restarted" in page.inner_text(".isx-awake")
    page.unroute("**/healthz")
    with page.expect_navigation(timeout=PATIENCE):
        page.click(".isx-awake button")
    page.wait_for_function("document.querySelector('#sparsity input[type=number]')?.value === '45'", timeout=PATIENCE)
    left = ("net::ERR_FAILED", "AbortError")  # the looks that failed, and what gradio was waiting for when it was left
    opened.faults[:] = [fault for fault in opened.faults if not any(word in fault for word in left)]
