"""Which requests are answered: of what size, and by which routes. `tests.load.attacks` asks a hosted page."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from gradio import route_utils
from gradio.routes import App as GradioApp
from gradio_pages import page_of
from starlette.middleware import Middleware

from components import limits
from components.gradio_compat.requests import (
    API,
    NEEDED,
    UploadParser,
    allocated_bytes,
    bounded_requests,
    needed_routes,
    upload_folder,
)


@pytest.fixture(scope="module", params=["plain", "ours"])
def sized(request, launch_once):
    is_plain = request.param == "plain"
    middleware = [] if is_plain else [Middleware(bounded_requests)]
    sized = launch_once(page_of(), app_kwargs={"middleware": middleware}, max_file_size=2**16)
    sized.is_plain = is_plain
    with pytest.MonkeyPatch.context() as patch:
        if is_plain:
            patch.setattr(route_utils, "GradioMultiPartParser", UploadParser.__base__)
        yield sized


def test_plain_gradio_reads_a_call_of_any_size_and_ours_refuses_whatever_its_headers_say(sized, monkeypatch) -> None:
    content = b'{"data": [1.0], "unread": "' + b" " * limits.REQUEST.value + b'"}'
    answer = sized.http.post(f"{sized.api}/call/work", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == (200 if sized.is_plain else 413)
    monkeypatch.setenv("INTRASLICE_MAX_REQUEST", "1000")
    answer = sized.http.post(f"{sized.api}/call/work", files=[("files", ("a.txt", bytes(2000)))])
    assert answer.status_code == (422 if sized.is_plain else 413)


def test_plain_gradio_bounds_each_file_of_an_upload_and_ours_their_sum_and_number(sized, monkeypatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAX_UPLOAD", str(2**16))
    too_many = 2 + limits.UPLOAD_ENVELOPE // 2**15
    most = limits.MAX_UPLOAD_FILES
    for count, size, refused in ((1, 2**15, 200), (too_many, 2**15, 413), (most, 1, 200), (most + 1, 1, 400)):
        files = [("files", (f"{index}.txt", bytes(size))) for index in range(count)]
        answer = sized.http.post(f"{sized.api}/upload", files=files)
        assert answer.status_code == (200 if sized.is_plain else refused)
    assert sized.is_plain or answer.text == f"An upload may have at most {limits.MAX_UPLOAD_FILES} files. Upload fewer."
    large = [("files", ("large.txt", bytes(2**16 + 1)))]
    assert sized.http.post(f"{sized.api}/upload", files=large).status_code == 413


def test_all_uploads_together_take_no_more_than_their_bound_of_the_disk(sized, monkeypatch) -> None:
    bound = 40 * 2**13
    monkeypatch.setenv("INTRASLICE_MAX_UPLOADS", str(bound))
    for number in range(12):
        content = str(number).encode() * 2**15  # gradio stores equal files once
        answer = sized.http.post(f"{sized.api}/upload", files=[("files", ("text.txt", content))])
        assert Path(answer.json()[0]).read_bytes() == content
        taken = sum(map(allocated_bytes, upload_folder().iterdir()))
        assert sized.is_plain or taken <= bound, number
    assert sized.is_plain or taken > bound / 2  # the newest stay


def part(boundary: str, name: str = "files", file: str = "; filename=a.txt") -> bytes:
    """A part that no upload has had: gradio stores equal files once."""
    return f"--{boundary}\r\nContent-Disposition: form-data; name={name}{file}\r\n\r\n{uuid4()}\r\n".encode()


def post(sized, kind: str, body: bytes, query: str = "") -> tuple[int, int]:
    """The status of an upload whose body comes in chunks, without a length, and the inodes that it leaves behind."""

    def chunks() -> Iterator[bytes]:
        yield from (body[start : start + 1000] for start in range(0, len(body), 1000))

    folder = upload_folder()
    before = set(folder.rglob("*"))
    answer = sized.http.post(f"{sized.api}/upload{query}", content=chunks(), headers={"content-type": kind})
    return answer.status_code, len(set(folder.rglob("*")) - before)


BOUNDARIES = {  # by what gradio reads as the boundary
    "Multipart/form-data; boundary=capital": "capital",
    "multipart/FORM-DATA; Boundary=capitals": "capitals",
    "multipart/form-data; boundary=first; boundary=second": "second",
    'multipart/form-data; charset=x; boundary="in quotes"': "in quotes",
    "multipart/form-data; boundary=": "",
}


@pytest.mark.parametrize("kind", BOUNDARIES)
def test_plain_gradio_takes_many_tiny_parts_and_ours_none_however_they_are_delimited(sized, kind) -> None:
    boundary = BOUNDARIES[kind]
    status, inodes = post(sized, kind, b"".join(part(boundary) for _ in range(100)) + f"--{boundary}--\r\n".encode())
    assert (status, inodes > limits.MAX_UPLOAD_FILES) == ((200, True) if sized.is_plain else (400, False))
    assert post(sized, kind, part(boundary) + f"--{boundary}--\r\n".encode())[0] == 200


def test_an_upload_whose_headers_do_not_fit_its_body_is_refused(sized) -> None:
    for kind in (
        "multipart/form-data; boundary=other",  # than that of the body
        "multipart/form-data; boundary=a; boundary=other",
        "multipart/form-data",
        "text/plain; boundary=a",
        "multipart/mixed; boundary=a",
        *(() if sized.is_plain else (f"multipart/form-data; boundary={'a' * 300}", "")),  # where gradio answers 500
    ):
        assert post(sized, kind, part("a") + b"--a--\r\n") == (400, 0), kind


@pytest.mark.parametrize("query", ["", "?upload_id=mine"])
def test_plain_gradio_fails_at_a_part_that_is_no_file_and_ours_refuses_it(sized, query) -> None:
    for name, file in (("files", ""), ("files", "; size=1"), ("text", "; filename=a.txt")):
        body = part("a") + part("a", name, file) + b"--a--\r\n"
        status, inodes = post(sized, "multipart/form-data; boundary=a", body, query)
        assert inodes if sized.is_plain else (status, inodes) == (400, 0), (name, file)


# A route of a new version of gradio is added here, or to `NEEDED` where the page or its programs want it.
REFUSED = {
    *("/login", "/logout", "/monitoring", "/monitoring/{}", "/monitoring/summary", "/openapi.json", "/token", "/user"),
    *("/pwa_icon", "/pwa_icon/{}", f"{API}/deep_link", f"{API}/dev/reload", f"{API}/process_recording"),
    *(f"{API}/login_check", f"{API}/token", f"{API}/user", "/login_check", f"{API}/runs"),
    *(f"{API}/run-history/{path}" for path in ("connect", "buckets", "records", "records/{}/{}/assets/{}")),
    *(f"{API}/{path}" for path in ("proxy={}", "file/{}", "component_server", "custom_component/{}/{}/{}/{}")),
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


def test_every_route_of_gradio_is_needed_or_refused() -> None:
    found = set(map(plain, paths(GradioApp.create_app(page_of()).routes)))
    needed = set(map(plain, NEEDED))
    assert found - needed == REFUSED & found
    assert not REFUSED & needed


@pytest.fixture(scope="module")
def client(launch_once):
    middleware = [Middleware(needed_routes, {"/own": ("GET",)}, lambda session: session == "caller")]
    return launch_once(page_of(), app_kwargs={"middleware": middleware})


UNNEEDED = ["gradio_api/token", "openapi.json", "monitoring", "gradio_api/deep_link"]


def test_plain_gradio_answers_what_no_client_needs(launch) -> None:
    client = launch(page_of())
    assert "not found" not in [client.http.get(f"{client.address}{path}").text for path in UNNEEDED]


def test_what_is_needed_is_answered_and_nothing_else(client, caplog) -> None:
    for path in (*UNNEEDED, "gradio_api/queue/data?session_hash=nobody"):
        answer = client.http.get(f"{client.address}{path}")
        assert (answer.status_code, answer.text) == (404, "not found")
    assert not caplog.records
    for method, path in (("GET", ""), ("HEAD", ""), ("GET", "config")):
        assert client.http.request(method, f"{client.address}{path}").status_code == 200
    assert client.ask("work", 7.0) == ("complete", [7.0])
    asked = {"origin": "https://example.org", "access-control-request-method": "POST"}
    assert client.http.options(f"{client.api}/call/work", headers=asked).status_code == 200
