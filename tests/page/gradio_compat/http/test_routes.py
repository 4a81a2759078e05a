"""Which of gradio's routes are answered: those of the installed version, each of which is needed or refused."""

import re
from collections.abc import Iterator
from typing import Any

import gradio as gr
import pytest
from gradio.routes import App as GradioApp
from starlette.middleware import Middleware

from components.gradio_compat.http.routes import API, NEEDED, NeededRoutes

# A route of a new version of gradio is added here, or to `NEEDED` where the page or its programs want it.
REFUSED = {
    *("/login", "/logout", "/monitoring", "/monitoring/{}", "/monitoring/summary", "/openapi.json", "/token", "/user"),
    *("/pwa_icon", "/pwa_icon/{}", f"{API}/deep_link", f"{API}/dev/reload", f"{API}/process_recording"),
    *(f"{API}/login_check", f"{API}/token", f"{API}/user", "/login_check"),
    *(f"{API}/runs", *(f"{API}/run-history/{path}" for path in ("connect", "buckets", "records"))),
    f"{API}/run-history/records/{{}}/{{}}/assets/{{}}",
    *(
        f"{API}/proxy={{}}",
        f"{API}/file/{{}}",
        f"{API}/component_server",
        f"{API}/custom_component/{{}}/{{}}/{{}}/{{}}",
    ),
    *(f"{API}/stream/{path}" for path in ("{}", "{}/close", "{}/{}/{}/{}.{}")),
    *(f"{API}/stream/{{}}/{{}}/{{}}/{file}" for file in ("playlist.m3u8", "playlist-file")),
    *(f"{API}/{path}" for path in ("vibe-edit", "undo-vibe-edit", "vibe-code", "vibe-starter-queries")),
}


def plain(path: str) -> str:
    """A path without the names of its parameters, and without a slash at its end."""
    return re.sub(r"{.*?}", "{}", path).rstrip("/") or "/"


def paths(routes: Any) -> Iterator[str]:
    """The paths of routes and of the routers among them."""
    for route in routes:
        inner = getattr(getattr(route, "original_router", None), "routes", None)
        yield from [route.path] if inner is None else paths(inner)


def page_with_work() -> gr.Blocks:
    def work() -> str:
        return "done"

    with gr.Blocks() as page:
        gr.api(work, api_name="work")
    return page


def test_every_route_of_gradio_is_needed_or_refused() -> None:
    found = set(map(plain, paths(GradioApp.create_app(page_with_work()).routes)))
    needed = set(map(plain, NEEDED))
    assert found - needed == REFUSED & found
    assert not REFUSED & needed


@pytest.fixture(scope="module", params=["plain", "ours"])
def client(request, launch_once):
    middleware = [Middleware(NeededRoutes, {"/own": ("GET",)}, lambda session: session == "caller")]
    client = launch_once(page_with_work(), app_kwargs={"middleware": middleware if request.param == "ours" else []})
    client.is_plain = request.param == "plain"
    return client


@pytest.mark.parametrize("path", ["gradio_api/token", "openapi.json", "monitoring", "gradio_api/deep_link"])
def test_plain_gradio_answers_what_nobody_needs_and_ours_does_not(client, path) -> None:
    answer = client.http.get(f"{client.address}{path}")
    assert (answer.text == "not found") is not client.is_plain
    if not client.is_plain:
        assert answer.status_code == 404


def test_plain_gradio_logs_a_traceback_for_messages_of_nobody_and_ours_answers(client, caplog) -> None:
    answer = None
    try:
        answer = client.http.get(f"{client.api}/queue/data?session_hash=nobody")
    except Exception:
        assert client.is_plain  # which has begun its answer, and breaks off
    if not client.is_plain:
        assert (answer.status_code, answer.text) == (404, "not found")
        assert not caplog.records


def test_what_is_needed_is_answered(client) -> None:
    assert client.http.get(client.address).status_code == 200
    assert client.http.head(client.address).status_code == 200
    assert client.http.get(f"{client.address}config").status_code == 200
    assert client.ask("work") == ("complete", ["done"])
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert client.http.options(f"{client.api}/call/work", headers=asked).status_code == 200
